from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dollyllama.config import Batching
from dollyllama.data.batches import (
    BATCHINGS,
    bin_capacity,
    collate_packed,
    collate_padded,
    plan_epoch,
)
from dollyllama.data.tokens import IGNORED, EncodedExample
from tests.data.build import make_example

LENGTHS = [random.Random(number).randint(5, 90) for number in range(331)]


def plan(
    batching: Batching, *, lengths: Sequence[int] = LENGTHS, seed: int = 0, epoch: int = 0
) -> list[list[int]]:
    return plan_epoch(lengths, batching, batch_size=8, seed=seed, epoch=epoch)


def make_row(ids: list[int], masked: int) -> EncodedExample:
    return EncodedExample(make_example(), ids, ((masked, len(ids)),), truncated=False)


def test_every_batching_has_a_function() -> None:
    assert BATCHINGS.keys() == set(Batching)


@pytest.mark.parametrize("batching", Batching)
def test_an_epoch_deals_each_row_once(batching: Batching) -> None:
    dealt = [row for batch in plan(batching) for row in batch]
    assert sorted(dealt) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("batching", Batching)
def test_batches_depend_on_seed_and_epoch_and_on_nothing_else(batching: Batching) -> None:
    first = plan(batching)
    random.random(), torch.rand(1)  # whatever else draws numbers meanwhile
    assert plan(batching) == first
    assert plan(batching, seed=1) != first
    assert plan(batching, epoch=1) != first


@pytest.mark.parametrize("batching", [Batching.padded, Batching.length_grouped])
def test_all_batches_but_one_are_full(batching: Batching) -> None:
    sizes = sorted(len(batch) for batch in plan(batching))
    assert sizes == [331 % 8] + [8] * (331 // 8)


def test_length_groups_need_almost_no_padding() -> None:
    def share_of_padding(batching: Batching) -> float:
        padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in plan(batching))
        return 1 - sum(LENGTHS) / padded

    assert share_of_padding(Batching.length_grouped) < 0.05
    assert share_of_padding(Batching.padded) > 0.3


def test_length_groups_come_in_no_order_of_length() -> None:
    longest = [max(LENGTHS[row] for row in batch) for batch in plan(Batching.length_grouped)][1:]
    falls = sum(one > other for one, other in itertools.pairwise(longest))
    assert 0.3 < falls / len(longest) < 0.7


def test_no_bin_is_over_its_capacity_and_few_are_far_below() -> None:
    filled = [sum(LENGTHS[row] for row in batch) for batch in plan(Batching.packed)]
    capacity = bin_capacity(LENGTHS, 8)
    assert max(filled) <= capacity
    assert sum(filled) / len(filled) > 0.95 * capacity


def test_packing_takes_about_as_many_steps_as_padding() -> None:
    packed, padded = len(plan(Batching.packed)), len(plan(Batching.padded))
    assert padded <= packed <= 1.1 * padded


def test_a_bin_holds_what_the_batch_holds_on_average() -> None:
    assert bin_capacity([10, 20, 30], 4) == 80
    assert bin_capacity([10, 20, 301], 2) == 301  # the longest row must fit
    assert bin_capacity([7], 1) == 7


def test_bins_mix_long_and_short_rows() -> None:
    """Sorting by length would give bins of long rows alone: their means would differ a lot."""
    means = [sum(LENGTHS[row] for row in batch) / len(batch) for batch in plan(Batching.packed)]
    mean = sum(LENGTHS) / len(LENGTHS)
    assert sum(0.6 * mean < each < 1.6 * mean for each in means) > 0.9 * len(means)


@pytest.mark.parametrize("batching", [Batching.padded, Batching.length_grouped])
def test_the_batch_that_needs_most_memory_comes_first(batching: Batching) -> None:
    sizes = [len(batch) * max(LENGTHS[row] for row in batch) for batch in plan(batching)]
    assert sizes[0] == max(sizes)


