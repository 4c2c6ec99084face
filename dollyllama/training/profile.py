"""Where a few training steps spend their time, and how near they are to what is possible."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dollyllama.files import write_text

#: Steps before the profiled ones, in which allocators and caches warm up, and profiled steps.
_WARM_UP, _PROFILED = 2, 3
_TABLE_ROWS = 40
#: Sides of square matrices whose product shows what the device can do: they grow until one takes
#: so many seconds, because some CPUs multiply bfloat16 far slower than others.
_SIDES, _LONG_ENOUGH = (256, 512, 1024, 2048, 4096), 0.02
#: Where the two factors stand among the arguments of each matrix product.
_FACTORS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::baddbmm_": (1, 2),
}


class StepProfiler:
    """Profiles three steps after the first two, or the last where there are fewer.

    Writes profile.txt, the share of the roofline and a table of time and memory by operation, and
    profile.json, a trace for chrome://tracing or Perfetto, into ``folder``.
    """

    def __init__(self, folder: Path, *, steps: int, done: int, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._first = min(done + _WARM_UP + 1, steps)
        self._last = min(self._first + _PROFILED - 1, steps)
        self._profile: profile | None = None
        self._started = 0.0

    def before(self, step: int) -> None:
        if step == self._first:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
            self._profile.start()
            self._started = time.perf_counter()

    def after(self, step: int, *, stopping: bool) -> None:
        if self._profile is None or (step < self._last and not stopping):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._started
        self._profile.stop()
        order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        flops = count_flops(self._profile.key_averages(group_by_input_shape=True))
        table = self._profile.key_averages().table(sort_by=order, row_limit=_TABLE_ROWS)
        header = _describe(step - self._first + 1, seconds, flops, _best_rate(self._device))
        write_text(self._folder / "profile.txt", f"{header}\n\n{table}")
        temporary = self._folder / ".profile.tmp.json"
        self._profile.export_chrome_trace(str(temporary))
        temporary.replace(self._folder / "profile.json")
        self._profile = None


def count_flops(events: Iterable[Any]) -> int:
    """Floating-point operations of the matrix products among a profile's events with shapes."""
    total = 0
    for event in events:
        if event.key in _FACTORS:
            left, right = (event.input_shapes[place] for place in _FACTORS[event.key])
            total += 2 * math.prod(left) * right[-1] * event.count
    return total


def _best_rate(device: torch.device) -> float:
    """Operations a second of a large product, in float32 or bfloat16, whichever is faster here."""
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        for side in _SIDES:
            square = torch.ones(side, side, dtype=dtype, device=device)
            seconds = min(_time_product(square) for _ in range(3))
            best = max(best, 2 * side**3 / seconds)
            if seconds > _LONG_ENOUGH:
                break
    return best


def _time_product(square: Tensor) -> float:
    started = time.perf_counter()
    float((square @ square)[0, 0])  # waits for a GPU
    return time.perf_counter() - started


def _describe(steps: int, seconds: float, flops: int, best: float) -> str:
    rate = flops / seconds
    return (
        f"{steps} steps in {seconds:.2f} s, profiled. Matrix products: {flops / 1e9:,.1f} GFLOP, "
        f"{rate / 1e9:,.1f} GFLOP/s over all of the time, {rate / best:.0%} of the "
        f"{best / 1e9:,.0f} GFLOP/s that a large one reaches here (attention is not counted)."
    )
