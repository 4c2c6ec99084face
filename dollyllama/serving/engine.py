"""One thread that owns the model and answers what waits, batch by batch.

Requests wait in a bounded queue. The oldest is answered next, and with it those behind it that want
the same decoding, as one batch. A row whose caller has gone, or that has its tokens or its stop
string, leaves the running batch.
"""

from __future__ import annotations

import enum
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dollyllama.config import DRAWS, Decoding
from dollyllama.data.prompt import Stretches
from dollyllama.decoding.generate import Piece, StoppedBy, is_out_of_memory, stream
from dollyllama.decoding.stop_strings import before_stop, safe_text

#: Requests that come together arrive within this; a batch waits so long for more.
_GATHER_SECONDS = 0.005

#: What torch, the tokenizer and our own checks raise. Anything else ends the engine, which says so.
_ERRORS = (
    *(ArithmeticError, AssertionError, LookupError, MemoryError),
    *(RuntimeError, TypeError, ValueError),
)

_log = logging.getLogger(__name__)


class Finish(StrEnum):
    """OpenAI's words for why an answer ended."""

    stop = enum.auto()
    length = enum.auto()


class Trouble(StrEnum):
    """Why a job that was accepted got no answer."""

    internal_error = enum.auto()
    out_of_memory = enum.auto()
    shutting_down = enum.auto()


@dataclass(frozen=True, slots=True)
class Delta:
    """What was written next."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A job is done. text: all of it. tokens: how many were written, an end marker's included."""

    text: str
    tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class Failure:
    """A job is done without an answer."""

    trouble: Trouble


Event = Delta | Answer | Failure


class QueueFullError(Exception):
    """More waits already than may wait."""


class ClosedError(Exception):
    """The engine takes no more jobs."""


@dataclass(slots=True, eq=False)
class Job:
    """One prompt to answer.

    prompt: the whole text. stops: texts to stop before. seed: of the draws, None for any. streamed:
    whether the text is wanted as it is written. deliver: gets the events, the last an Answer or a
    Failure, in the engine's thread.
    """

    prompt: str | Stretches
    decoding: Decoding
    deliver: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    seed: int | None = None
    streamed: bool = False
    done: bool = field(default=False, init=False)
    _text: str = field(default="", init=False)
    _stopped: bool = field(default=False, init=False)
    _shown: str = field(default="", init=False)

    def cancel(self) -> None:
        """Nobody waits for it any more. May be called from any thread, also when it is done."""
        self.done = True

    def goes_with(self, other: Job) -> bool:
        """Whether both can be rows of one batch.

        Draws depend on the seed and the row, so that a seed of the caller's wants the first row.
        """
        if self is other:
            return True
        seeded = self.seed is not None or other.seed is not None
        if seeded and self.decoding.strategy in DRAWS:
            return False
        return self.decoding == replace(other.decoding, max_new_tokens=self.decoding.max_new_tokens)

    def begin(self) -> None:
        """Its row starts, perhaps once more after memory ran out."""
        self._text, self._stopped = "", False

    def wants_more(self, tokens: int) -> bool:
        """Whether its row is to go on behind so many tokens."""
        return not (self.done or self._stopped or tokens >= self.decoding.max_new_tokens)

    def take(self, piece: Piece) -> None:
        """Pass on what its row wrote next."""
        if self.done:
            return
        if not self._stopped:
            self._text += piece.text
            before = before_stop(self._text, self.stops)
            if before is not None:
                self._text, self._stopped = before, True
        over = self._stopped or piece.completion is not None
        text = self._text if over else safe_text(self._text, self.stops)
        if self.streamed:
            behind = piece.completion is None and self._shown.startswith(text)
            if not (behind or text.startswith(self._shown)):
                # Begun anew after memory ran out, and other words were drawn than were shown.
                self.fail(Trouble.out_of_memory)
                return
            if len(text) > len(self._shown):
                fresh, self._shown = text[len(self._shown) :], text
                self.deliver(Delta(fresh))
        if piece.completion is not None:
            cut = piece.completion.stopped_by is StoppedBy.length and not self._stopped
            self.done = True
            finish = Finish.length if cut else Finish.stop
            self.deliver(Answer(self._text, piece.completion.tokens, finish))

    def fail(self, trouble: Trouble) -> None:
        """End it without an answer."""
        if not self.done:
            self.done = True
            self.deliver(Failure(trouble))


