"""What a user sees of training while it runs, and the memory that it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from dollyllama.bars import hidden


def open_bar(*, steps: int, done: int) -> Any:
    """A bar of steps with the time left on the terminal; nothing where stderr is none."""
    return tqdm(
        total=steps, initial=done, desc="training", unit="step", disable=hidden(), file=sys.stderr
    )


class Stopwatch:
    """Seconds of training: those before a resumption count, those of evaluations do not."""

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - paused


def peak_memory_mib(device: torch.device) -> float:
    """The most memory used so far: allocated on a GPU, resident of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