def test_a_full_bin_of_few_rows_comes_first() -> None:
    """Rows may start alike, which a bin of many has to compute once instead of many times."""
    batches = plan(Batching.packed)
    sizes = [sum(LENGTHS[row] for row in batch) for batch in batches]
    assert sizes[0] > 0.95 * max(sizes)
    assert len(batches[0]) <= sorted(map(len, batches))[len(batches) // 4]


@pytest.mark.parametrize("batching", Batching)
def test_one_row_is_one_batch(batching: Batching) -> None:
    assert plan(batching, lengths=[12]) == [[0]]


def test_padding_stands_on_the_right_and_carries_no_loss() -> None:
    rows = [make_row([5, 6, 7, 8], 2), make_row([9, 10], 1)]
    batch = collate_padded(rows, pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 3, 3]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, 7, 8],
        [IGNORED, 10, IGNORED, IGNORED],
    ]


def test_positions_begin_anew_with_each_packed_row() -> None:
    rows = [make_row([5, 6, 7], 2), make_row([9, 10], 1)]
    batch = collate_packed(rows)
    padding = 11
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9, 10, *[0] * padding]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, IGNORED, 10, *[IGNORED] * padding]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, *range(padding)]]
    assert batch["row_lengths"] == [3, 2, padding]
    assert batch["row_starts"].tolist() == [0, 3, 5, 16]
    assert batch["row_starts"].dtype == torch.int32


def test_what_rows_start_with_stands_in_a_pack_once() -> None:
    frame, schema = list(range(100, 120)), list(range(200, 217))
    rows = [
        make_row([*frame, 1, 2], 20),
        make_row([*frame, *schema, 3], 37),
        make_row([9, 9], 1),
        make_row([*frame, *schema, 4, 5], 37),
        make_row([*frame, 1, 2], 20),
    ]
    batch = collate_packed(rows)
    assert batch["row_lengths"] == [22, 38, 2, 39, 22, 2]
    assert batch["row_segments"] == [[0, 2], [0, 3, 5], [1], [0, 3, 6], [0, 4], [7]]
    assert batch["segment_lengths"] == [20, 2, 2, 17, 2, 1, 2, 2]
    assert sum(batch["segment_lengths"]) == batch["input_ids"].shape[1] == 48


def test_too_little_in_common_is_not_shared() -> None:
    frame = list(range(100, 115))
    batch = collate_packed([make_row([*frame, 1], 15), make_row([*frame, 2], 15)])
    assert "row_segments" not in batch
    assert batch["input_ids"].shape == (1, 32)


@given(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=60), min_size=1, max_size=9))
def test_a_pack_holds_every_token_of_every_row_at_its_position(texts: list[list[int]]) -> None:
    frame = [7] * 17
    rows = [make_row([*frame, *ids] if len(ids) % 2 else ids, 1) for ids in texts]
    batch = collate_packed(rows)
    places = batch["row_places"].split(batch["row_lengths"])
    for row, place in zip(rows, places, strict=False):
        assert batch["input_ids"][0, place].tolist() == row.ids
        assert batch["position_ids"][0, place].tolist() == list(range(len(row.ids)))
    assert batch["row_places"].unique().tolist() == list(range(batch["input_ids"].shape[1]))
    for (one, mine), (other, theirs) in itertools.combinations(zip(rows, places, strict=False), 2):
        pairs = zip(one.ids, other.ids, strict=False)
        alike = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        shared = len(set(mine.tolist()) & set(theirs.tolist()))
        assert mine[:shared].tolist() == theirs[:shared].tolist()
        assert alike - 16 < shared <= alike


def test_packs_have_few_numbers_of_places() -> None:
    for tokens in range(1, 40):
        rows = [make_row(list(range(tokens)), 0)]
        batch = collate_packed(rows)
        places = batch["input_ids"].shape[1]
        assert (places % 16, places // 16) == (0, math.ceil(tokens / 16))
        assert sum(batch["row_lengths"]) == places
        assert 0 not in batch["row_lengths"]


def test_the_first_token_of_a_row_is_predicted_by_none_also_with_loss_on_all_text() -> None:
    rows = [make_row([5, 6], 0), make_row([7, 8, 9], 0)]
    labels = [IGNORED, 6, IGNORED, 8, 9]
    assert collate_packed(rows)["labels"].flatten().tolist() == labels + [IGNORED] * 11
    assert [row.supervised for row in rows] == [1, 2]


def test_supervised_tokens_are_the_labels_that_count() -> None:
    for masked in range(4):
        row = make_row([5, 6, 7, 8], masked)
        counted = (collate_padded([row], pad_id=0)["labels"] != IGNORED).sum()
        assert row.supervised == counted
