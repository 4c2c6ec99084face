"""How encoded examples become batches: in which company, and as which tensors.

Which rows share a batch is decided before training from lengths and a seed alone, so that a resumed
run meets the very same batches. The collators are pure functions of the rows of one batch.

B rows of a batch, T tokens of its longest row (all that are computed when packed), R tokens of all
its rows, N supervised tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dollyllama.config import Batching
from dollyllama.data.tokens import IGNORED, EncodedExample

#: Row indices of one micro-batch.
Batch = list[int]

#: Rows are sorted by length within stretches of so many batches: enough for almost no padding, few
#: enough that batches differ from epoch to epoch. The figure is transformers' (group_by_length).
_STRETCH_BATCHES = 50

#: Places of a packed batch come in multiples of this. oneDNN prepares a kernel for each new number
#: of them and keeps it (docs/log.md).
MULTIPLE = 16

#: Fewer tokens than this are computed for each row anew, though several rows start with them.
_LEAST_SHARED = 16


def plan_epoch(
    lengths: Sequence[int], batching: Batching, *, batch_size: int, seed: int, epoch: int
) -> list[Batch]:
    """Deal every row to one batch. Equal arguments give equal batches, another epoch other ones.

    lengths: tokens of each row. The batch that needs most memory comes first, so that a run which
    does not fit fails at its first step.
    """
    generator = np.random.default_rng([seed, epoch])
    batches = BATCHINGS[batching](lengths, batch_size, generator)
    generator.shuffle(batches)
    size = _packed_tokens if batching is Batching.packed else _padded_tokens
    largest = max(range(len(batches)), key=lambda number: size(batches[number], lengths))
    batches[0], batches[largest] = batches[largest], batches[0]
    return batches


def bin_capacity(lengths: Sequence[int], batch_size: int) -> int:
    """Tokens that a packed batch may hold: what ``batch_size`` rows have on average.

    So a packed step sees about as many rows and tokens as a padded one, and learning rate and
    number of steps mean the same with either. The longest row fits in any case.
    """
    return max(*lengths, math.ceil(batch_size * sum(lengths) / len(lengths)))


def _padded(lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[Batch]:
    order: list[int] = generator.permutation(len(lengths)).tolist()
    return _chunks(order, batch_size)


def _length_grouped(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator
) -> list[Batch]:
    order: list[int] = generator.permutation(len(lengths)).tolist()
    batches: list[Batch] = []
    for stretch in _chunks(order, batch_size * _STRETCH_BATCHES):
        batches += _chunks(sorted(stretch, key=lambda row: -lengths[row]), batch_size)
    return batches


def _packed(lengths: Sequence[int], batch_size: int, generator: np.random.Generator) -> list[Batch]:
    """Best fit in random order: each row goes to the fullest bin that still has room for it.

    Sorting by length first would fill bins a little better and put like lengths together, which
    would make some steps all long rows and others all short ones.
    """
    capacity = bin_capacity(lengths, batch_size)
    bins: list[Batch] = []
    rooms: list[tuple[int, int]] = []  # room left and number of each bin, in ascending order
    for row in generator.permutation(len(lengths)).tolist():
        place = bisect_left(rooms, (lengths[row], 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
            bins[number].append(row)
        else:
            room, number = capacity, len(bins)
            bins.append([row])
        insort(rooms, (room - lengths[row], number))
    return bins


BATCHINGS: dict[Batching, Callable[[Sequence[int], int, np.random.Generator], list[Batch]]] = {
    Batching.padded: _padded,
    Batching.length_grouped: _length_grouped,
    Batching.packed: _packed,
}


def _chunks(rows: list[int], size: int) -> list[Batch]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _padded_tokens(batch: Batch, lengths: Sequence[int]) -> int:
    return len(batch) * max(lengths[row] for row in batch)


def _packed_tokens(batch: Batch, lengths: Sequence[int]) -> int:
    # Rows that start alike share that, so of equally many tokens fewer rows take more memory.
    return sum(lengths[row] - MULTIPLE for row in batch)


def collate_padded(rows: Sequence[EncodedExample], *, pad_id: int) -> dict[str, Tensor]:
    """Lay rows out one below the other, padded on the right.

    There is no attention mask: under causal attention no token sees the padding to its right, and
    padding itself carries no loss.

    Returns input_ids_BT and labels_BT (int64; labels are IGNORED where no loss counts, the first
    token of each row included, which nothing predicts).
    """
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad_id)
    labels_BT = torch.full((len(rows), longest), IGNORED)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row.ids)] = torch.from_numpy(_int64(row.ids))
        labels_BT[number, : len(row.ids)] = torch.from_numpy(row.labels)
    return {"input_ids": ids_BT, "labels": labels_BT}


def padding_behind(places: int) -> int:
    """How many places go behind so many, so that few numbers of them come up in a run."""
    return -places % MULTIPLE


def collate_packed(rows: Sequence[EncodedExample]) -> dict[str, Any]:
    """Lay rows out one after the other in a single row, each with positions from 0.

    What several rows start with (a prompt's frame, say) stands there once: no token sees what comes
    behind it, so it is the same for all of them. The batch is made of segments, and a row is one
    segment or several. Behind them comes a row of padding, if any (``padding_behind``), of token 0
    without loss.

    Returns input_ids_1T and position_ids_1T (int64); labels_1R, as ``collate_padded`` has them, and
    row_places_R, where in the batch the tokens of all rows stand (the padding's included); and what
    attention needs to keep the rows apart: row_lengths, row_starts (int32, their cumulative lengths
    from 0), and, where rows share segments, segment_lengths and row_segments, the segments of each
    row.
    """
    ids = [_int64(row.ids) for row in rows]
    labels = [row.labels for row in rows]
    segments, row_segments = _segments(ids)
    if padding := padding_behind(sum(segment.length for segment in segments)):
        row_segments.append([len(segments)])
        segments.append(_Segment(len(ids), 0, padding))
        ids.append(np.zeros(padding, np.int64))
        labels.append(np.full(padding, IGNORED))
    starts = [0, *accumulate(segment.length for segment in segments)]
    places = [np.arange(start, stop) for start, stop in pairwise(starts)]
    batch = {
        "input_ids": torch.from_numpy(
            np.concatenate([ids[each.row][each.start : each.stop] for each in segments])
        )[None],
        "position_ids": torch.cat([torch.arange(each.start, each.stop) for each in segments])[None],
        "labels": torch.from_numpy(np.concatenate(labels))[None],
        "row_places": torch.from_numpy(
            np.concatenate([places[number] for row in row_segments for number in row])
        ),
        "row_lengths": [len(each) for each in ids],
        "row_starts": torch.tensor([0, *accumulate(map(len, ids))], dtype=torch.int32),
    }
    if row_segments != [[number] for number in range(len(segments))]:
        batch["segment_lengths"] = [each.length for each in segments]
        batch["row_segments"] = row_segments
    return batch


@dataclass(frozen=True, slots=True)
class _Segment:
    """Tokens [start, stop) of a row, and of all others that are made of it."""

    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def _segments(ids: Sequence[NDArray[np.int64]]) -> tuple[list[_Segment], list[list[int]]]:
    """The segments of a batch, and of each row the numbers of those that it is made of."""
    segments: list[_Segment] = []
    row_segments: list[list[int]] = [[] for _ in ids]
    # Rows that are alike before a place.
    groups = [(list(range(len(ids))), 0)]
    while groups:
        group, start = groups.pop()
        alike: dict[bytes, list[int]] = {}
        for row in group:
            next_ids = ids[row][start : start + _LEAST_SHARED]
            # One that has fewer left is alone.
            key = next_ids.tobytes() if len(next_ids) == _LEAST_SHARED else row.to_bytes(4)
            alike.setdefault(key, []).append(row)
        for members in alike.values():
            first = ids[members[0]]
            stop = len(first)
            for row in members[1:]:
                shorter = min(stop, len(ids[row]))
                differs = first[start:shorter] != ids[row][start:shorter]
                stop = start + int(differs.argmax()) if differs.any() else shorter
            if stop > start:
                for row in members:
                    row_segments[row].append(len(segments))
                segments.append(_Segment(members[0], start, stop))
            if len(members) > 1:
                groups.append((members, stop))
    return segments, row_segments


def _int64(ids: ArrayLike) -> NDArray[np.int64]:
    """A copy: ids may lie in a file that nobody may write to, of which torch would warn."""
    return np.array(ids, np.int64)
