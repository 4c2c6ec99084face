"""Cells to a study: every number and every warning that a report shows, and none of its form.

Pure: no file is read, nothing depends on the order of the cells.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dollyllama.config import differences
from dollyllama.evaluation.metric import LENGTHS
from dollyllama.evaluation.table import LOWER_IS_BETTER
from dollyllama.study.compare import (
    ALPHA,
    Effect,
    Limits,
    Verdict,
    aliases,
    detectable,
    factorial_effects,
    holm,
    interaction,
    level_of,
    paired_effect,
    verdict,
    with_shared_luck,
)
from dollyllama.study.records import (
    Cell,
    CellStatus,
    Plan,
    measured_losses,
    measured_scores,
)


class Standing(StrEnum):
    """Where a variant stands to the baseline; ``unknown`` without an interval."""

    worse = auto()
    better = auto()
    different = auto()
    no_difference = auto()
    unknown = auto()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against the baseline on one metric.

    effect: variant less baseline, None where nothing can be paired: ``missing`` then says why.
    baseline: the baseline's value on the paired examples. relevant: the size, in the metric's unit,
    below which an effect does not matter. corrected_p, verdict: of the study's primary comparisons
    alone; the others are exploratory. detectable: the smallest effect that these seeds and examples
    would find, for primary comparisons by the strictest of the corrected tests. unpaired: how many
    examples only one side has.
    """

    variant: str
    metric: str
    primary: bool
    effect: Effect | None
    missing: str | None = None
    baseline: float | None = None
    relevant: float = 0.0
    corrected_p: float | None = None
    verdict: Verdict | None = None
    detectable: float | None = None
    unpaired: int = 0

    @property
    def standing(self) -> Standing:
        p = self.corrected_p if self.primary else (self.effect.p if self.effect else None)
        if self.effect is None or p is None:
            return Standing.unknown
        if p >= ALPHA:
            return Standing.no_difference
        good = direction(self.metric) * self.effect.value
        return Standing.better if good > 0 else Standing.worse if good < 0 else Standing.different


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean, the least and the greatest of ``n`` values."""

    mean: float
    low: float
    high: float
    n: int


#: What a training took: a cost -> its key in the record.
_TRAINING = {
    "training_seconds": "seconds",
    "training_tokens": "tokens",
    "tokens_per_second": "tokens_per_second",
    "peak_memory_mib": "peak_memory_mib",
}
#: What a cell takes, by name.
COSTS = (*_TRAINING, "adapter_bytes", "evaluation_seconds")


def cost(cell: Cell, name: str) -> Any:
    """What the cell itself took: no training where it took over another's adapter."""
    return None if name in _TRAINING and cell.trained_by is not None else _recorded(cell, name)


def _recorded(cell: Cell, name: str) -> Any:
    """One of ``COSTS``, that of the training of the cell's adapter whichever cell trained it."""
    if name == "adapter_bytes":
        return cell.adapter_bytes
    if name == "evaluation_seconds":
        return (cell.result.get("seconds") or {}).get("evaluate_after")
    return (cell.result.get("train") or {}).get(_TRAINING[name])


@dataclass(frozen=True, slots=True)
class Variant:
    """All cells that differ in seed alone.

    decides: the metric that is primary for it. level: its own value there, on every example that
    its finished cells share, and share with the baseline. comparison: against the baseline on
    ``decides``, None for the baseline itself; exploratory: on every other metric. costs: of its
    finished cells, by the keys of ``COSTS``. differences: keys of its config -> its values where
    the baseline has others. tip: the claim that it puts to the test, by dropping it where
    ``drops_tip``, else by following it. trains: whether its adapter is another than the baseline's.
    """

    name: str
    cells: list[Cell]
    decides: str | None
    level: Effect | None
    comparison: Comparison | None
    exploratory: list[Comparison]
    costs: dict[str, Spread]
    differences: dict[str, str]
    tip: str | None
    drops_tip: bool
    trains: bool

    @property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.status is CellStatus.finished]

    @property
    def diverged(self) -> str | None:
        """How many of its seeds diverged, in words; None when none did."""
        count = sum(cell.status is CellStatus.diverged for cell in self.cells)
        return f"{count} of {len(self.cells)} seeds diverged" if count else None


