"""Safetensors files read and written one tensor at a time, without mapping them into memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dollyllama.files import write_json

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: ``start`` is its first byte in the file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int


def list_tensors(folder: Path) -> list[Stored]:
    """All tensors of a checkpoint, sharded or not, in the order in which they lie on the disk.

    ValueError when there is no safetensors file, one is damaged, or a tensor is no float.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [folder / "model.safetensors"]
    return [stored for path in paths for stored in _read_header(path)]


def read_tensor(stored: Stored) -> Tensor:
    """The tensor in memory of its own."""
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.start)
        view = _bytes_of(tensor)
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{stored.path} ends within {stored.name}: copy the file again")
            view = view[count:]
    return tensor


def plan_shards(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Positions in ``sizes`` (bytes) by shard: in order, each at most ``most`` or one."""
    shards: list[list[int]] = []
    filled = 0
    for position, size in enumerate(sizes):
        if not shards or filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(position)
        filled += size
    return shards


def write_shard(
    path: Path,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    dtype: torch.dtype,
    tensors: Iterable[Tensor],
) -> None:
    """Write ``tensors``, which come in the order of ``shapes``, as one file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes, tensors, strict=True):
            assert (tensor.shape, tensor.dtype) == (shape, dtype), name
            file.write(_bytes_of(tensor.contiguous()))


def write_index(folder: Path, weight_map: dict[str, str], total_bytes: int) -> None:
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _read_header(path: Path) -> list[Stored]:
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: only a base in safetensors files can be merged into"
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file: copy it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: copy it again") from error
    found = []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: {name} is {about['dtype']}: only a base that is not quantised already "
                f"can be merged into"
            )
        start = 8 + length + about["data_offsets"][0]
        found.append(Stored(name, path, tuple(about["shape"]), _DTYPES[about["dtype"]], start))
    return sorted(found, key=lambda each: each.start)
