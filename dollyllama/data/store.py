"""Rows of a source on disk, read, cleaned and tokenised: Arrow files that are mapped, not loaded.

A store is a folder of numbered parts. A part is an Arrow file of the rows that are fit to use, one
of those that are not, and a note (JSON) that is written last: a part with a note is whole, so that
a build that was killed goes on behind it. Nothing here knows where rows come from.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dollyllama.data.example import Example, Split
from dollyllama.data.tokens import EncodedExample
from dollyllama.files import damaged, digest, read_signed_json, write_signed_json

Array = npt.NDArray[Any]

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])

#: A row that is fit to use. side: the hash of its group that places it in the split; key: equal
#: for exact copies; loss and held_out_loss: [start, stop, start, stop, ...] of ``ids``.
KEPT = pa.schema(
    [
        ("row", pa.int64()),
        ("instruction", pa.large_string()),
        ("input", pa.large_string()),
        ("response", pa.large_string()),
        ("context", pa.large_string()),
        ("group", pa.large_string()),
        ("history", pa.list_(_TURN)),
        ("raw", pa.large_string()),
        ("id", pa.uint64()),
        ("key", pa.uint64()),
        ("side", pa.uint64()),
        ("tokens", pa.int32()),
        ("supervised", pa.int32()),
        ("held_out_supervised", pa.int32()),
        ("truncated", pa.bool_()),
        ("ids", pa.large_list(pa.int32())),
        ("loss", pa.list_(pa.int32())),
        ("held_out_loss", pa.list_(pa.int32())),
        ("shingles", pa.large_list(pa.uint32())),
    ]
)

REFUSED = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.large_string()),
        ("raw", pa.large_string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """What became of some consecutive rows of a source: two batches and their counts.

    rows: read, and left after each step. repaired: by kind. rejected: by reason.
    """

    kept: pa.RecordBatch
    refused: pa.RecordBatch
    rows: Counter[str]
    repaired: Counter[str]
    rejected: Counter[str]


def part_is_there(folder: Path, number: int) -> bool:
    """Whether part ``number`` was written whole and is undamaged."""
    note = _note(folder, number)
    return note is not None and not damaged(folder, note["digests"])


def write_part(folder: Path, number: int, part: Part) -> None:
    """Write part ``number`` (from 0), its note last."""
    digests = {}
    for kind, batch in (("kept", part.kept), ("refused", part.refused)):
        name = f"{number:05d}.{kind}.arrow"
        temporary = folder / f".{name}.tmp"
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        digests[name] = digest(temporary)
        temporary.replace(folder / name)
    write_signed_json(
        folder / f"{number:05d}.json",
        {
            "digests": digests,
            "kept": len(part.kept),
            "rows": dict(part.rows),
            "repaired": dict(part.repaired),
            "rejected": dict(part.rejected),
        },
    )


def _note(folder: Path, number: int) -> dict[str, Any] | None:
    try:
        note = read_signed_json(folder / f"{number:05d}.json")
        return note if isinstance(note["digests"], dict) else None
    except (OSError, ValueError, KeyError):
        return None


_WHOLE = "store.json"


def finish_store(folder: Path, parts: int) -> None:
    """Say that the store is whole: ``parts`` parts and no more."""
    notes = [read_signed_json(folder / f"{number:05d}.json") for number in range(parts)]
    total: dict[str, Any] = {"kept": [note["kept"] for note in notes], "digests": {}}
    for key in ("rows", "repaired", "rejected"):
        total[key] = dict(sum((Counter(note[key]) for note in notes), Counter()))
    for note in notes:
        total["digests"] |= note["digests"]
    write_signed_json(folder / _WHOLE, total)


class Store:
    """A finished store. ValueError when ``folder`` holds none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._about = read_signed_json(folder / _WHOLE)
            kept = self._about["kept"]
            self.rows, self.repaired, self.rejected = (
                Counter[str](self._about[key]) for key in ("rows", "repaired", "rejected")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no prepared source") from error
        self.starts = np.array([0, *accumulate(kept)], np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def damaged(self) -> list[str]:
        """Names of files whose bytes are not what was written."""
        return damaged(self.folder, self._about["digests"])

    def discard(self) -> None:
        """Forget that the store is whole, so that what is damaged of it is made again."""
        (self.folder / _WHOLE).unlink(missing_ok=True)

    def column(self, name: str) -> Array:
        """A column of fixed width over all rows."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches()]
        return np.concatenate([np.empty(0, KEPT.field(name).type.to_pandas_dtype()), *parts])

    def lists(self, name: str) -> Iterator[tuple[Array, Array]]:
        """A column of lists, part by part: flat values and the length of each list."""
        for batch in self._batches():
            column = batch.column(name)
            yield column.flatten().to_numpy(), np.diff(column.offsets.to_numpy())

    def is_in_parts(self) -> npt.NDArray[np.bool_]:
        """Of each row whether it has an input or turns before the instruction."""
        parts = [np.empty(0, np.bool_)]
        for batch in self._batches():
            turns = np.diff(batch.column("history").offsets.to_numpy())
            given = pc.binary_length(batch.column("input")).to_numpy()
            parts.append((turns > 0) | (given > 0))
        return np.concatenate(parts)

    def _batches(self, kind: str = "kept") -> Iterator[pa.RecordBatch]:
        for number in range(len(self.starts) - 1):
            yield _open(self.folder / f"{number:05d}.{kind}.arrow")

    def find(self, place: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds the row at ``place`` (from 0), and where in it."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        batch = _open(self.folder / f"{number:05d}.kept.arrow")
        return batch, place - int(self.starts[number])

    def refused(self) -> Iterator[tuple[int, str, str, str]]:
        """The rows that are not fit to use, in upstream's order: row, reason, detail, raw JSON."""
        for batch in self._batches("refused"):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


@lru_cache(maxsize=64)
def _open(path: Path) -> pa.RecordBatch:
    """Map a file: its pages are shared with every process that reads it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


class Corpus:
    """The rows of several stores under one number each: sources by name, rows in their order."""

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self.stores = dict(sorted(stores.items()))
        self.names = list(self.stores)
        sizes = [len(store) for store in self.stores.values()]
        self.starts = np.array([0, *accumulate(sizes)], np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sources(self) -> npt.NDArray[np.int16]:
        """Of each row the number of its source in ``names``."""
        return np.repeat(np.arange(len(self.names), dtype=np.int16), np.diff(self.starts))

    def column(self, name: str) -> Array:
        """A column of fixed width over all rows."""
        return np.concatenate([store.column(name) for store in self.stores.values()])

    def is_in_parts(self) -> npt.NDArray[np.bool_]:
        """Of each row whether it has an input or turns before the instruction."""
        return np.concatenate([store.is_in_parts() for store in self.stores.values()])

    def lay_out(self, name: str, folder: Path) -> tuple[Array, npt.NDArray[np.int64]]:
        """Lay a column of lists end to end: flat values and offsets (rows + 1).

        The values are mapped from a file in ``folder`` that has no name and goes with them.
        """
        lengths = [np.zeros(1, np.int64)]
        kind = KEPT.field(name).type.value_type.to_pandas_dtype()
        with tempfile.TemporaryFile(dir=folder) as file:
            for store in self.stores.values():
                for values, sizes in store.lists(name):
                    file.write(values.tobytes())
                    lengths.append(sizes)
            offsets = np.cumsum(np.concatenate(lengths))
            values = np.memmap(file, kind, mode="r") if offsets[-1] else np.empty(0, kind)
        return values, offsets

    def _find(self, place: int) -> tuple[str, pa.RecordBatch, int]:
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        name = self.names[number]
        return (name, *self.stores[name].find(place - int(self.starts[number])))

    def at(self, place: int) -> tuple[str, int]:
        """The source of a row and its number upstream."""
        source, batch, at = self._find(place)
        return source, batch.column("row")[at].as_py()

    def called(self, place: int) -> str:
        """A row in words."""
        example = self.example(place)
        return f"{example.source} row {example.row}, id {example.id}"

    def example(self, place: int) -> Example:
        source, batch, at = self._find(place)
        return _example(source, batch, at)

    def encoded(self, place: int, side: Split) -> EncodedExample:
        """The row as the model sees it; its loss counts where that side of the split has it."""
        source, batch, at = self._find(place)
        return EncodedExample(
            _example(source, batch, at),
            _list(batch.column("ids"), at).tolist(),
            _spans(batch.column("loss" if side is Split.train else "held_out_loss"), at),
            batch.column("truncated")[at].as_py(),
        )

    def raw(self, place: int) -> str:
        """The row as upstream has it, in JSON."""
        _, batch, at = self._find(place)
        return str(batch.column("raw")[at].as_py())


def _example(source: str, batch: pa.RecordBatch, at: int) -> Example:
    def value(name: str) -> Any:
        return batch.column(name)[at].as_py()

    history = tuple((turn["role"], turn["content"]) for turn in value("history"))
    names = ("row", "instruction", "response", "context", "group", "input")
    return Example(source, **{name: value(name) for name in names}, history=history)


def _list(column: pa.Array, at: int) -> Array:
    start, stop = column.offsets[at].as_py(), column.offsets[at + 1].as_py()
    values: Array = column.values.slice(start, stop - start).to_numpy()
    return values


def _spans(column: pa.Array, at: int) -> tuple[tuple[int, int], ...]:
    flat = _list(column, at).tolist()
    return tuple(zip(flat[::2], flat[1::2], strict=True))


class Rows(Sequence[EncodedExample]):
    """Rows of a corpus in some order, made when they are asked for.

    places: int64, numbers of rows in the corpus, repeats allowed. lengths: int32, tokens of each.
    """

    def __init__(
        self, corpus: Corpus, places: npt.NDArray[np.int64], side: Split, lengths: Array
    ) -> None:
        self._corpus, self._side = corpus, side
        self.places, self.lengths = places, lengths

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            places = self.places[index]
            return Rows(self._corpus, places, self._side, self.lengths[index])
        return self._corpus.encoded(int(self.places[index]), self._side)

    @property
    def sources(self) -> list[str]:
        """The source of each row."""
        names = self._corpus.names
        numbers = np.searchsorted(self._corpus.starts, self.places, side="right") - 1
        return [names[number] for number in numbers]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]


def lengths_of(rows: Sequence[EncodedExample]) -> list[int]:
    """Tokens of each row."""
    if isinstance(rows, Rows):
        return list(rows.lengths.tolist())
    return [len(row.ids) for row in rows]


def sources_of(rows: Sequence[EncodedExample]) -> list[str]:
    """The source of each row."""
    return rows.sources if isinstance(rows, Rows) else [row.example.source for row in rows]
