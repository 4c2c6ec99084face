from __future__ import annotations

import itertools

import pytest

from dollyllama.config import Batching
from dollyllama.data.batches import plan_epoch
from dollyllama.training.budget import make_plan
from tests.training.build import make_trainer

LENGTHS = [10, 20, 30, 40, 50, 60, 70]  # 280 tokens; 4 batches of 2


def test_epochs_become_steps_across_their_ends() -> None:
    assert make_plan(LENGTHS, make_trainer(epochs=1), seed=0).steps == 4
    # 12 micro-batches in steps of 5: the second step takes some of each epoch, the last has 2.
    plan = make_plan(LENGTHS, make_trainer(epochs=3, accumulation=5), seed=0)
    assert plan.steps == 3
    assert len(plan.batches) == 12


def test_each_epoch_of_the_plan_deals_all_rows() -> None:
    plan = make_plan(LENGTHS, make_trainer(epochs=2), seed=0)
    assert sorted(itertools.chain(*plan.batches[:4])) == list(range(7))
    assert sorted(itertools.chain(*plan.batches[4:])) == list(range(7))
    assert plan.batches[:4] != plan.batches[4:]


@pytest.mark.parametrize(
    ("epochs", "batches"),
    [(0.25, 1), (0.26, 2), (0.01, 1), (1.5, 6), (2.25, 9), (1.2500000000001, 5)],
)
def test_a_part_of_an_epoch_is_rounded_up_to_a_micro_batch(epochs: float, batches: int) -> None:
    assert len(make_plan(LENGTHS, make_trainer(epochs=epochs), seed=0).batches) == batches


def test_max_steps_counts_optimizer_steps_and_goes_round_the_rows_as_often_as_needed() -> None:
    plan = make_plan(LENGTHS, make_trainer(max_steps=5, accumulation=3), seed=0)
    assert plan.steps == 5
    assert len(plan.batches) == 15


def test_max_steps_zero_plans_nothing() -> None:
    plan = make_plan(LENGTHS, make_trainer(max_steps=0), seed=0)
    assert plan.steps == 0
    assert plan.batches == []


@pytest.mark.parametrize("max_tokens", [1, 60, 280, 281, 1000])
@pytest.mark.parametrize("batching", Batching)
def test_training_stops_with_the_step_that_reaches_max_tokens(
    max_tokens: int, batching: Batching
) -> None:
    trainer = make_trainer(max_tokens=max_tokens, accumulation=2, batching=batching)
    plan = make_plan(LENGTHS, trainer, seed=0)
    per_step = [sum(LENGTHS[row] for row in plan.rows_of(n, n)) for n in range(1, plan.steps + 1)]
    assert sum(per_step) >= max_tokens > sum(per_step[:-1])


def test_epochs_are_counted_in_rows() -> None:
    plan = make_plan(LENGTHS, make_trainer(epochs=2), seed=0)
    assert plan.epochs_after(0) == 0
    assert plan.epochs_after(4) == 1
    assert plan.epochs_after(8) == 2
    done = len(plan.batches[0])
    assert plan.epochs_after(1) == done / 7


def test_the_plan_is_that_of_the_batches() -> None:
    plan = make_plan(LENGTHS, make_trainer(epochs=2, batching=Batching.packed), seed=3)
    dealt = [
        plan_epoch(LENGTHS, Batching.packed, batch_size=2, seed=3, epoch=epoch)
        for epoch in range(2)
    ]
    assert plan.batches == dealt[0] + dealt[1]


def test_no_rows_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(ValueError, match=r"no rows to train on: data\.json"):
        make_plan([], make_trainer(), seed=0)