class Engine:
    """Answers jobs with a model until it is closed. max_batch, max_queue: at least 1 each."""

    def __init__(self, model: Any, tokenizer: Any, *, max_batch: int, max_queue: int) -> None:
        self.max_queue = max_queue
        self._model = model
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._waiting: list[Job] = []
        self._answering: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._end_seconds = float("inf")
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer; what was submitted before waits for it."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and not self._closed

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for an answer: all of them, or QueueFullError or ClosedError and none."""
        with self._changed:
            if self._closed:
                raise ClosedError
            self._waiting = [job for job in self._waiting if not job.done]
            if len(self._waiting) + len(jobs) > self.max_queue:
                raise QueueFullError
            self._waiting += jobs
            self._changed.notify()

    def close(self, grace_seconds: float) -> None:
        """Take no more, fail what waits, and give what is being answered so long to end."""
        with self._changed:
            self._closed = True
            self._end_seconds = time.monotonic() + grace_seconds
            left, self._waiting = self._waiting, []
            self._changed.notify()
        for job in left:
            job.fail(Trouble.shutting_down)

    def join(self, seconds: float) -> None:
        """Wait until its thread has ended, at most so long."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._answering = batch
                self._answer(batch)
        finally:
            self.close(0.0)
            for job in self._answering:
                job.fail(Trouble.internal_error)

    def _next_batch(self) -> list[Job]:
        """Wait for jobs that go together, the oldest and those that fit it; none when closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                alone = len(self._waiting) < self._max_batch
            if alone:
                time.sleep(_GATHER_SECONDS)
            with self._changed:
                waiting = [job for job in self._waiting if not job.done]
                fitting = [job for job in waiting if job.goes_with(waiting[0])]
                batch = fitting[: self._max_batch]
                self._waiting = [job for job in waiting if job not in batch]
            if batch:
                return batch

    def _answer(self, jobs: list[Job]) -> None:
        """Answer a batch; when memory runs out, its halves."""
        trouble = Trouble.internal_error
        try:
            self._run(jobs)
            return
        except _ERRORS as error:
            if is_out_of_memory(error):
                trouble = Trouble.out_of_memory
            else:
                _log.exception("a batch of %d failed", len(jobs))
        # The error is gone here, and with it what its frames held of memory.
        left = [job for job in jobs if not job.done]
        if trouble is Trouble.out_of_memory and len(jobs) > 1:
            middle = (len(left) + 1) // 2
            for half in filter(None, (left[:middle], left[middle:])):
                self._answer(half)
            return
        for job in left:
            job.fail(trouble)

    def _run(self, jobs: list[Job]) -> None:
        tokens = [0] * len(jobs)

        def wanted(row: int) -> bool:
            tokens[row] += 1
            if time.monotonic() > self._end_seconds:
                jobs[row].fail(Trouble.shutting_down)
            return jobs[row].wants_more(tokens[row])

        for job in jobs:
            job.begin()
        seed = jobs[0].seed
        longest = max(job.decoding.max_new_tokens for job in jobs)
        pieces = stream(
            self._model,
            self._tokenizer,
            [job.prompt for job in jobs],
            replace(jobs[0].decoding, max_new_tokens=longest),
            seed=secrets.randbits(32) if seed is None else seed,
            wanted=wanted,
        )
        for piece in pieces:
            jobs[piece.row].take(piece)
