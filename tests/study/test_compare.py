"""Effects, their intervals and verdicts: by hand, against SciPy, and by made-up studies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special, stats

from benchmarks.intervals import (
    FAMILIES,
    LUCK,
    SETTINGS,
    SHARES,
    Setting,
    coverage,
    draw_crossed,
    false_alarms,
    family_alarms,
    luck_alarms,
    plain,
    study_power,
)
from dollyllama.evaluation.metric import ratio_metric
from dollyllama.study.compare import (
    Array,
    Effect,
    Verdict,
    aliases,
    detectable,
    factorial_effects,
    holm,
    interaction,
    level_of,
    paired_effect,
    seeds_needed,
    verdict,
    with_shared_luck,
)

#: Rows have the means 3, 5, 7, and so have columns.
BY_HAND = np.array([[1.0, 2, 6], [3, 4, 8], [5, 9, 7]])


def study(seed: int, seeds: int = 4, examples: int = 30) -> tuple[Array, Array, Array]:
    """Values of a baseline and a variant, and weights."""
    rng = np.random.default_rng(seed)
    baseline = rng.normal(size=(seeds, examples)) + rng.normal(size=examples)
    variant = baseline + 0.3 + rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, examples))
    return baseline, variant, rng.lognormal(size=examples)


def effect_of(differences: Array, weights: Array | None = None) -> Effect:
    zeros = np.zeros_like(differences)
    return paired_effect(zeros, differences, np.ones(len(zeros[0])) if weights is None else weights)


def test_the_analysis_of_variance_is_that_worked_by_hand() -> None:
    # Sums of squares: seeds 24, examples 24, rest 12, of 2, 2 and 4 degrees of freedom.
    found = effect_of(BY_HAND)
    assert found.value == pytest.approx(5)
    assert found.residual == pytest.approx(12 / 4)
    assert found.between_seeds == pytest.approx((12 - 3) / 3)
    assert found.between_examples == pytest.approx((12 - 3) / 3)
    # (12 + 12 - 3) / 9; both parts have 2 degrees of freedom, and so has the interval.
    assert found.standard_error == pytest.approx((21 / 9) ** 0.5)
    assert found.degrees_of_freedom == pytest.approx(2)
    assert found.high == pytest.approx(5 + 4.302653 * (21 / 9) ** 0.5)
    assert found.p == pytest.approx(2 * stats.t.sf(5 / (21 / 9) ** 0.5, 2))


def test_the_interval_adds_the_parts_in_squares() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(size=(3, 40)) + 2 * rng.normal(size=40) + rng.normal(size=(3, 1))
    seeds = 40 * d.mean(1).var(ddof=1)
    examples = 3 * d.mean(0).var(ddof=1)
    rest = ((d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()) ** 2).sum() / 78
    df = (examples - rest) ** 2 / (examples**2 / 39 + rest**2 / 78)
    assert df > 20
    squares = stats.t.ppf(0.975, 2) ** 2 * seeds + stats.t.ppf(0.975, df) ** 2 * (examples - rest)
    assert effect_of(d).high == pytest.approx(d.mean() + (squares / 120) ** 0.5)


def test_where_examples_agree_it_is_a_paired_t_test_over_seeds() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 5))
    baseline, variant = (np.repeat(each[:, None], 7, axis=1) for each in (first, second))
    found = paired_effect(baseline, variant, rng.lognormal(size=7), level=0.9)
    expected = stats.ttest_rel(second, first)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert found.degrees_of_freedom == pytest.approx(4)


def test_where_seeds_agree_it_is_a_paired_t_test_over_examples() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 12))
    found = paired_effect(np.tile(first, (3, 1)), np.tile(second, (3, 1)), np.ones(12))
    expected = stats.ttest_rel(second, first)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.degrees_of_freedom == pytest.approx(11)


def test_a_loss_is_the_difference_of_ratios_of_sums() -> None:
    rng = np.random.default_rng(4)
    tokens = rng.integers(5, 90, size=20).astype(float)
    totals = rng.gamma(2.0, size=(2, 3, 20)) * tokens
    baseline, variant = totals / tokens
    by_sums = totals.sum(-1) / tokens.sum()
    found = paired_effect(baseline, variant, tokens)
    assert found.value == pytest.approx((by_sums[1] - by_sums[0]).mean())


def test_weights_widen_as_the_error_of_a_ratio_has_it() -> None:
    _, values, tokens = study(5, seeds=1)
    expected = ratio_metric("", (values[0] * tokens).tolist(), tokens.tolist())
    found = level_of(np.tile(values, (3, 1)), tokens)
    assert found.value == pytest.approx(expected.value)
    assert found.standard_error == pytest.approx(expected.standard_error)
    assert found.p is None


@pytest.mark.parametrize("seed", range(5))
def test_swapping_baseline_and_variant_negates(seed: int) -> None:
    baseline, variant, weights = study(seed)
    one = paired_effect(baseline, variant, weights)
    other = paired_effect(variant, baseline, weights)
    assert one.low is not None
    assert one.high is not None
    assert other == replace(one, value=-one.value, low=-one.high, high=-one.low)


def test_the_order_of_seeds_and_examples_changes_nothing() -> None:
    baseline, variant, weights = study(6)
    rng = np.random.default_rng(6)
    seeds, examples = rng.permutation(4), rng.permutation(30)
    one = paired_effect(baseline, variant, weights)
    other = paired_effect(
        baseline[seeds][:, examples], variant[seeds][:, examples], weights[examples]
    )
    assert other.value == pytest.approx(one.value)
    assert other.p == pytest.approx(one.p)


@pytest.mark.parametrize(("seeds", "examples"), [(1, 30), (4, 2), (4, 1), (1, 1)])
def test_too_few_seeds_or_examples_have_an_effect_alone(seeds: int, examples: int) -> None:
    baseline, variant, weights = study(7, seeds, examples)
    found = paired_effect(baseline, variant, weights)
    expected = np.average((variant - baseline).mean(0), weights=weights)
    assert found == Effect(pytest.approx(expected), seeds, examples)
    assert detectable(found) is None
    assert seeds_needed(found, 1.0) is None


def test_equal_runs_differ_by_nothing_for_sure() -> None:
    baseline, _, weights = study(8)
    found = paired_effect(baseline, baseline.copy(), weights)
    assert (found.value, found.standard_error, found.low, found.high, found.p) == (0, 0, 0, 0, 1)
    assert detectable(found) == 0
    assert seeds_needed(found, 0.1) == 2


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (2, 1), (0, 8), (5, 6), (30, 0)])
def test_answers_that_change_are_judged_as_bonett_and_price_do(better: int, worse: int) -> None:
    """2012, J. Educational and Behavioral Statistics 37: one more answer changed either way."""
    examples = 30
    baseline, variant = np.zeros((3, examples)), np.zeros((3, examples))
    variant[:, :better] = 1
    baseline[:, examples - worse :] = 1
    found = paired_effect(baseline, variant, np.ones(examples), limits=(0, 1))
    more, less = (better + 1) / (examples + 2), (worse + 1) / (examples + 2)
    # Theirs is of a normal distribution, ours of Student's t, with the unbiased variance.
    variance = (more + less - (more - less) ** 2) / (examples + 1)
    half = stats.t.ppf(0.975, examples + 1) * variance**0.5
    assert found.value == pytest.approx((better - worse) / examples)
    assert found.examples == examples
    assert found.middle == pytest.approx(more - less)
    assert (found.low, found.high) == pytest.approx((more - less - half, more - less + half))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(more - less) / variance**0.5, examples + 1))
    back = paired_effect(variant, baseline, np.ones(examples), limits=(0, 1))
    assert found.low is not None
    assert found.high is not None
    assert (back.value, back.low, back.high, back.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )


def test_answers_that_are_all_alike_are_no_certainty() -> None:
    """Rule of three: of n examples none differs with probability 2.5 % where 3.7 / n of all do."""
    wrong, right, ones = np.zeros((3, 8)), np.ones((3, 8)), np.ones(8)
    alike = paired_effect(wrong, wrong.copy(), ones, limits=(0, 1))
    assert (alike.value, alike.p) == (0, 1)
    assert alike.high is not None
    assert 0.3 < alike.high < 1 - 0.025 ** (1 / 8)
    assert alike.low == -alike.high
    for smallest in (detectable(alike), detectable(alike, seeds=100)):
        assert smallest is not None
        assert smallest > alike.high
    both = interaction(wrong, wrong, wrong, wrong, ones, limits=(0, 1))
    assert both.high == pytest.approx(2 * alike.high)
    level = level_of(right, ones, limits=(0, 1))
    assert (level.value, level.high, level.p) == (1, 1, None)
    assert level.low is not None
    assert 0.5 < level.low < 0.8
    # Two examples that weigh as much as all the others leave more open.
    weights = np.array([3.0, 3, 1, 1, 1, 1, 1, 1])
    heavy = paired_effect(wrong, right, weights, limits=(0, 1))
    even = paired_effect(wrong, right, ones, limits=(0, 1))
    assert heavy.low is not None
    assert even.low is not None
    assert heavy.low < even.low


def test_two_more_examples_are_lost_among_losses() -> None:
    baseline, variant, weights = study(11, 3, 200)
    plain = paired_effect(baseline, variant, weights)
    more = paired_effect(baseline, variant, weights, limits=(0, 10))
    assert more.value == pytest.approx(plain.value)
    for own, other in ((more.low, plain.low), (more.high, plain.high)):
        assert own is not None
        assert other is not None
        assert own - other == pytest.approx(0, abs=0.1 * (plain.standard_error or 0))


def test_shared_luck_keeps_what_two_more_examples_leave_open() -> None:
    rng = np.random.default_rng(3)
    wrong = np.zeros((3, 20))
    few = [
        paired_effect(wrong, (rng.random((3, 20)) < 0.1).astype(float), np.ones(20), limits=(0, 1))
        for _ in range(6)
    ]
    for alone, shared in zip(few, with_shared_luck(few), strict=True):
        assert (shared.value, shared.examples, shared.added) == (alone.value, 20, 2)
        assert shared.low is not None
        assert shared.high is not None
        assert (shared.low + shared.high) / 2 == pytest.approx(alone.value * 20 / 22)


def test_intervals_hold_the_truth_where_hardly_any_answer_is_right() -> None:
    rng = np.random.default_rng(0)
    for seeds, examples, rate in ((3, 8, 0.03), (3, 32, 0.01), (3, 100, 0.005)):
        held = 0
        for _ in range(400):
            right = (rng.random((seeds, examples)) < rate).astype(float)
            found = paired_effect(np.zeros_like(right), right, np.ones(examples), limits=(0, 1))
            assert found.low is not None
            assert found.high is not None
            held += found.low <= rate <= found.high
        assert held >= 0.93 * 400


def test_a_difference_that_never_varies_is_sure() -> None:
    found = effect_of(np.full((3, 9), 0.1), np.arange(1.0, 10))
    assert found.low == found.high == pytest.approx(0.1)
    assert found.p == 0


def test_a_tie_of_seeds_is_no_certainty() -> None:
    # Each seed gains one answer of 50, another one each: their sums agree by chance.
    differences = np.zeros((3, 50))
    differences[[0, 1, 2], [4, 17, 33]] = 1
    found = effect_of(differences)
    assert found.p is not None
    assert found.p > 0.1


def test_a_tiny_p_is_a_number() -> None:
    rng = np.random.default_rng(9)
    found = effect_of(1e6 + 1e-3 * rng.normal(size=(10, 300)))
    assert found.p is not None
    assert 0 < found.p < 1e-60


def test_the_interval_of_level_one_minus_p_ends_at_zero() -> None:
    baseline, variant, weights = study(10)
    p = paired_effect(baseline, variant, weights).p
    assert p is not None
    found = paired_effect(baseline, variant, weights, level=1 - p)
    assert min(abs(found.low or 0), abs(found.high or 0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("baseline", "variant", "weights", "said"),
    [
        (np.ones((3, 4)), np.ones((3, 5)), np.ones(4), r"variant has shape \(3, 5\)"),
        (np.ones((3, 4)), np.ones((2, 4)), np.ones(4), r"variant has shape \(2, 4\)"),
        (np.ones((3, 4)), np.ones((3, 4)), np.ones(3), r"weights has shape \(3,\)"),
        (np.ones(4), np.ones(4), np.ones(4), r"expected \[seeds, examples\]"),
        (np.ones((3, 0)), np.ones((3, 0)), np.ones(0), "neither 0"),
        (np.full((3, 4), np.nan), np.ones((3, 4)), np.ones(4), "baseline holds a value"),
        (np.ones((3, 4)), np.full((3, 4), np.inf), np.ones(4), "variant holds a value"),
        (np.ones((3, 4)), np.ones((3, 4)), np.array([1.0, 1, 0, 1]), "weights hold 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    baseline: Array, variant: Array, weights: Array, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        paired_effect(baseline, variant, weights)


def test_changes_that_add_up_do_not_interact() -> None:
    baseline, first, weights = study(11)
    second = baseline + np.random.default_rng(11).normal(size=baseline.shape)
    found = interaction(baseline, first, second, first + second - baseline, weights)
    assert found.value == pytest.approx(0, abs=1e-12)
    more = interaction(baseline, first, second, first + second - baseline + 0.5, weights)
    assert more.value == pytest.approx(0.5)


FACTORS = ("a", "b", "c")
FULL = [dict(zip(FACTORS, run, strict=True)) for run in itertools.product((False, True), repeat=3)]
#: c is on where a and b agree.
HALF = [run for run in FULL if run["c"] == (run["a"] == run["b"])]


def planted(levels: list[dict[str, bool]], seeds: int = 3, examples: int = 8) -> Array:
    """a adds 1, b adds -2, a and b together another 0.5; seeds and examples add their own."""
    rng = np.random.default_rng(12)
    luck = rng.normal(size=(seeds, examples))
    return np.array(
        [run["a"] * 1.0 + run["b"] * -2.0 + (run["a"] and run["b"]) * 0.5 + luck for run in levels]
    )


def test_a_full_factorial_gives_back_what_was_planted() -> None:
    found = factorial_effects(FULL, planted(FULL), np.ones(8))
    assert list(found) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]
    assert aliases(FULL) == []
    # A main effect is over both levels of the others: half of the interaction belongs to it.
    expected = [1.25, -1.75, 0, 0.5, 0, 0]
    assert [each.value for each in found.values()] == pytest.approx(expected, abs=1e-12)


def test_a_factorial_interaction_is_that_of_four_cells() -> None:
    four = FULL[::2]
    assert {run["c"] for run in four} == {False}
    levels = [{"a": run["a"], "b": run["b"]} for run in four]
    values = np.random.default_rng(13).normal(size=(4, 3, 8))
    found = factorial_effects(levels, values, np.ones(8))[("a", "b")]
    baseline, second, first, both = values
    expected = interaction(baseline, first, second, both, np.ones(8))
    assert found.value == pytest.approx(expected.value)
    assert found.standard_error == pytest.approx(expected.standard_error)


def test_a_fraction_says_what_it_cannot_tell_apart() -> None:
    assert aliases(HALF) == [(("c",), ("a", "b")), (("b",), ("a", "c")), (("a",), ("b", "c"))]
    found = factorial_effects(HALF, planted(HALF), np.ones(8))
    assert list(found) == [("a",), ("b",), ("c",)]
    # c did nothing: what is seen is half the interaction of a and b.
    assert found[("c",)].value == pytest.approx(0.25)


def test_a_design_with_a_run_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="do not tell the mean and a apart"):
        factorial_effects(FULL[1:], planted(FULL[1:]), np.ones(8))


def test_a_design_must_vary_and_name_the_same_factors() -> None:
    with pytest.raises(ValueError, match="factor 'c' is the same in all runs"):
        factorial_effects(FULL[::2], planted(FULL[::2]), np.ones(8))
    with pytest.raises(ValueError, match="same factors"):
        aliases([{"a": True}, {"b": False}])
    with pytest.raises(ValueError, match="8 runs, values are of 4"):
        factorial_effects(FULL, planted(HALF), np.ones(8))


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),  # its own 0.04, but not below that of 0.03, the smaller p
        pytest.approx(0.06),
        pytest.approx(0.02),
    ]
    assert holm([0.7, 0.8]) == [1, 1]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_the_smallest_detectable_effect_has_the_power_of_a_t_test() -> None:
    rng = np.random.default_rng(14)
    by_seed = rng.normal(size=6)
    found = effect_of(np.repeat(by_seed[:, None], 5, axis=1))
    for seeds in (None, 3, 12):
        n = seeds or 6
        smallest = detectable(found, seeds=seeds, power=0.9, alpha=0.01)
        assert smallest is not None
        shift = smallest / by_seed.std(ddof=1) * n**0.5
        assert stats.nct.sf(stats.t.isf(0.005, n - 1), n - 1, shift) == pytest.approx(0.9, abs=1e-4)


def test_the_smallest_detectable_effect_is_found_as_often_as_it_says() -> None:
    # What the true variances promise; the draws have them: 1 in all, a third each.
    seeds, examples = 5, 100
    truth = Effect(
        0.0,
        seeds,
        examples,
        between_seeds=seeds / 3,
        between_examples=examples / 3,
        residual=seeds * examples / 3,
    )
    smallest = detectable(truth)
    assert smallest is not None

    def draw(
        rng: np.random.Generator, count: int, seeds: int, examples: int
    ) -> tuple[Array, Array]:
        values = smallest + draw_crossed(rng, count, seeds, examples, (1 / 3, 1 / 3, 1 / 3))
        return values, np.ones((count, examples))

    power = false_alarms(Setting("", draw), np.random.default_rng(15), 2000, seeds, examples)
    assert power == pytest.approx(80, abs=5)


def test_the_fewest_seeds_are_the_fewest() -> None:
    baseline, variant, weights = study(16, seeds=4, examples=400)
    found = paired_effect(baseline, variant, weights)
    sizes = {seeds: detectable(found, seeds=seeds) or 0 for seeds in range(2, 200)}
    for difference in (0.4, 0.5, 0.7, 0.8, 1.5, 2.0, 100.0):
        enough = [seeds for seeds, smallest in sizes.items() if smallest <= difference]
        assert seeds_needed(found, difference) == enough[0]
        assert seeds_needed(found, -difference) == enough[0]
    assert seeds_needed(found, 0.4, limit=5) is None


def test_no_number_of_seeds_makes_up_for_few_examples() -> None:
    rng = np.random.default_rng(17)
    found = effect_of(np.tile(rng.normal(size=20), (3, 1)) + 0.01 * rng.normal(size=(3, 20)))
    floor = detectable(found, seeds=10**6)
    assert floor is not None
    assert seeds_needed(found, 0.9 * floor) is None


def effect(value: float, low: float, high: float, p: float) -> Effect:
    return Effect(
        value,
        3,
        50,
        standard_error=0.1,
        low=low,
        high=high,
        p=p,
        degrees_of_freedom=2.0,
        between_seeds=0.03,
        between_examples=0.0,
        residual=0.0,
    )


@pytest.mark.parametrize(
    ("found", "corrected", "lower_is_better", "expected"),
    [
        (effect(0.5, 0.3, 0.7, 0.001), 0.01, True, Verdict.supported),
        (effect(0.5, 0.3, 0.7, 0.001), 0.01, False, Verdict.contradicted),
        (effect(-0.5, -0.7, -0.3, 0.001), 0.01, True, Verdict.contradicted),
        (effect(-0.5, -0.7, -0.3, 0.001), 0.01, False, Verdict.supported),
        (effect(0.5, 0.3, 0.7, 0.001), 0.06, True, Verdict.undecided),
        (effect(0.01, -0.05, 0.07, 0.5), 1.0, True, Verdict.not_supported),
        (effect(0.01, -0.15, 0.17, 0.5), 1.0, True, Verdict.undecided),
        (effect(0.01, -0.05, 0.07, 0.5), None, True, Verdict.not_supported),
        (Effect(0.5, 1, 50), None, True, Verdict.undecided),
    ],
)
def test_a_verdict_is_about_the_tip_that_the_variant_drops(
    found: Effect, corrected: float | None, lower_is_better: bool, expected: Verdict
) -> None:
    said = verdict(found, corrected, lower_is_better=lower_is_better, relevant=0.1)
    assert said == expected


@pytest.mark.parametrize(
    ("found", "corrected", "expected"),
    [
        (
            effect(0.5, 0.3, 0.7, 0.001),
            0.01,
            "supported",
        ),
        (
            effect(-0.05, -0.06, -0.04, 0.001),
            0.01,
            "contradicted",
        ),
        (
            effect(0.01, -0.05, 0.07, 0.5),
            1.0,
            "not supported",
        ),
        (
            effect(0.0, 0.0, 0.0, 1.0),
            1.0,
            "not supported",
        ),
        (
            Effect(0.5, 1, 50),
            None,
            "undecided",
        ),
        (
            Effect(-0.5, 3, 2),
            None,
            "undecided",
        ),
    ],
)
def test_a_verdict(found: Effect, corrected: float | None, expected: str) -> None:
    assert verdict(found, corrected, lower_is_better=True, relevant=0.1) == expected


def a_study(lucks: Sequence[float], seeds: int = 4, examples: int = 30) -> list[Effect]:
    """Comparisons whose seeds differ by these deviations, and whose single values by 1."""
    rng = np.random.default_rng(30)
    return [
        effect_of(
            0.5
            + luck * rng.normal(size=(seeds, 1))
            + 0.3 * rng.normal(size=examples)
            + rng.normal(size=(seeds, examples))
        )
        for luck in lucks
    ]


def moderated(effects: list[Effect]) -> tuple[list[float], list[float]]:
    """Variances between seeds, and the degrees of freedom lent to each, by another way."""
    df = effects[0].seeds - 1
    own = np.array([luck_of(each) for each in effects])
    residual = np.array([float(each.residual or 0) for each in effects])
    # Of a chi-squared variable over its degrees of freedom, from draws of SciPy's distribution.
    chance = stats.gamma(df / 2, scale=2 / df).expect(np.log, epsabs=1e-10)
    log = np.log(own / residual) - chance
    scatter = log.var(ddof=1) - special.zeta(2, df / 2)  # the trigamma function
    prior = 4.0
    if scatter > special.zeta(2, 2.0):
        prior = 2 * optimize.brentq(lambda half: special.zeta(2, half) - scatter, 1e-3, 2.0)
    most = min(prior, (len(effects) - 1) * df / 2)
    expected = np.maximum(np.exp(log.mean()), 1 / effects[0].examples) * residual
    lent = np.where(own <= 2 * expected, most, 0.0)
    return ((df * own + lent * expected) / (df + lent)).tolist(), lent.tolist()


def luck_of(each: Effect) -> float:
    """The variance of the seeds' values."""
    return float((each.between_seeds or 0) + (each.residual or 0) / each.examples)


