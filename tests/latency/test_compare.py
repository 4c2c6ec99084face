"""Medians, intervals and verdicts, by hand and by counting every case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dollyllama.latency.compare import (
    MIN_COVERAGE,
    MIN_ROUNDS,
    Cell,
    Timing,
    latency_table,
    paired_ratio,
    spread,
    verdict,
)


def cell(adapter: list[float], merged: list[float], growth_mib: float | None = 3.0) -> Cell:
    return Cell(
        2,
        64,
        {
            side: [Timing(0.5, each, 10.0, growth_mib) for each in seconds]
            for side, seconds in (("adapter", adapter), ("merged", merged))
        },
    )


@pytest.mark.parametrize("values", [[5.0, 1.0, 3.0, 2.0, 4.0], [1.0, 4.0, 2.0, 8.0], [1.0, 2.0]])
def test_a_spread_is_median_and_quartiles(values: list[float]) -> None:
    found = spread(values)
    expected = np.percentile(values, [25, 50, 75])
    assert [found.low, found.median, found.high] == pytest.approx(expected.tolist())


def test_a_ratio_is_taken_within_each_round() -> None:
    # Rounds that slow down together: 2, 4, 3, 2 and 2 times, however long each took.
    found = paired_ratio([2.0, 40.0, 9.0, 800.0, 10.0], [1.0, 10.0, 3.0, 400.0, 5.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 4.0)
    assert found.coverage == 1 - 2 / 2**5


def test_more_rounds_leave_extremes_out() -> None:
    found = paired_ratio([float(each) for each in range(1, 11)], [1.0] * 10)
    assert (found.median, found.low, found.high) == (5.5, 2.0, 9.0)
    assert found.coverage == 1 - 2 * (1 + 10) / 2**10


@pytest.mark.parametrize("n", range(MIN_ROUNDS, 12))
def test_the_coverage_is_the_share_of_cases_that_hold_the_median(n: int) -> None:
    """Each round falls below or above the true median with even odds: count all 2**n cases."""
    found = paired_ratio([float(each) for each in range(n)], [1.0] * n)
    lowest = int(found.low)
    held = [
        sum(signs) > lowest and n - sum(signs) > lowest
        for signs in itertools.product((0, 1), repeat=n)
    ]
    assert found.coverage == pytest.approx(sum(held) / 2**n)
    assert found.coverage >= MIN_COVERAGE
    narrower = [
        sum(signs) > lowest + 1 and n - sum(signs) > lowest + 1
        for signs in itertools.product((0, 1), repeat=n)
    ]
    assert sum(narrower) / 2**n < MIN_COVERAGE


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ([2.0, 2.1, 2.2, 2.0, 2.3], "merging pays; the adapter takes 2.100 times"),
        ([0.5, 0.5, 0.4, 0.6, 0.5], "merging costs time; the adapter takes 0.500 times"),
        ([1.1, 1.2, 1.3, 1.2, 0.9], "within noise; the adapter takes 1.200 times"),
        ([1.0] * 5, "within noise; the adapter takes 1.000 times"),
    ],
)
def test_a_verdict_says_noise_when_the_interval_holds_one(adapter: list[float], said: str) -> None:
    text = verdict(cell(adapter, [1.0] * 5))
    assert text.startswith(f"batch 2, context 64: {said}")
    assert f"({min(adapter):.3f} to {max(adapter):.3f}, 93.8 % interval)" in text


def test_the_table_has_a_line_a_side_and_no_column_that_nobody_measured() -> None:
    weights = {"adapter": 5.0, "merged": 8.0}
    timed = cell([0.01, 0.02, 0.03, 0.04, 0.05], [1.0] * 5)
    title, adapter, merged = latency_table([timed], weights).splitlines()
    assert "beside them, MiB" in title
    assert (
        adapter.split()
        == "2 64 adapter 500.00 (500.00–500.00) 30.00 (20.00–40.00) 10.0 5.0 3.0".split()
    )
    assert merged.endswith("8.0               3.0")
    without = latency_table([cell([1.0] * 5, [1.0] * 5, growth_mib=None)], weights)
    assert "beside" not in without
    assert without.endswith("8.0")
