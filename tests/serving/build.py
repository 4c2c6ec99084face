"""A model that takes a step when a test lets it, and what collects an engine's events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dollyllama.config import Decoding, Strategy
from dollyllama.serving.engine import Answer, Delta, Engine, Event, Failure, Job
from tests.decoding.build import Scripted

GREEDY = Decoding.of(Strategy.greedy, 16)
CONTRASTIVE = Decoding.of(Strategy.contrastive, 16, alpha=0.6, k=4)
NUCLEUS = Decoding.of(Strategy.nucleus, 16, temperature=1.0, top_p=0.9)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


class Stepped(Scripted):
    """A scripted model that waits before each pass until ``steps`` has one left."""

    def __init__(self, script: dict[str, list[int]], tokenizer: Any) -> None:
        super().__init__(script, tokenizer)
        self.steps = threading.Semaphore(0)

    def forward(self, **inputs: Any) -> Any:
        assert self.steps.acquire(timeout=20)
        return super().forward(**inputs)


class Asker:
    """Jobs and what became of each."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.events: list[list[Event]] = []
        self._changed = threading.Condition()

    def job(self, prompt: str, decoding: Decoding = GREEDY, **more: Any) -> Job:
        mine: list[Event] = []

        def deliver(event: Event) -> None:
            with self._changed:
                mine.append(event)
                self._changed.notify_all()

        self.jobs.append(Job(prompt, decoding, deliver, **more))
        self.events.append(mine)
        return self.jobs[-1]

    def ends(self) -> list[Answer | Failure]:
        """The last event of every job, once all have one."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(each and not isinstance(each[-1], Delta) for each in self.events), 20
            )
        return [each[-1] for each in self.events if not isinstance(each[-1], Delta)]

    def shown(self, number: int) -> str:
        """What was streamed of a job."""
        return "".join(each.text for each in self.events[number] if isinstance(each, Delta))


def ask(engine: Engine, prompts: Sequence[str], decoding: Decoding, **more: Any) -> list[Any]:
    """The ends of jobs that were submitted one by one before the engine begins."""
    asker = Asker()
    for prompt in prompts:
        engine.submit([asker.job(prompt, decoding, **more)])
    engine.start()
    try:
        return asker.ends()
    finally:
        engine.close(0.0)
        engine.join(20)
