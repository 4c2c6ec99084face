"""Safetensors files read and written in parts of a tensor, without mapping them into memory."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dollyllama.files import parse_json, write_json
from dollyllama.weights import conversion, pickled, target_of, weight_files

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: More would wait for the disk, and each may hold a tensor.
_WRITERS = 4
#: Bytes after which the disk is told to begin with what was written, so that it works beside us.
_SEND = 2**24


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: ``start`` is its first byte in the file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int


def list_tensors(folder: Path, *, packed: bool = False) -> list[Stored]:
    """All tensors of a checkpoint, sharded or not, in the order in which they lie on the disk.

    packed: whether it may have tensors of bytes, as one in 4 bits has. ValueError when there is no
    safetensors file, one is damaged, or a tensor is of another type.
    """
    paths = weight_files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no model.safetensors: copy the folder again")
    if names := pickled(paths):
        # Beside the pickles, so that the rest of the folder stays what the run was trained on.
        made, here = shlex.quote(target_of(folder)), shlex.quote(str(folder))
        raise ValueError(
            f"{folder / names[0]} is pickled, and only a base in safetensors files can be merged "
            f"into: put those beside it, `{conversion(folder)} "
            f"&& cp {made}/model*.safetensors* {here}`"
        )
    return [stored for path in paths for stored in _read_header(path, packed)]


def read_parts(stored: Stored, most: int) -> Iterator[Tensor]:
    """The tensor from its first row on, each part ``most`` numbers or one row.

    A part is there until the next one is asked for, which takes its memory: new memory for each
    would cost more than reading. ValueError when the file ends before.
    """
    length, *width = stored.shape or (1,)
    rows = max(1, min(length, most // max(1, math.prod(width))))
    whole = torch.empty((rows, *width), dtype=stored.dtype)
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.start)
        for first in range(0, length, rows):
            part = whole[: length - first]
            view = _bytes_of(part)
            while view:
                count = file.readinto(view)
                if not count:
                    raise ValueError(
                        f"{stored.path} ends within {stored.name}: copy the file again"
                    )
                view = view[count:]
            yield part


def read_tensor(stored: Stored) -> Tensor:
    """The whole tensor in memory of its own."""
    (tensor,) = read_parts(stored, max(1, math.prod(stored.shape)))
    return tensor.view(stored.shape)


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


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    parts: Callable[[str], Iterable[Tensor]],
    most: int,
) -> None:
    """Write a checkpoint into ``folder``: shards of at most ``most`` bytes or one tensor, an index.

    parts: gives a tensor from its first row on, piece by piece; it is called from several threads,
    for one tensor in each. The places of all are known before, so that none waits for another.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    names = list(shapes)
    shards = plan_shards(list(sizes.values()), most)
    places: dict[str, tuple[Path, int]] = {}
    for number, positions in enumerate(shards, start=1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        end = _write_header(path, {names[each]: shapes[names[each]] for each in positions}, dtype)
        for name in (names[each] for each in positions):
            places[name] = path, end
            end += sizes[name]

    def write(name: str) -> None:
        path, start = places[name]
        with path.open("r+b") as file:
            file.seek(start)
            sent = start
            for part in parts(name):
                assert part.dtype == dtype, name
                file.write(_bytes_of(part.contiguous()))
                if sys.platform == "linux" and (end := file.tell()) - sent >= _SEND:
                    os.posix_fadvise(file.fileno(), sent, end - sent, os.POSIX_FADV_DONTNEED)
                    sent = end
            assert file.tell() == start + sizes[name], name

    with _single_threaded_torch() as threads, ThreadPoolExecutor(min(threads, _WRITERS)) as pool:
        for _ in pool.map(write, names):
            pass
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: path.name for name, (path, _) in places.items()},
    }
    write_json(folder / "model.safetensors.index.json", index)


def _write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Begin a file for tensors in that order; where the first is to lie."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return path.write_bytes(len(text).to_bytes(8, "little") + text)


@contextmanager
def _single_threaded_torch() -> Iterator[int]:
    """Have each thread compute alone, where several work; yields how many torch would use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _read_header(path: Path, packed: bool) -> list[Stored]:
    if not path.is_file():
        raise ValueError(f"{path} is not there: copy the folder again")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file: copy it again")
        try:
            header = parse_json(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: copy it again") from error
    try:
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        places = {name: _place(about) for name, about in tensors.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from None
    found = []
    for name, (dtype, shape, start, stop) in places.items():
        if dtype not in _DTYPES or (dtype == "U8" and not packed):
            raise ValueError(
                f"{path}: {name} is {dtype}: only a base that is not quantised already can be "
                f"merged into"
            )
        if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"{path} is damaged ({name} has another size): copy it again")
        found.append(Stored(name, path, shape, _DTYPES[dtype], 8 + length + start))
    return sorted(found, key=lambda each: each.start)


def _place(about: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first byte and the one behind the last of a tensor, as a header has them."""
    start, stop = map(int, about["data_offsets"])
    return about["dtype"], tuple(map(int, about["shape"])), start, stop