@pytest.mark.parametrize(
    ("lucks", "least", "most"),
    [
        pytest.param([0.3] * 8, 4, 4, id="alike"),
        pytest.param([0.3, 0.3], 1.5, 1.5, id="two: half of what the other has"),
        pytest.param([0.3] * 7 + [5], 0.5, 4, id="one far above the others"),
        pytest.param([0.0] * 8, 4, 4, id="the rest alone"),
        pytest.param([0.01, 0.1, 1, 10, 100, 1000], 0.05, 0.9, id="nothing in common"),
    ],
)
def test_luck_is_shared_as_it_says(lucks: list[float], least: float, most: float) -> None:
    alone = a_study(lucks)
    variances, lent = moderated(alone)
    assert least <= max(lent) <= most + 1e-9
    if lucks[-1] > 1:
        assert lent[-1] == 0
    found = with_shared_luck(alone)
    for before, after, variance, own_lent in zip(alone, found, variances, lent, strict=True):
        assert luck_of(after) == pytest.approx(variance)
        assert (after.value, after.seeds, after.examples) == (before.value, 4, 30)
        assert (after.between_examples, after.residual) == (
            *(before.between_examples, before.residual),
        )
        # The two parts of the interval, each with its own t; that of the examples is as it was.
        assert before.low is not None
        assert after.low is not None
        own_t, borrowed_t = (stats.t.isf(0.025, df) for df in (3, 3 + own_lent))
        of_examples = (before.value - before.low) ** 2 - own_t**2 * luck_of(before) / 4
        expected = (borrowed_t**2 * variance / 4 + of_examples) ** 0.5
        assert after.value - after.low == pytest.approx(expected)


