"""The drawings' numbers: scales, frontiers, curves and what is cut off."""

from __future__ import annotations

import random
import re

import pytest

from dollyllama.study.figures import (
    Point,
    Scale,
    curve_of,
    curves,
    effect_axis,
    effect_scale,
    frontier,
    interval,
    quality_against_cost,
    tick_labels,
)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.037, 0.6), (3, 3000), (-5e-6, 2e-6), (0.98, 1.01)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_a_logarithmic_scale_gives_factors_the_same_room() -> None:
    scale = Scale(0.01, 100, log=True)
    assert [scale.share(value) for value in (0.01, 0.1, 1, 10, 100)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )
    assert Scale(0.5, 4, log=True).ticks() == [0.5, 1, 2]
    assert scale.share(1e9) == 1
    assert scale.share(-1) == 0


def test_labels_say_no_more_than_tells_them_apart() -> None:
    assert tick_labels([-0.05, 0, 0.05], signed=True) == ["−0.05", "0", "+0.05"]
    assert tick_labels([0, 0.1, 0.2], percent=True) == ["0", "10", "20"]
    assert tick_labels([1000, 2000]) == ["1,000", "2,000"]


def test_one_wild_interval_does_not_squeeze_the_others() -> None:
    extents = [(-0.01, 0.01)] * 9 + [(-0.2, 0.8)]
    scale = effect_scale(extents, margin=0.005)
    assert scale.bend is None
    assert scale.low < -0.01
    assert 0.01 < scale.high < 0.1
    beyond = interval(0.3, -0.2, 0.8, scale=scale, margin=0.005, title="sgd")
    # The effect lies beyond the one edge, its interval beyond the other too.
    assert "▹" in beyond
    assert "◂" in beyond
    assert "circle" not in beyond
    assert "▹" in interval(0.3, None, None, scale=scale, margin=0.005, title="one seed")
    cut = interval(0.0, -0.01, 0.8, scale=scale, margin=0.005, title="sgd")
    assert "▸" in cut
    assert "circle" in cut
    whole = interval(0.0, -0.01, 0.01, scale=scale, margin=0.005, title="<rank>")
    assert "▸" not in whole
    assert "<title>&lt;rank&gt;</title>" in whole


def test_clear_effects_are_whole_however_large() -> None:
    small, clear = [(-0.01, 0.01)] * 9, [(0.6, 0.8), (-3.0, -2.0)]
    scale = effect_scale(small + clear, margin=0.005, clear=clear)
    shares = [scale.share(value) for value in (-3, -2, -0.01, 0, 0.01, 0.6, 0.8)]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] < 1
    # The small ones can still be seen.
    assert shares[4] - shares[2] > 0.1
    assert "circle" in interval(-2.5, -3, -2, scale=scale, margin=0.005, title="sgd")
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert 0 in ticks
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert {-1, 0.1} <= set(ticks)
    assert ">+0.1</text>" in effect_axis(scale, percent=False)
    # Where all are of a kind the axis stays even.
    assert effect_scale([(0.1, 0.2), (0.2, 0.3)], 0.01, clear=[(0.2, 0.3)]).bend is None


def test_an_interval_stands_where_its_scale_says() -> None:
    drawn = interval(0.5, 0.25, 0.75, scale=Scale(0, 1), margin=0.1, title="")
    whisker = re.search(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', drawn)
    assert whisker is not None
    assert whisker.groups() == ("25.00", "75.00")
    assert 'cx="50.00%"' in drawn
    assert "hollow" in interval(0.5, None, None, scale=Scale(0, 1), margin=0, title="")
    assert effect_axis(Scale(-1, 1), percent=False).count("<text") == 5


def test_a_curve_is_the_seeds_mean_and_range() -> None:
    runs = [[(1, 4.0), (2, 3.0), (3, 2.0)], [(1, 2.0), (3, 4.0), (5, 9.0)], []]
    curve = curve_of("a", runs)
    assert curve is not None
    # As far as both go; the second has 3.0 at step 2, on the line between its neighbours.
    assert curve.steps == [1, 2, 3]
    assert curve.mean == [3.0, 3.0, 3.0]
    assert curve.low == [2.0, 3.0, 2.0]
    assert curve.high == [4.0, 3.0, 4.0]
    assert curve_of("a", [[]]) is None
    assert curve_of("a", [[(1, 1.0)], [(5, 1.0)]]) is None


def test_long_curves_are_thinned_and_hidden_ones_are_there() -> None:
    long = curve_of("a<b", [[(step, 1.0 + step) for step in range(1000)]])
    assert long is not None
    assert len(long.steps) <= 160
    assert (long.steps[0], long.steps[-1]) == (0, 999)
    drawn = curves([long], classes={})
    assert 'data-curve="a&lt;b" hidden' in drawn
    assert " hidden" not in curves([long], classes={"a<b": "ink1"})
    assert curves([], classes={}) == ""


def point(name: str, x: float, y: float) -> Point:
    return Point(name, x, y, (x, x), None, "nothing", name)


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_the_frontier_is_what_no_other_beats(lower_is_better: bool) -> None:
    draw = random.Random(5)
    points = [point(str(n), draw.random(), draw.random()) for n in range(40)]
    sign = 1 if lower_is_better else -1
    expected = {
        each.name
        for each in points
        if not any(
            other is not each and other.x <= each.x and sign * other.y <= sign * each.y
            for other in points
        )
    }
    found = frontier(points, lower_is_better=lower_is_better)
    assert {each.name for each in found} == expected
    assert [each.x for each in found] == sorted(each.x for each in found)


def test_points_far_off_stand_at_the_edge_with_an_arrow() -> None:
    points = [point(str(n), n, 0.5 + n / 1000) for n in range(6)] + [point("sgd", 3, 40.0)]
    drawn = quality_against_cost(points, lower_is_better=True, percent=False, title="t")
    assert drawn.count("↑") == 1
    assert quality_against_cost(points[:1], lower_is_better=True, percent=True, title="t")