@dataclass(frozen=True, slots=True)
class Study:
    """A study as reports show it.

    variants: the baseline first, the others by name. joint: what a factorial design says of its
    factors ("a") and pairs of them ("a × b"), or else the interactions of variants that were also
    run together; their p-values are corrected among themselves.
    """

    plan: Plan
    variants: list[Variant]
    joint: list[Comparison]
    warnings: list[str]

    @property
    def cells(self) -> list[Cell]:
        return [cell for variant in self.variants for cell in variant.cells]

    @property
    def baseline(self) -> Variant | None:
        return next((each for each in self.variants if each.name == self.plan.baseline), None)

    @property
    def comparisons(self) -> list[Comparison]:
        """The primary ones: what the study was made for."""
        return [each.comparison for each in self.variants if each.comparison is not None]


def analyse(plan: Plan, cells: Sequence[Cell]) -> Study:
    """Compare every variant with the baseline, seed by seed and example by example.

    See ``compare.paired_effect`` for the effects. How much seeds differ is told from all variants
    that train, and from all that do not, together (``compare.with_shared_luck``). P-values of the
    primary comparisons, one a variant, are corrected together (Holm 1979), in two families: the
    variants that put a claim to the test, and the others; exploratory ones are not corrected. Only
    seeds and examples that both sides have are compared. Nothing is refused: what cannot be
    compared says so.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda each: (each.variant, each.seed, str(each.folder))):
        groups[cell.variant].append(cell)
    order = sorted(groups, key=lambda name: (name != plan.baseline, name))
    tables = {name: _Tables(_finished(groups[name])) for name in order}
    base = tables.get(plan.baseline, _Tables([]))
    first = next((each.config for each in groups.get(plan.baseline, []) if each.config), {})
    adapters = {
        (each.seed, each.training) for each in groups.get(plan.baseline, []) if each.training
    }
    variants = [
        _variant(
            name,
            groups[name],
            plan=plan,
            own=tables[name],
            base=base,
            origin=first,
            adapters=adapters,
        )
        for name in order
    ]
    variants = _luck_shared(variants)
    joint, lacking = _joint(plan, variants, tables)
    families = [
        {
            each.name: each.comparison
            for each in variants
            if each.comparison is not None and (each.tip is not None) is claims
        }
        for claims in (True, False)
    ]
    parts = sum(map(bool, [*families, joint])) or 1
    judged: dict[str, Comparison] = {}
    for family in families:
        judged |= dict(zip(family, _judged(list(family.values()), parts), strict=True))
    variants = [
        _with_verdict(each, judged[each.name]) if each.name in judged else each for each in variants
    ]
    return Study(
        plan, variants, _judged(joint, parts), [*_warnings(plan, variants, base, tables), *lacking]
    )


def direction(metric: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither."""
    what = metric.partition("/")[0]
    if what in LENGTHS:
        return 0
    return -1 if what in LOWER_IS_BETTER else 1


def ranked(study: Study) -> list[tuple[Standing, list[Variant]]]:
    """The compared variants by standing: clear effects by size, the rest by name.

    Within the noise there is no ranking. Groups without a member are left out.
    """
    groups = []
    for standing in Standing:
        own = [
            (-abs(effect.value) if (effect := each.comparison.effect) else 0.0, each)
            for each in study.variants
            if each.comparison is not None and each.comparison.standing is standing
        ]
        if standing not in (Standing.no_difference, Standing.unknown):
            own.sort(key=lambda pair: pair[0])
        if own:
            groups.append((standing, [each for _, each in own]))
    return groups


def spread(values: Sequence[float]) -> Spread:
    """Mean and range of at least one value."""
    return Spread(math.fsum(values) / len(values), min(values), max(values), len(values))