def test_a_mean_of_few_examples_varies_at_least_by_their_rest() -> None:
    """One that shares ten examples with the baseline is not judged by those of three hundred."""
    many = a_study([0.0] * 8, examples=300)
    few = replace(many[0], examples=10, between_seeds=-0.09)
    assert luck_of(few) == pytest.approx((few.residual or 0) / 10 - 0.09)
    found = with_shared_luck([few, *many])[0]
    assert found.lenders == 8
    lent = min(4.0, found.prior_df)
    expected = (few.residual or 0) / 10
    assert luck_of(found) == pytest.approx((3 * luck_of(few) + lent * expected) / (3 + lent))


def test_who_is_alone_borrows_nothing() -> None:
    (alone,) = a_study([0.3])
    same = effect_of(np.zeros((4, 30)))
    few = effect_of(np.ones((1, 30)))
    assert with_shared_luck([alone]) == [alone]
    assert with_shared_luck([few, alone]) == [few, alone]
    # One in which nothing varies says nothing of the others' luck, and stays sure.
    found = with_shared_luck([same, few, alone])
    assert (found[1], found[2].lenders) == (few, 0)
    assert (found[0].low, found[0].high, found[0].p) == (0, 0, 1)
    assert found[2].p == pytest.approx(alone.p)


def test_luck_is_shared_whatever_the_order_and_the_sign() -> None:
    alone = a_study([0.2, 0.5, 0.3, 1.0, 0.1])
    found = with_shared_luck(alone)
    assert 4 in {each.lenders for each in found}
    for one, other in zip(found, reversed(with_shared_luck(alone[::-1])), strict=True):
        assert one.p == pytest.approx(other.p, rel=1e-12)
    negated = replace(alone[2], value=-alone[2].value)
    other = with_shared_luck([*alone[:2], negated, *alone[3:]])[2]
    assert found[2].low is not None
    assert (other.high, other.p) == (-found[2].low, found[2].p)


