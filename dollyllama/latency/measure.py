"""Answers timed token by token: the same work for models side by side, round after round."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dollyllama.decoding.generate import greedy, is_out_of_memory, next_tokens
from dollyllama.decoding.stream import follow
from dollyllama.latency.compare import Cell, Timing


def measure(
    sides: Mapping[str, Callable[[], AbstractContextManager[Any]]],
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    tokens: int,
    rounds: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> list[Cell]:
    """Time every side at each size of batch and context (tokens a row), in alternating rounds.

    sides: name -> what gives the model for one answer; all on one device, with one vocabulary.
    One round that nobody counts goes first. Every answer reads the same ids, drawn from ``seed``,
    and writes ``tokens`` tokens a row, at least 2. ValueError when memory runs out.
    """
    sizes = [(batch, context) for batch in batches for context in contexts]
    total = len(sizes) * (rounds + 1) * len(sides)
    done = 0
    cells = []
    for batch, context in sizes:
        timings: dict[str, list[Timing]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, opened in sides.items():
                progress(f"batch {batch}, context {context}, {side}", done, total)
                with opened() as model:
                    ids_BT = _draw_ids(model, batch, context, seed)
                    try:
                        timing = time_answer(model, ids_BT, tokens)
                    except (MemoryError, RuntimeError) as error:
                        if not is_out_of_memory(error):
                            raise
                        raise ValueError(
                            f"out of memory at batch {batch}, context {context}, {side}: lower "
                            f"--batch or --context"
                        ) from error
                done += 1
                if number > 0:
                    timings[side].append(timing)
        cells.append(Cell(batch, context, timings))
    return cells


def time_answer(model: Any, ids_BT: Tensor, tokens: int) -> Timing:
    """Time ``tokens`` greedy tokens (at least 2) of each row behind ids_BT, int64, unpadded.

    End-of-sequence stops no row. Each token is read on the CPU, as ``decoding`` does, so a GPU has
    finished it when its time is taken.
    """
    before = reset_peak(model.device)
    written: list[list[int]] = [[] for _ in ids_BT]
    started = time.perf_counter()
    steps = follow(
        next_tokens(model, ids_BT, torch.ones_like(ids_BT), greedy),
        limits=[tokens] * len(ids_BT),
        stop=lambda running: [False] * len(running),
        written=written,
    )
    next(steps)
    first = time.perf_counter()
    for _ in steps:
        pass
    ended = time.perf_counter()
    growth = None if before is None else (peak(model.device) - before) / 2**20
    return Timing(
        first_seconds=first - started,
        next_seconds=(ended - first) / (tokens - 1),
        tokens_per_second=sum(map(len, written)) / (ended - started),
        growth_mib=growth,
    )


def weights_mib(model: Any, *, adapter: bool) -> float:
    """What the weights of a model take as they are stored, packed ones with their scales.

    adapter: whether to count LoRA's. To be called before the model's first pass, in which
    bitsandbytes takes the scales of 8-bit weights away from them.
    """
    found = {
        tensor.data_ptr(): tensor.nbytes
        for name, parameter in model.named_parameters()
        if adapter or "lora_" not in name
        for tensor in (parameter, *_scales(parameter))
    }
    return float(sum(found.values()) / 2**20)


def _scales(parameter: Any) -> list[Tensor]:
    """Of a weight that bitsandbytes packed, what is stored beside it."""
    match type(parameter).__name__:
        case "Params4bit":
            state = parameter.quant_state
            nested = [state.state2.absmax] if state.nested else []
            return [state.absmax, *nested]
        case "Int8Params":
            return [] if parameter.SCB is None else [parameter.SCB]
        case _:
            return []


def _draw_ids(model: Any, batch: int, context: int, seed: int) -> Tensor:
    """Ids of any words: the work of a dense model does not hang on which."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(model.config.vocab_size, (batch, context), generator=generator)
    return ids_BT.to(model.device)


_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> int | None:
    """Begin a new peak; the bytes held now. None where a CPU's peak cannot be begun anew.

    On a CPU it is the process's resident memory (proc(5), ``clear_refs``), after the allocator has
    given back what earlier answers left it: they would hide what this one takes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not _CLEAR_REFS.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return None
    return peak(device)


def peak(device: torch.device) -> int:
    """The most bytes held since ``reset_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 2**10
