"""A look at where a few training steps spend their time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dollyllama.files import write_text

#: Steps before the profiled ones, in which allocators and caches warm up, and profiled steps.
_WARM_UP, _PROFILED = 2, 3
_TABLE_ROWS = 40


class StepProfiler:
    """Profiles three steps after the first two, or the last where there are fewer.

    Writes profile.txt, a table by operation, and profile.json, a trace for chrome://tracing or
    Perfetto, into ``folder``.
    """

    def __init__(self, folder: Path, *, steps: int, done: int) -> None:
        self._folder = folder
        self._first = min(done + _WARM_UP + 1, steps)
        self._last = min(self._first + _PROFILED - 1, steps)
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        if step == self._first:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()

    def after(self, step: int, *, stopping: bool) -> None:
        if self._profile is None or (step < self._last and not stopping):
            return
        self._profile.stop()
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        averages = self._profile.key_averages()
        write_text(
            self._folder / "profile.txt", averages.table(sort_by=order, row_limit=_TABLE_ROWS)
        )
        temporary = self._folder / ".profile.tmp.json"
        self._profile.export_chrome_trace(str(temporary))
        temporary.replace(self._folder / "profile.json")
        self._profile = None