def test_comparisons_of_fewer_seeds_borrow_no_more_than_they_may() -> None:
    alone = [*a_study([0.3] * 5, seeds=5), *a_study([0.3], seeds=2)]
    found = with_shared_luck(alone)
    assert {each.seeds for each in found if each.prior_df == pytest.approx(4)} == {5, 2}
    (alike,) = with_shared_luck([replace(alone[-1], between_examples=0.0), *alone[:5]])[:1]
    assert alike.degrees_of_freedom == pytest.approx(1 + 5 * 1 / 2)


def test_what_a_study_can_detect_counts_what_it_borrows() -> None:
    found = with_shared_luck(a_study([2.0] * 6, seeds=3, examples=500))[0]
    assert found.prior_df == pytest.approx(4)
    for seeds, lent in ((2, 2.5), (3, 4.0), (12, 4.0)):
        smallest = detectable(found, seeds=seeds, power=0.9, alpha=0.01)
        assert smallest is not None
        shift = smallest / (luck_of(found) / seeds) ** 0.5
        df = seeds - 1 + lent
        # The examples' part is 0.09 / 500, next to nothing.
        assert stats.nct.sf(stats.t.isf(0.005, df), df, shift) == pytest.approx(0.9, abs=1e-2)


def test_five_seeds_find_one_and_a_half_standard_deviations() -> None:
    assert study_power(np.random.default_rng(31), 300, 15, 5) >= 80