def package_versions(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Package -> every version that a cell was run with, both in order."""
    versions: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for name, version in (cell.provenance.get("packages") or {}).items():
            versions[name].add(str(version))
    return {name: sorted(found) for name, found in sorted(versions.items())}


def effects(study: Study) -> list[tuple[str, Comparison]]:
    """Every comparison with its role, variant by variant, the joint ones last.

    primary, exploratory, main effect or interaction. A verdict is on a claim: there is none where
    the variant makes no claim.
    """
    found = []
    for variant in study.variants:
        if variant.comparison is not None:
            judged = variant.comparison.verdict if variant.tip else None
            found.append(("primary", replace(variant.comparison, verdict=judged)))
        found += [("exploratory", each) for each in variant.exploratory]
    for each in study.joint:
        found.append(("interaction" if " × " in each.variant else "main effect", each))
    return found


# --- pairing ------------------------------------------------------------------------------------

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Table:
    """Values of one metric, [seeds, examples], and how much each example weighs, [examples]."""

    seeds: list[int]
    examples: list[str]
    values: Floats
    weights: Floats

    def part(self, seeds: list[int], examples: list[str]) -> _Table:
        values, weights = self.values, self.weights
        if seeds != self.seeds:
            values = values[[self.seeds.index(seed) for seed in seeds]]
        if examples != self.examples:
            place = {example: number for number, example in enumerate(self.examples)}
            chosen = [place[example] for example in examples]
            values, weights = values[:, chosen], weights[chosen]
        return _Table(seeds, examples, values, weights)


class _Tables:
    """The tables of a variant's finished cells, each made when it is first asked for.

    A seed whose cell has not measured a metric is not in the metric's table.
    """

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells
        self._made: dict[str, _Table | None] = {}
        self._losses = [measured_losses(cell) for cell in cells]
        self._scores = [measured_scores(cell) for cell in cells]
        self.metrics = sorted(set().union(*self._losses, *self._scores))

    def __getitem__(self, metric: str) -> _Table | None:
        if metric not in self._made:
            self._made[metric] = self._make(metric) if metric in self.metrics else None
        return self._made[metric]

    def _make(self, metric: str) -> _Table | None:
        of_losses = any(metric in own for own in self._losses)
        kind: Sequence[Mapping[str, Mapping[str, Any]]] = self._scores
        if of_losses:
            kind = self._losses
        measured = [
            (cell.seed, own[metric])
            for cell, own in zip(self.cells, kind, strict=True)
            if metric in own
        ]
        rows = [row for _, row in measured]
        examples = sorted(set.intersection(*map(set, rows)))
        if not examples:
            return None
        values = np.array([[row[example] for example in examples] for row in rows], dtype=float)
        weights = np.ones(len(examples))
        if of_losses:
            totals, tokens = values[..., 0], values[..., 1]
            values, weights = totals / tokens, tokens.mean(axis=0)
        return _Table([seed for seed, _ in measured], examples, values, weights)


def _weights(metric: str, examples: Sequence[str], own: Floats) -> Floats:
    """How much each example counts: its own, or so that sources weigh the same."""
    if metric != "score/all":
        return own
    sources = [example.partition("/")[0] for example in examples]
    counts = Counter(sources)
    return np.array([1 / (counts[source] * len(counts)) for source in sources])


def _compare(
    name: str, metric: str, *, own: _Tables, base: _Tables, plan: Plan, primary: bool
) -> Comparison:
    left, right = base[metric], own[metric]
    missing = None
    if not base.cells:
        missing = "the baseline has no finished cell"
    elif not own.cells:
        missing = "it has no finished cell"
    elif left is None:
        missing = f"{metric} was not measured example by example in the baseline"
    elif right is None:
        missing = f"{metric} was not measured example by example"
    if missing is not None or left is None or right is None:
        return Comparison(name, metric, primary, None, missing)
    seeds, examples = [seed for seed in left.seeds if seed in right.seeds], _shared(left, right)
    if not seeds or not examples:
        what = "held-out example" if seeds else "seed"
        return Comparison(name, metric, primary, None, f"it shares no {what} with the baseline")
    unpaired = len(left.examples) + len(right.examples) - 2 * len(examples)
    left, right = left.part(seeds, examples), right.part(seeds, examples)
    weights = _weights(metric, examples, (left.weights + right.weights) / 2)
    effect = paired_effect(left.values, right.values, weights, limits=_limits(metric))
    value = float(np.average(left.values.mean(axis=0), weights=weights))
    return Comparison(
        variant=name,
        metric=metric,
        primary=primary,
        effect=effect,
        baseline=value,
        relevant=plan.relevant * abs(value),
        unpaired=unpaired,
    )


def _limits(metric: str) -> Limits | None:
    """Scores are shares, and answers that are all wrong are alike; losses never are by chance."""
    return None if metric.startswith("loss/") or direction(metric) == 0 else (0.0, 1.0)


def _shared(left: _Table, right: _Table) -> list[str]:
    """The examples that both have."""
    both = set(left.examples) & set(right.examples)
    return left.examples if len(both) == len(left.examples) else sorted(both)


# --- variants -----------------------------------------------------------------------------------


def _finished(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.status is CellStatus.finished]


def _variant(
    name: str,
    cells: list[Cell],
    *,
    plan: Plan,
    own: _Tables,
    base: _Tables,
    origin: dict[str, Any],
    adapters: set[tuple[int, str]],
) -> Variant:
    # A seed that the baseline lacks says nothing of whose adapter the others have.
    seeds = {seed for seed, _ in adapters}
    paired = {(cell.seed, cell.training) for cell in cells if cell.seed in seeds}
    trains = name == plan.baseline or not paired or not paired <= adapters
    decides = plan.primary if trains else plan.answers_primary or plan.primary
    level, comparison, exploratory = None, None, []
    if decides is not None and (table := own[decides]) is not None:
        if (other := base[decides]) is not None and (shared := _shared(other, table)):
            table = table.part(table.seeds, shared)
        weights = _weights(decides, table.examples, table.weights)
        level = level_of(table.values, weights, limits=_limits(decides))
    if name != plan.baseline:
        if decides is not None:
            comparison = _compare(name, decides, own=own, base=base, plan=plan, primary=True)
        exploratory = [
            _compare(name, metric, own=own, base=base, plan=plan, primary=False)
            for metric in own.metrics
            if metric in base.metrics and metric != decides
        ]
    config = next((cell.config for cell in cells if cell.config), {})
    changed = differences(config, origin) if config and origin else {}
    return Variant(
        name=name,
        cells=cells,
        decides=decides,
        level=level,
        comparison=comparison,
        exploratory=exploratory,
        costs=_costs(_finished(cells), trains=trains),
        differences={key: changed[key] for key in changed if not key.startswith(_NO_SETTING)},
        tip=plan.tips.get(name) or plan.better.get(name),
        drops_tip=name in plan.tips,
        trains=trains,
    )


_NO_SETTING = ("seed", "tracking", "resume", "sweep")


def _costs(cells: list[Cell], *, trains: bool) -> dict[str, Spread]:
    """Which of the cells with one adapter trained it is chance, and decides nothing here."""
    measured = {
        name: [value for cell in cells if (value := _recorded(cell, name)) is not None]
        for name in COSTS
        if trains or name not in _TRAINING
    }
    return {name: spread(values) for name, values in measured.items() if values}


def _judged(comparisons: list[Comparison], parts: int) -> list[Comparison]:
    """The same with p-values corrected together, and what such a family can detect.

    parts: how many families share the study's ALPHA, each by an equal part.
    """
    corrected = holm([None if each.effect is None else each.effect.p for each in comparisons])
    alpha = ALPHA / (parts * max(1, sum(p is not None for p in corrected)))
    return [
        each
        if each.effect is None
        else replace(
            each,
            corrected_p=None if p is None else min(1.0, parts * p),
            detectable=detectable(each.effect, alpha=alpha),
        )
        for each, p in zip(comparisons, corrected, strict=True)
    ]


def _luck_shared(variants: list[Variant]) -> list[Variant]:
    """The same with intervals that know how much seeds move the others.

    Variants that answer with an adapter of another's training have luck of another kind.
    """
    kinds: dict[tuple[str, bool], list[Comparison]] = defaultdict(list)
    for variant in variants:
        own = [] if variant.comparison is None else [variant.comparison]
        for each in own + variant.exploratory:
            kinds[each.metric, variant.trains].append(each)
    shared = {
        (each.variant, each.metric): each for alike in kinds.values() for each in _moderated(alike)
    }
    return [
        replace(
            variant,
            comparison=variant.comparison and shared[variant.name, variant.comparison.metric],
            exploratory=[shared[variant.name, each.metric] for each in variant.exploratory],
        )
        for variant in variants
    ]


def _moderated(alike: list[Comparison]) -> list[Comparison]:
    """The same with effects that share their luck, and what can be detected with it."""
    effects = iter(with_shared_luck([each.effect for each in alike if each.effect is not None]))
    return [
        each
        if each.effect is None
        else replace(each, effect=(effect := next(effects)), detectable=detectable(effect))
        for each in alike
    ]


def _with_verdict(variant: Variant, comparison: Comparison) -> Variant:
    """The variant with its corrected comparison, and what that says of its tip."""
    if comparison.effect is None:
        return replace(variant, comparison=comparison)
    lower_is_better = direction(comparison.metric) < 0
    if direction(comparison.metric) == 0:
        return replace(variant, comparison=comparison)  # neither better nor worse, so no verdict
    if comparison.standing in (Standing.better, Standing.no_difference) and variant.diverged:
        withheld = replace(
            comparison,
            effect=None,
            missing=f"{variant.diverged}, and the others alone flatter it",
            corrected_p=None,
            detectable=None,
        )
        return replace(variant, comparison=withheld)
    # The verdict is on a tip that is dropped; one that is followed is supported the other way.
    dropped = variant.drops_tip or variant.tip is None
    judged = verdict(
        comparison.effect,
        comparison.corrected_p,
        lower_is_better=lower_is_better if dropped else not lower_is_better,
        relevant=comparison.relevant,
    )
    return replace(variant, comparison=replace(comparison, verdict=judged))


# --- factors ------------------------------------------------------------------------------------


def _joint(
    plan: Plan, variants: list[Variant], tables: Mapping[str, _Tables]
) -> tuple[list[Comparison], list[str]]:
    """What variants do together, and what stands in the way of saying it."""
    if plan.factors:
        return _factorial(plan, tables)
    if plan.baseline not in tables:
        return [], []
    parts = {each.name: _parts(each.name, plan) for each in variants}
    alone = {parts[each.name][0]: each for each in variants if len(parts[each.name]) == 1}
    by_name = {each.name: each for each in variants}
    kinds: dict[tuple[str, bool], list[Comparison]] = defaultdict(list)
    lacking = []
    for variant in variants:
        pair = parts[variant.name]
        if len(pair) == 2 and variant.decides and alone.keys() >= {*pair}:
            names = [plan.baseline, *(alone[part].name for part in pair), variant.name]
            # One that changes the answers alone does so with any other.
            decider = min((alone[part] for part in pair), key=lambda each: each.trains)
            metric = decider.decides
            if diverged := [f"{name}: {why}" for name in names if (why := by_name[name].diverged)]:
                lacking.append(f"no interaction of {' and '.join(pair)}: {'; '.join(diverged)}")
                continue
            found = _stacked(names, metric, tables) if metric else None
            if metric and found is not None:
                baseline, first, second, both = found.values
                effect = interaction(
                    baseline, first, second, both, found.weights, limits=_limits(metric)
                )
                kinds[metric, decider.trains].append(_term(pair, metric, effect, found, plan))
    return [term for alike in kinds.values() for term in _moderated(alike)], lacking


def _parts(name: str, plan: Plan) -> list[str]:
    """The changes that a variant is made of: "a+b" is of two.

    Of a product of axes those of its values that are not the baseline's.
    """
    own, base = name.split("+"), plan.baseline.split("+")
    keys = [[part.partition("=")[0] for part in each] for each in (own, base)]
    if keys[0] == keys[1] and "=" in plan.baseline:
        return [part for part in own if part not in base]
    return [] if name == plan.baseline else own


def _factorial(plan: Plan, tables: Mapping[str, _Tables]) -> tuple[list[Comparison], list[str]]:
    metric = plan.primary
    found = _stacked(list(plan.design), metric, tables) if metric else None
    if metric is None or found is None:
        return [], ["the factorial design has runs without a result: no main effects yet"]
    design = [{factor: factor in own for factor in plan.factors} for own in plan.design.values()]
    try:
        effects = factorial_effects(design, found.values, found.weights, limits=_limits(metric))
    except ValueError as error:
        return [], [f"the factorial design has no main effects: {error}"]
    hidden = [
        f"{' × '.join(term)} cannot be told from {' × '.join(shown) or 'the mean'}"
        for shown, term in aliases(design)
    ]
    terms = [_term(term, metric, effect, found, plan) for term, effect in effects.items()]
    mains = [term for term in terms if " × " not in term.variant]
    pairs = [term for term in terms if " × " in term.variant]
    return _moderated(mains) + _moderated(pairs), hidden


@dataclass(frozen=True, slots=True)
class _Stack:
    """Values of several variants, [variants, seeds, examples], the baseline's first."""

    values: Floats
    weights: Floats


def _stacked(names: list[str], metric: str, tables: Mapping[str, _Tables]) -> _Stack | None:
    """What all of these variants have in common; None where that is nothing."""
    found = [tables[name][metric] for name in names]
    whole = [each for each in found if each is not None]
    if len(whole) < len(names) or not whole:
        return None
    seeds = sorted(set.intersection(*(set(each.seeds) for each in whole)))
    examples = sorted(set.intersection(*(set(each.examples) for each in whole)))
    if not seeds or not examples:
        return None
    alike = [each.part(seeds, examples) for each in whole]
    weights = np.mean([each.weights for each in alike], axis=0)
    return _Stack(np.array([each.values for each in alike]), _weights(metric, examples, weights))


def _term(
    factors: Sequence[str], metric: str, effect: Effect, found: _Stack, plan: Plan
) -> Comparison:
    value = float(np.average(found.values[0].mean(axis=0), weights=found.weights))
    return Comparison(
        variant=" × ".join(factors),
        metric=metric,
        primary=True,
        effect=effect,
        baseline=value,
        relevant=plan.relevant * abs(value),
    )


# --- warnings -----------------------------------------------------------------------------------


def _warnings(
    plan: Plan, variants: list[Variant], base: _Tables, tables: Mapping[str, _Tables]
) -> list[str]:
    """What a reader must know before believing the numbers, in one line each."""
    cells = [cell for variant in variants for cell in variant.finished]
    return [
        *plan.warnings,
        *_about_baseline(plan, base),
        *(
            f"the baseline: {each.diverged}; the others are compared with its other seeds alone"
            for each in variants
            if each.name == plan.baseline and each.diverged
        ),
        *_about_seeds(variants, base),
        *_about_metrics(variants, tables),
        *_about_examples(variants, base),
        *_same_fingerprints(cells),
        *_mixed(cells, "code", lambda about: str(about["code"]["digest"])[:8]),
        *_mixed(cells, "device", lambda about: about["device"]["name"]),
        *_mixed(cells, "threads", lambda about: about["device"]["threads"]),
        *_mixed(cells, "machine", lambda about: _machine(about["machine"])),
        *_mixed(cells, "Python", lambda about: about["python"]),
        *_mixed(cells, "base model", lambda about: _weights_of(about["base_model"])),
        *_packages(cells),
    ]


def _about_baseline(plan: Plan, base: _Tables) -> list[str]:
    if not base.cells:
        return [f"no cell of the baseline, {plan.baseline}, is finished: nothing can be compared"]
    if plan.primary is None:
        return ["no metric was named beforehand to decide: every effect here is exploratory"]
    if plan.primary not in base.metrics:
        there = ", ".join(base.metrics) or "none"
        return [f"{plan.primary}, which decides, was not measured in the baseline; {there} were"]
    return []


def _about_seeds(variants: list[Variant], base: _Tables) -> list[str]:
    seeds = [cell.seed for cell in base.cells]
    lines = []
    if len(seeds) == 1:
        lines.append(
            "the baseline has one seed: there are no intervals, and no difference can be told "
            "from chance"
        )
    for variant in variants:
        own = {cell.seed for cell in variant.finished}
        lacking = [seed for seed in seeds if seed not in own]
        if not own or (not lacking and own == set(seeds)):
            continue
        shared = len(own & set(seeds))
        without = [cell.seed for cell in variant.cells if cell.seed in lacking]
        extra = sorted(own - set(seeds))
        parts = []
        if lacking:
            state = {c.seed: str(c.status) for c in variant.cells if c.seed in without}
            parts.append(
                "lacks "
                + ", ".join(f"seed {seed} ({state.get(seed, 'not planned')})" for seed in lacking)
            )
        if extra:
            parts.append(
                f"has seed {', '.join(map(str, extra))} without a counterpart in the baseline"
            )
        lines.append(f"{variant.name} {' and '.join(parts)}: {_count(shared, 'pair')} compared")
    return lines


def _about_metrics(variants: list[Variant], tables: Mapping[str, _Tables]) -> list[str]:
    """Finished cells that lack the metric that decides, which others of their variant have."""
    lines = []
    for variant in variants:
        table = tables[variant.name][variant.decides] if variant.decides else None
        lacking = [cell.seed for cell in variant.finished if table and cell.seed not in table.seeds]
        if lacking:
            seeds = ", ".join(map(str, lacking))
            lines.append(
                f"{variant.name} has no {variant.decides} for seed {seeds}: left out of it"
            )
    return lines


def _about_examples(variants: list[Variant], base: _Tables) -> list[str]:
    lines = []
    for variant in variants:
        comparison = variant.comparison
        if comparison is not None and comparison.effect is not None and comparison.unpaired:
            shared = comparison.effect.examples
            lines.append(
                f"{variant.name} was measured on other held-out examples: {shared:,} of "
                f"{shared + comparison.unpaired:,} are shared with the baseline and compared; on "
                f"these the baseline's {comparison.metric} is {comparison.baseline:.4g}"
            )
    return lines


def _same_fingerprints(cells: Iterable[Cell]) -> list[str]:
    by_key: dict[tuple[str, int], set[str]] = defaultdict(set)
    for cell in cells:
        if cell.fingerprint:
            by_key[cell.fingerprint, cell.seed].add(cell.variant)
    same = sorted({tuple(sorted(names)) for names in by_key.values() if len(names) > 1})
    return [f"{' and '.join(names)} are the same run: the axis changes nothing" for names in same]


def _mixed(cells: Iterable[Cell], what: str, read: Callable[[dict[str, Any]], Any]) -> list[str]:
    """One line where the cells' records differ in something that ought to be the same."""
    counts: Counter[str] = Counter()
    for cell in cells:
        try:
            counts[str(read(cell.provenance))] += 1
        except (KeyError, TypeError, AttributeError, ValueError):
            continue
    if len(counts) < 2:
        return []
    told = [f"{name} ({_count(n, 'cell')})" for name, n in sorted(counts.items())]
    return [f"cells differ in {what}: {', '.join(told)}"]


def _packages(cells: Sequence[Cell]) -> list[str]:
    mixed = [
        f"{name} {' and '.join(found)}"
        for name, found in package_versions(cells).items()
        if len(found) > 1
    ]
    return [f"cells differ in packages: {', '.join(mixed)}"] if mixed else []


def _machine(about: dict[str, Any]) -> str:
    return f"{about['processor']} with {_count(about['cores'], 'core')}"


def _weights_of(about: dict[str, Any]) -> str:
    files = about["files"]
    return ", ".join(
        f"{name} {str(file.get('sha256') or file['bytes'])[:8]}"
        for name, file in sorted(files.items())
        if name.endswith((".safetensors", ".bin"))
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
