"""Weights as a quantised base holds them, dequantised again, without holding one as a whole.

From the checkpoint, or, many times as fast, from the base in 4 bits that is kept on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dollyllama.config import Quantization, QuantizationMethod
from dollyllama.model.shards import Stored, list_tensors, read_parts, read_tensor

#: Numbers that share a scale, as transformers has bitsandbytes do it.
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight of a kept base: where its 4-bit numbers lie, two a byte, and bitsandbytes' state."""

    numbers: Stored
    state: Any


def list_packed(folder: Path) -> dict[str, Packed]:
    """The weights in 4 bits of a kept base, by name. ValueError when a file is damaged."""
    from bitsandbytes.functional import QuantState

    stored = {each.name: each for each in list_tensors(folder, packed=True)}
    about: dict[str, dict[str, Tensor]] = {}
    for name, each in stored.items():
        weight, found, _ = name.rpartition(".weight.")
        if found:
            about.setdefault(f"{weight}.weight", {})[name] = read_tensor(each)
    device = torch.device("cpu")
    return {
        name: Packed(stored[name], QuantState.from_dict(tensors, device))
        for name, tensors in about.items()
    }


def dequantise(packed: Packed, most: int) -> Iterator[Tensor]:
    """The weight (out, in) in the dtype that it was quantised from, ``most`` numbers or one row.

    A row has a multiple of ``BLOCK`` numbers, or ``most`` is at least all.
    """
    import bitsandbytes.functional as bnb

    state = packed.state
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
    length, width = state.shape
    rows = min(length, max(1, most // width))
    step = math.ceil(rows * width / BLOCK)
    parts = read_parts(packed.numbers, step * BLOCK // 2)
    for first, part, scale in zip(range(0, length, rows), parts, scales.split(step), strict=True):
        here = bnb.QuantState(
            absmax=scale,
            shape=torch.Size((min(rows, length - first), width)),
            dtype=state.dtype,
            blocksize=BLOCK,
            quant_type=state.quant_type,
        )
        yield bnb.dequantize_4bit(part, here)


def requantise(
    parts: Callable[[], Iterable[Tensor]], quantization: Quantization
) -> Iterator[Tensor]:
    """The parts of a weight as ``load_base`` holds them quantised, dequantised; dtype as it was.

    parts: gives the weight's rows, anew at each call; every part but the last has a multiple of
    ``BLOCK`` numbers.
    """
    import bitsandbytes.functional as bnb

    match quantization.method:
        case QuantizationMethod.none:
            yield from parts()
        case QuantizationMethod.int8:
            for part in parts():
                packed, scales, _ = bnb.int8_vectorwise_quant(part.to(torch.float16))
                yield bnb.int8_vectorwise_dequant(packed, scales).to(part.dtype)
        case QuantizationMethod.nf4 | QuantizationMethod.fp4:
            yield from _requantise_4bit(
                parts, str(quantization.method), double=bool(quantization.double)
            )


def _requantise_4bit(
    parts: Callable[[], Iterable[Tensor]], kind: str, *, double: bool
) -> Iterator[Tensor]:
    """What ``dequantize_4bit(*quantize_4bit(weight))`` of bitsandbytes gives, many times as fast.

    Dettmers et al. 2023, arXiv:2305.14314. A number becomes the nearest of 16 levels: bitsandbytes
    searches them number by number on a CPU, this counts the bounds below, vector by vector.
    """
    import bitsandbytes.functional as bnb

    levels = bnb.get_4bit_type(kind, device="cpu").sort().values
    bounds = ((levels[:-1] + levels[1:]) / 2).numpy()
    scales = [_blocks(part).abs().amax(1) for part in parts()]
    kept = _requantise_scales(torch.cat(scales)) if double else torch.cat(scales)
    held = kept.split([len(each) for each in scales])  # type: ignore[no-untyped-call]
    # Memory used again for each part; the first is the largest.
    scratch = torch.empty(len(scales[0]), BLOCK)
    above = np.empty(scratch.shape, dtype=np.bool_)
    counts = np.empty(scratch.shape, dtype=np.uint8)
    for part, scale, factor in zip(parts(), scales, held, strict=True):
        scaled = scratch[: len(scale)]
        torch.mul(_blocks(part), scale.clamp(min=1e-38).reciprocal()[:, None], out=scaled)
        count = counts[: len(scale)]
        count.fill(0)
        for bound in bounds:
            is_above = np.greater(scaled.numpy(), bound, out=above[: len(scale)])
            np.add(count, is_above.view(np.uint8), out=count)
        nearest = torch.from_numpy(count).flatten().int()
        torch.index_select(levels, 0, nearest, out=scaled.view(-1))
        scaled.mul_(factor[:, None])
        yield scaled.flatten()[: part.numel()].view_as(part).to(part.dtype, copy=True)


def _blocks(part: Tensor) -> Tensor:
    """Float32 numbers by the blocks that share a scale, (blocks, 64), padded with zeros."""
    flat = part.float().flatten()
    if len(flat) % BLOCK:
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK))
    return flat.view(-1, BLOCK)


def _requantise_scales(scales: Tensor) -> Tensor:
    """What double quantisation leaves of the scales: their distances from the mean, in 8 bits."""
    import bitsandbytes.functional as bnb

    mean = scales.mean()
    kept: Tensor = bnb.dequantize_blockwise(*bnb.quantize_blockwise(scales - mean, blocksize=256))
    return kept + mean