@pytest.mark.parametrize("name", LUCK)
def test_studies_whose_seeds_move_variants_unequally_rarely_name_one(name: str) -> None:
    one, several = luck_alarms(LUCK[name], np.random.default_rng(32), 1000, 15, 3)
    # Three of fifteen that seeds move ten times as much are the worst of docs/statistics.md.
    assert several <= (7 if "three" in name else 5)
    # Of the variant that seeds move more than the others there are more than there should be.
    assert one <= (10 if "the one" in name or "three" in name else 6.5)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("setting", SETTINGS[: len(SHARES)], ids=lambda setting: setting.name)
def test_intervals_hold_the_truth(setting: Setting, seeds: int) -> None:
    # The standard error is 0.5 %. Over seeds or over examples alone it would be 46 to 94 %.
    found = coverage(setting, np.random.default_rng(18), 2000, seeds, 50)
    assert 94 <= found <= 98.5


@pytest.mark.parametrize("shares", [(1, 0, 0), (0.5, 0, 0.5), (0, 0, 1)])
def test_alike_variants_rarely_differ(shares: tuple[float, float, float]) -> None:
    setting = Setting("", plain(shares))
    found = false_alarms(setting, np.random.default_rng(19), 2000, 3, 100)
    assert 2.5 <= found <= 6.5


@pytest.mark.parametrize("shares", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_study_of_alike_variants_rarely_names_one(shares: tuple[float, float, float]) -> None:
    # One t with Satterthwaite's degrees of freedom names one in a quarter of the latter.
    assert family_alarms(shares, np.random.default_rng(20), 1000, 3, 100) <= 6
