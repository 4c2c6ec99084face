"""How encoded examples become batches: in which company, and as which tensors.

Which rows share a batch is decided before training from lengths and a seed alone, so that a resumed
run meets the very same batches. The collators are pure functions of the rows of one batch.

B rows of a batch, T tokens of its longest row (all its tokens when packed), N supervised tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import accumulate
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
    return sum(lengths[row] for row in batch)


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

    Behind them comes a row of padding, if any (``padding_behind``), of token 0 without loss.

    Returns input_ids_1T and labels_1T as ``collate_padded`` has them, position_ids_1T (int64), and
    what attention needs to keep the rows apart: row_lengths (a number for each, the padding's
    included) and row_starts (int32, their cumulative lengths from 0).
    """
    lengths = [len(row.ids) for row in rows]
    ids, labels = [_int64(row.ids) for row in rows], [row.labels for row in rows]
    if padding := padding_behind(sum(lengths)):
        lengths.append(padding)
        ids.append(np.zeros(padding, np.int64))
        labels.append(np.full(padding, IGNORED))
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "labels": torch.from_numpy(np.concatenate(labels))[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "row_lengths": lengths,
        "row_starts": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
    }


def _int64(ids: ArrayLike) -> NDArray[np.int64]:
    """A copy: ids may lie in a file that nobody may write to, of which torch would warn."""
    return np.array(ids, np.int64)
