"""What a variant does to a metric, how sure that is, and what a study of this size can find.

Every variant runs under the same seeds and answers the same held-out examples, so that a
difference is taken within each pair of seed and example. Both are draws from many, crossed:

    d[s, e] = effect + seed[s] + example[e] + rest[s, e]

A few seeds say little about how much seeds differ; the comparisons of one study say more together
(``with_shared_luck``). docs/statistics.md tells it in words; ``python -m benchmarks.intervals``
measures how it holds.

Shapes: S seeds, E examples, V comparisons of one study, R runs of a factorial design; leading axes
(…) are independent studies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, nctdtrinc, polygamma, stdtridf, stdtrit

Array = npt.NDArray[np.float64]
Term = tuple[str, ...]
#: The least and the most that a value can be.
Limits = tuple[float, float]

#: A p-value below counts as a difference.
ALPHA = 0.05

#: Fewer say nothing about how far examples differ, so that there is no interval.
MIN_SEEDS, MIN_EXAMPLES = 2, 3

#: The most degrees of freedom that a comparison borrows; and how many times as much as expected its
#: seeds may vary before it borrows none. More of either would find more effects, and be wrong more
#: often about a variant that seeds move more than the others.
MOST_LENT, _FAR = 4.0, 2.0

#: A variance between seeds of so small a share of the rest's is lost in rounding.
_LOST = 1e-10

#: Differences that agree to so many times the largest of them agree: the rest is rounding.
_ROUNDING = 1e-13

#: p-values, from 1e-130 on, are found by halving an interval of their logarithms so often.
_BISECTIONS, _LOG_SMALLEST = 52, -300.0

#: Steps, of which each doubles the digits; from the start that Smyth gives, five are enough.
_NEWTON = 8


@dataclass(frozen=True, slots=True)
class Effect:
    """A difference (or a level), in the metric's units, and how far to trust it.

    seeds, examples: how many of each. low, high: the interval, 95 % unless asked otherwise. p:
    two-sided, of no difference, uncorrected. degrees_of_freedom: those with which Student's t has
    the same interval. between_seeds, between_examples, residual: estimated variances of the three
    random parts of one difference; unbiased, so that one of nothing may come out below 0, unless
    other comparisons have a say in between_seeds. lenders, prior_df: how many of them do, and with
    how many degrees of freedom at most, see ``with_shared_luck``. added: further examples that all
    of these reckon with, but not ``value`` and ``examples``, see ``with_two_more``.

    All but the first three are None below MIN_SEEDS or MIN_EXAMPLES. Where nothing varies, the
    interval is the value alone, and p is 1 for a value of 0, else 0.
    """

    value: float
    seeds: int
    examples: int
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    degrees_of_freedom: float | None = None
    between_seeds: float | None = None
    between_examples: float | None = None
    residual: float | None = None
    lenders: int = 0
    prior_df: float = 0.0
    added: int = 0

    @property
    def middle(self) -> float:
        """Of the interval: the value, less by what examples that were added do to the mean."""
        return self.value * self.examples / self.reckoned

    @property
    def reckoned(self) -> int:
        """How many examples the interval reckons with."""
        return self.examples + self.added


@dataclass(frozen=True, slots=True)
class Crossed:
    """The analysis of crossed differences: one number each, or one for each of the leading axes.

    variance: of ``value``, over draws of seeds and of examples. seeds_share: of that, what shows in
    the seeds' values; the rest is what other examples would change. seeds_df, examples_df: the
    degrees of freedom of these two parts. lenders, prior_df: as in ``Effect``.
    """

    value: Array
    variance: Array
    seeds_share: Array
    seeds_df: Array
    examples_df: Array
    between_seeds: Array
    between_examples: Array
    residual: Array
    lenders: Array
    prior_df: Array


class Verdict(StrEnum):
    """What a study says about a tip, from the variant that drops it."""

    supported = "supported"
    not_supported = "not supported"
    contradicted = "contradicted"
    undecided = "undecided"


def paired_effect(
    baseline: Array,
    variant: Array,
    weights: Array,
    *,
    level: float = 0.95,
    limits: Limits | None = None,
) -> Effect:
    """The weighted mean of ``variant - baseline`` and its interval over seeds and examples.

    baseline_SE, variant_SE: values of single examples (an example's total over its weight).
    weights_E: above 0; tokens for a loss, 1 / (examples of its source) for a mean over sources.
    limits: what a single value can be, where it can be few things (a score): the interval and p are
    then those of ``with_two_more``. Swapping baseline and variant negates the effect exactly.
    ValueError for other shapes, values that are not finite, weights not above 0.
    """
    _check(weights, baseline=baseline, variant=variant)
    return _effect(variant - baseline, weights, level, _furthest(limits, 1))


def level_of(
    values: Array, weights: Array, *, level: float = 0.95, limits: Limits | None = None
) -> Effect:
    """One variant's own weighted mean of values_SE and its interval; p is None.

    Where every value is one of the limits (right or wrong), the interval reckons with one more
    example of each. Levels of two variants share seeds and examples: compare them by
    ``paired_effect``, never by whether their intervals overlap. ValueError as there.
    """
    _check(weights, values=values)
    found = _effect(values, weights, level)
    if limits is None or found.low is None or not np.isin(values, limits).all():
        return replace(found, p=None)
    both = _effect(*_extended(values, weights, np.asarray(limits)), level)
    assert both.low is not None
    assert both.high is not None
    least, most = limits
    return replace(
        both,
        value=found.value,
        examples=found.examples,
        low=max(least, both.low),
        high=min(most, both.high),
        p=None,
    )


def interaction(
    baseline: Array,
    first: Array,
    second: Array,
    both: Array,
    weights: Array,
    *,
    limits: Limits | None = None,
) -> Effect:
    """What two changes do together beyond the sum of what each does: all values_SE.

    ``both - first - second + baseline``; 0 where their effects add up. ValueError as in
    ``paired_effect``.
    """
    _check(weights, baseline=baseline, first=first, second=second, both=both)
    return _effect((both - first) - (second - baseline), weights, furthest=_furthest(limits, 2))


def crossed(differences: Array, weights: Array) -> Crossed:
    """Two-way analysis of variance of differences_…SE with weights_…E, S and E at least 2.

    The value is a ratio, sum of weight times difference over sum of weights, within each seed; it
    is linearised (Cochran 1977, Sampling Techniques, 6.3), so that the rows of

        t[s, e] = value[s] + E weight[e] / sum(weights) (d[s, e] - value[s])

    have the seeds' values as plain means. With the mean squares of t for seeds, examples and rest,

        variance = (MS_seeds + max(0, MS_examples - MS_rest)) / (S E),

    the error of the quasi-F (Clark 1973, J. Verbal Learning and Verbal Behavior 12) with the
    examples' part held at 0: the first part is a paired t-test's on the seeds' values, which the
    second widens by what other examples would change.
    """
    *_, seeds, examples = differences.shape
    shares = weights / weights.sum(-1, keepdims=True)
    by_seed = np.einsum("...se,...e->...s", differences, shares)
    rest = (differences - by_seed[..., None]) * (examples * shares[..., None, :])
    by_example = rest.mean(-2)
    rest -= by_example[..., None, :]
    value = by_seed.mean(-1)

    tiny = examples * (_ROUNDING * np.abs(differences).max((-2, -1))) ** 2
    ms_rest = _settled((rest**2).sum((-2, -1)) / ((seeds - 1) * (examples - 1)), tiny)
    ms_examples = _settled(seeds * (by_example**2).sum(-1) / (examples - 1), tiny)
    ms_seeds = _settled(examples * ((by_seed - value[..., None]) ** 2).sum(-1) / (seeds - 1), tiny)
    # Right and wrong answers in few seeds can tie in their sums: that is no sign of certainty, and
    # MS_rest is what MS_seeds is expected to be where seeds do not matter.
    ms_seeds = np.where(ms_seeds > 0, ms_seeds, ms_rest)

    of_examples = np.maximum(0, ms_examples - ms_rest)
    total = ms_seeds + of_examples
    return Crossed(
        value=value,
        variance=total / (seeds * examples),
        seeds_share=_share(ms_seeds, total),
        seeds_df=np.asarray(seeds - 1.0),
        examples_df=_examples_df(ms_examples, ms_rest, seeds, examples),
        between_seeds=(ms_seeds - ms_rest) / examples,
        between_examples=(ms_examples - ms_rest) / seeds,
        residual=ms_rest,
        lenders=np.zeros_like(value),
        prior_df=np.zeros_like(value),
    )


def with_shared_luck(effects: Sequence[Effect]) -> list[Effect]:
    """The comparisons of one study on one metric, with the luck of seeds told from all of them.

    Three seeds of one variant say little about how much seeds differ, ten variants of three seeds
    much, as far as seeds move them alike: see ``share_luck``. Intervals are of 95 %. Effects that
    have none, or in which nothing varies, stay as they are, and all do where there is nobody to
    lend. To be called once, with effects as ``paired_effect`` and its like have them.
    """
    known = [each for each in effects if _has_luck(each)]
    if len(known) < 2:
        return list(effects)

    def column(name: str) -> Array:
        return np.array([getattr(each, name) for each in known], dtype=np.float64)

    seeds, examples, residual = column("seeds"), column("reckoned"), column("residual")
    between_seeds, between_examples = column("between_seeds"), column("between_examples")
    of_seeds = (between_seeds + residual / examples) / seeds
    variance = of_seeds + np.maximum(0, between_examples) / examples
    shared = share_luck(
        Crossed(
            value=column("middle"),
            variance=variance,
            seeds_share=_share(of_seeds, variance),
            seeds_df=seeds - 1,
            examples_df=_examples_df(
                residual + seeds * between_examples, residual, seeds, examples
            ),
            between_seeds=between_seeds,
            between_examples=between_examples,
            residual=residual,
            lenders=np.zeros_like(seeds),
            prior_df=np.zeros_like(seeds),
        ),
        seeds,
        examples,
    )
    moderated = iter(_effects(shared, seeds, examples, 0.95))
    return [
        replace(next(moderated), value=each.value, examples=each.examples, added=each.added)
        if _has_luck(each)
        else each
        for each in effects
    ]


def _has_luck(effect: Effect) -> bool:
    """Whether its seeds and its rest vary: then it can lend and borrow."""
    if effect.between_seeds is None or not effect.residual:
        return False
    return effect.between_seeds + effect.residual / effect.reckoned > _LOST * effect.residual


def share_luck(found: Crossed, seeds: Any, examples: Any) -> Crossed:
    """``found``, whose last axis is the V comparisons of one study, with moderated variances.

    Smyth (2004, Statistical Applications in Genetics and Molecular Biology 3, 3.2 and 6.2): the
    variance that a comparison has between its seeds is averaged with what the study would expect of
    it, which counts like ``prior_df`` further degrees of freedom, estimated from how much variances
    scatter around that beyond chance: none where it says nothing about them. What differs here:

    - Expected is a multiple of the residual, the geometric mean over the study, as a change that
      moves runs apart does so in their examples as in their values; at least the residual's own
      part in the mean of the examples. Smyth's is the same for all, and smaller by a factor that
      depends on prior_df.
    - prior_df is at most ``MOST_LENT``, and at most half of what V - 1 others of as many seeds
      have, as they share the baseline's luck with this one.
    - A comparison that varies more than ``_FAR`` times as much as expected borrows nothing.

    One whose seeds or residual do not vary neither lends nor borrows.
    """
    own = found.variance * found.seeds_share * seeds
    df = found.seeds_df
    varies = (own > 0) & (found.residual > 0)
    residual = np.where(varies, found.residual, 1.0)
    lenders = np.maximum(varies.sum(-1, keepdims=True) - 1, 0)

    def mean(values: Any, spare: int = 0) -> Any:
        total = np.where(varies, values, 0.0).sum(-1, keepdims=True)
        return total / np.maximum(1, lenders + 1 - spare)

    # The logarithm of an estimated variance, less what chance makes it smaller on average.
    log = np.log(np.where(varies, own, 1.0) / residual) - digamma(df / 2) + np.log(df / 2)
    common = mean(log)
    scatter = mean((log - common) ** 2, spare=1) - mean(polygamma(1, df / 2))
    expected = np.maximum(np.exp(common), 1 / np.asarray(examples)) * residual
    borrows = varies & (own <= _FAR * expected) & (lenders > 0)
    prior_df = np.where(borrows, np.minimum(MOST_LENT, _degrees_of_freedom(scatter)), 0.0)
    lent = _lent(lenders, prior_df, df)
    of_seeds = (df * own + lent * expected) / (df + lent)
    of_examples = found.variance * (1 - found.seeds_share)
    variance = of_seeds / seeds + of_examples
    return replace(
        found,
        variance=variance,
        seeds_share=_share(of_seeds / seeds, variance),
        seeds_df=df + lent,
        between_seeds=of_seeds - found.residual / examples,
        lenders=np.where(borrows, lenders, 0),
        prior_df=prior_df,
    )


def half_width(found: Crossed, level: float | Array = 0.95) -> Array:
    """How far the interval of ``found`` reaches from its value, to either side."""
    return np.asarray(_quantile(found, (1 - level) / 2) * np.sqrt(found.variance))


def p_value(found: Crossed) -> Array:
    """The two-sided p of no difference: the interval of level 1 - p ends at 0.

    Without variance 1 for a value of 0, else 0.
    """
    error = np.sqrt(found.variance)
    sure = np.where(found.value == 0, 0.0, np.inf)
    t = np.divide(np.abs(found.value), error, out=sure, where=error > 0)
    low, high = np.full_like(t, _LOG_SMALLEST), np.full_like(t, np.log(0.5))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = t > _quantile(found, np.exp(middle))
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    p = np.where(np.isinf(t), 0.0, 2 * np.exp(high))
    return np.asarray(np.where(t == 0, 1.0, p))


def _quantile(found: Crossed, tail: Any) -> Any:
    return _critical(found.seeds_share, found.seeds_df, found.examples_df, tail)


def _critical(seeds_share: Any, seeds_df: Any, examples_df: Any, tail: Any) -> Any:
    """How many standard errors leave ``tail`` above.

    What Student's t allows each part, added in squares (Howe 1974, J. American Statistical
    Association 69; Zou and Donner 2008, Statistics in Medicine 27). One t, with the degrees of
    freedom of Satterthwaite 1946, is too short at 3 seeds, and far too short for the small p-values
    of a correction over many comparisons: a few seeds agree by chance, and then look like many.
    """
    of_seeds, of_examples = -stdtrit(seeds_df, tail), -stdtrit(examples_df, tail)
    return np.sqrt(seeds_share * of_seeds**2 + (1 - seeds_share) * of_examples**2)


def _lent(lenders: Any, prior_df: Any, seeds_df: Any) -> Any:
    """The degrees of freedom that a comparison with seeds_df of its own borrows."""
    return np.minimum(prior_df, lenders * seeds_df / 2)


def _degrees_of_freedom(scatter: Array) -> Array:
    """Of variances whose logarithms have this variance; ``MOST_LENT`` for all that is more.

    The inverse of ``polygamma(1, df / 2)`` by Newton's method, as Smyth has it.
    """
    scatter = np.maximum(scatter, polygamma(1, MOST_LENT / 2))
    half = 0.5 + 1 / scatter
    for _ in range(_NEWTON):
        there = polygamma(1, half)
        half = half + there * (1 - there / scatter) / polygamma(2, half)
    return 2 * half


def _share(part: Array, total: Array) -> Array:
    return np.divide(part, total, out=np.ones_like(total), where=total > 0)


def _examples_df(ms_examples: Any, ms_rest: Any, seeds: Any, examples: Any) -> Any:
    """Satterthwaite's, of a difference of mean squares; not below the seeds', which bound it."""
    squared = ms_examples**2 / (examples - 1) + ms_rest**2 / ((seeds - 1) * (examples - 1))
    difference = np.maximum(0, ms_examples - ms_rest) ** 2
    df = np.divide(difference, squared, out=np.zeros_like(squared), where=squared > 0)
    return np.maximum(df, np.minimum(seeds, examples) - 1)


def aliases(levels: Sequence[Mapping[str, bool]]) -> list[tuple[Term, Term]]:
    """Pairs of terms that runs of a two-level design cannot tell apart: (shown, hidden).

    levels_R: each run's factors, on or off. Terms are factors ("a",) and pairs ("a", "b"); () is
    the mean. The effect of a shown term is that of itself plus or minus its hidden ones, of three
    factors and more too, which are not listed. ValueError when runs differ in their factors.
    """
    shown: list[tuple[Term, Array]] = []
    found = []
    for term, column in _columns(levels):
        same = [other for other, seen in shown if abs(seen @ column) == len(levels)]
        if same:
            found.append((same[0], term))
        else:
            shown.append((term, column))
    return found


def factorial_effects(
    levels: Sequence[Mapping[str, bool]],
    values: Array,
    weights: Array,
    *,
    limits: Limits | None = None,
) -> dict[Term, Effect]:
    """Main effects and interactions of pairs from a two-level design, full or a regular fraction.

    levels_R: each run's factors, on or off. values_RSE. The main effect of a factor is the mean of
    the runs with it less that of those without; an interaction is that of ``interaction``, averaged
    over the other factors (twice the number that Box, Hunter and Hunter give). Terms hidden behind
    another, see ``aliases``, are left out. ValueError for a factor that never changes, a design
    that is not balanced (a run is missing), and as in ``paired_effect``.
    """
    if len(values) != len(levels):
        raise ValueError(f"the design has {len(levels)} runs, values are of {len(values)}")
    _check(weights, **{f"run {number}": each for number, each in enumerate(values)})
    pairs = aliases(levels)
    for shown, term in pairs:
        if shown == () and len(term) == 1:
            raise ValueError(f"factor {term[0]!r} is the same in all runs: leave it out")
    hidden = {term for _, term in pairs}
    columns = {term: column for term, column in _columns(levels) if term not in hidden}
    for (one, first), (other, second) in combinations(columns.items(), 2):
        if first @ second != 0:
            what = " and ".join(" × ".join(term) or "the mean" for term in (one, other))
            raise ValueError(
                f"the runs do not tell {what} apart cleanly: run the cells of the design that "
                "are missing, or compare variants one by one"
            )
    return {
        term: _effect(
            np.tensordot(column, values, axes=1) * (2 ** len(term) / len(levels)),
            weights,
            furthest=_furthest(limits, len(term)),
        )
        for term, column in columns.items()
        if term
    }


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for how many there are (Holm 1979, Scand. J. Statistics 6).

    None, a comparison without a test, stays None and does not count.
    """
    order = sorted((each, place) for place, each in enumerate(p) if each is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (each, place) in enumerate(order):
        largest = max(largest, min(1.0, each * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def detectable(
    effect: Effect, *, seeds: int | None = None, power: float = 0.8, alpha: float = ALPHA
) -> float | None:
    """The smallest true effect that is found with probability ``power``, p below ``alpha``.

    From the variances of ``effect``, at its own number of seeds or another, on the same examples;
    of Student's noncentral t. None where there are no variances or fewer than MIN_SEEDS. Give
    ``alpha`` divided by the number of comparisons to plan for Holm.
    """
    seeds = effect.seeds if seeds is None else seeds
    if effect.between_seeds is None or seeds < MIN_SEEDS:
        return None
    assert effect.between_examples is not None
    assert effect.residual is not None
    between_examples = max(0.0, effect.between_examples)
    of_seeds = max(0.0, effect.between_seeds + effect.residual / effect.reckoned) / seeds
    variance = of_seeds + between_examples / effect.reckoned
    if variance == 0:
        return 0.0
    examples_df = _examples_df(
        np.asarray(effect.residual + seeds * between_examples),
        np.asarray(effect.residual),
        seeds,
        effect.reckoned,
    )
    seeds_df = seeds - 1 + _lent(effect.lenders, effect.prior_df, seeds - 1)
    critical = _critical(of_seeds / variance, seeds_df, examples_df, alpha / 2)
    df = stdtridf(1 - alpha / 2, critical)
    found = float(nctdtrinc(df, 1 - power, critical) * variance**0.5)
    return found * effect.reckoned / effect.examples


def seeds_needed(
    effect: Effect,
    difference: float,
    *,
    power: float = 0.8,
    alpha: float = ALPHA,
    limit: int = 1000,
) -> int | None:
    """The fewest seeds with which a true effect of ``difference`` is found, see ``detectable``.

    None where ``limit`` seeds are not enough, as when the examples are too few for any number of
    seeds, and where ``effect`` has no variances.
    """

    def enough(seeds: int) -> bool:
        smallest = detectable(effect, seeds=seeds, power=power, alpha=alpha)
        return smallest is not None and smallest <= abs(difference)

    if not enough(limit):
        return None
    low, high = MIN_SEEDS, limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def verdict(
    effect: Effect, corrected_p: float | None, *, lower_is_better: bool, relevant: float
) -> Verdict:
    """What ``effect``, of the variant that drops a tip, says about the tip.

    supported, contradicted: worse, better without it, corrected p below ALPHA. not_supported: the
    interval lies within ± ``relevant`` (the metric's units). undecided: none of these.
    """
    if corrected_p is not None and corrected_p < ALPHA:
        worse = (effect.value > 0) == lower_is_better
        return Verdict.supported if worse else Verdict.contradicted
    if effect.low is None or effect.high is None:
        return Verdict.undecided
    within = -relevant <= effect.low and effect.high <= relevant
    return Verdict.not_supported if within else Verdict.undecided


def with_two_more(differences: Array, weights: Array, furthest: float = 1.0) -> tuple[Array, Array]:
    """differences_…SE and weights_…E with two more examples, which differ in either direction.

    Of a few dozen answers that are right or wrong, one or two may differ: that they did so once
    says little about how often they would, and Student's t far too much. Two more examples of
    average weight, which differ up and down as far as those that differ do (their root mean
    square), or by ``furthest`` where none does, leave as much open as there is (Bonett and Price
    2012, J. Educational and Behavioral Statistics 37, for answers; theirs differ by 1). Where all
    examples differ, as losses do, next to nothing changes.
    """
    differ = np.count_nonzero(differences, axis=(-2, -1))
    square = (differences**2).sum((-2, -1)) / np.maximum(1, differ)
    far = np.where(differ > 0, np.sqrt(square), furthest)
    return _extended(differences, weights, np.stack([far, -far], axis=-1))


def _extended(values: Array, weights: Array, further: Array) -> tuple[Array, Array]:
    """values_…SE, weights_…E with examples of average weight added: further_…F, in every seed."""
    count = further.shape[-1]
    alike = np.broadcast_to(further[..., None, :], (*values.shape[:-1], count))
    average = np.broadcast_to(weights.mean(-1, keepdims=True), (*weights.shape[:-1], count))
    return np.concatenate([values, alike], -1), np.concatenate([weights, average], -1)


def _effect(
    differences: Array, weights: Array, level: float = 0.95, furthest: float | None = None
) -> Effect:
    """furthest: how far a single difference can be from 0, where it can be few things."""
    seeds, examples = differences.shape
    shares = weights / weights.sum()
    value = float((differences @ shares).mean())
    if seeds < MIN_SEEDS or examples < MIN_EXAMPLES:
        return Effect(value, seeds, examples)
    if furthest is None:
        return _effects(crossed(differences[None], weights[None]), [seeds], [examples], level)[0]
    more = with_two_more(differences[None], weights[None], furthest)
    found = _effects(crossed(*more), [seeds], [examples], level)[0]
    return replace(found, value=value, added=more[1].shape[-1] - examples)


def _furthest(limits: Limits | None, times: int) -> float | None:
    """How far apart two values can be, or two such differences and so on."""
    return None if limits is None else times * (limits[1] - limits[0])


def _effects(
    found: Crossed, seeds: Iterable[float], examples: Iterable[float], level: float
) -> list[Effect]:
    """One for each of V comparisons."""
    tail = (1 - level) / 2
    half, p = half_width(found, level), p_value(found)
    df = stdtridf(1 - tail, _quantile(found, tail))
    return [
        Effect(
            value=float(found.value[v]),
            seeds=int(own_seeds),
            examples=int(own_examples),
            standard_error=float(found.variance[v] ** 0.5),
            low=float(found.value[v] - half[v]),
            high=float(found.value[v] + half[v]),
            p=float(p[v]),
            degrees_of_freedom=float(df[v]),
            between_seeds=float(found.between_seeds[v]),
            between_examples=float(found.between_examples[v]),
            residual=float(found.residual[v]),
            lenders=int(found.lenders[v]),
            prior_df=float(found.prior_df[v]),
        )
        for v, (own_seeds, own_examples) in enumerate(zip(seeds, examples, strict=True))
    ]


def _settled(mean_square: Any, tiny: Any) -> Any:
    return np.where(mean_square > tiny, mean_square, 0.0)


def _check(weights: Array, **values: Array) -> None:
    shape = next(iter(values.values())).shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"values have shape {shape}, expected [seeds, examples] and neither 0")
    for name, array in {**values, "weights": weights}.items():
        expected = shape[1:] if array is weights else shape
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, expected {expected}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds a value that is not finite: leave that example out")
    if weights.min() <= 0:
        raise ValueError(f"weights hold {weights.min():g}: leave out examples of no weight")


def _columns(levels: Sequence[Mapping[str, bool]]) -> Iterator[tuple[Term, Array]]:
    """The mean, each factor, each pair of factors: a column of 1 and -1, one for a run."""
    factors = list(levels[0]) if levels else []
    if not factors or any(set(run) != set(factors) for run in levels):
        raise ValueError("every run of the design names the same factors, at least one")
    yield (), np.ones(len(levels))
    signs = {
        factor: np.array([1.0 if run[factor] else -1.0 for run in levels]) for factor in factors
    }
    for factor in factors:
        yield (factor,), signs[factor]
    for one, other in combinations(factors, 2):
        yield (one, other), signs[one] * signs[other]
