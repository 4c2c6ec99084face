from __future__ import annotations

import random
import statistics

import pytest

from dollyllama.evaluation.metric import Metric, mean_metric, ratio_metric


def test_a_mean_has_the_standard_error_of_the_mean() -> None:
    scores = [0.0, 1.0, 1.0, 0.25]
    metric = mean_metric("f1/dolly", scores)
    assert (metric.name, metric.n) == ("f1/dolly", 4)
    assert metric.value == pytest.approx(statistics.mean(scores))
    assert metric.standard_error == pytest.approx(statistics.stdev(scores) / 2)


def test_a_share_has_the_standard_error_of_a_share() -> None:
    # sqrt(p (1 - p) / (n - 1)): 0.3 * 0.7 / 99
    metric = mean_metric("exact/sql", [1.0] * 30 + [0.0] * 70)
    assert metric.standard_error == pytest.approx((0.21 / 99) ** 0.5)


def test_one_example_has_no_standard_error() -> None:
    assert mean_metric("a/b", [0.5]) == Metric("a/b", 0.5, None, 1)
    assert ratio_metric("a/b", [6.0], [3.0]) == Metric("a/b", 2.0, None, 1)


def test_a_ratio_of_equal_sizes_is_a_mean() -> None:
    ratio = ratio_metric("loss/a", [2.0, 4.0, 9.0], [2, 2, 2])
    mean = mean_metric("loss/a", [1.0, 2.0, 4.5])
    assert ratio.value == pytest.approx(mean.value)
    assert ratio.standard_error == pytest.approx(mean.standard_error)


def test_a_ratios_standard_error_is_the_spread_over_new_examples() -> None:
    generator = random.Random(0)

    def draw() -> Metric:
        sizes = [generator.randint(5, 80) for _ in range(100)]
        levels = [generator.gauss(2.0, 0.5) for _ in sizes]  # an example's tokens go together
        totals = [level * size for level, size in zip(levels, sizes, strict=True)]
        return ratio_metric("loss/a", totals, sizes)

    draws = [draw() for _ in range(2000)]
    spread = statistics.stdev(metric.value for metric in draws)
    stated = statistics.mean(metric.standard_error or 0 for metric in draws)
    assert stated == pytest.approx(spread, rel=0.05)
