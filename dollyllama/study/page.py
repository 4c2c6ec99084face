"""A study as one page of HTML that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dollyllama.card import base_name, config_rows
from dollyllama.study import figures, wording
from dollyllama.study.analyse import (
    COSTS,
    Comparison,
    Standing,
    Study,
    Variant,
    cost,
    direction,
    package_versions,
    ranked,
)
from dollyllama.study.compare import ALPHA, Verdict
from dollyllama.study.records import AS_MEANT, Cell, CellStatus, head_scores, recorded
from dollyllama.webpage.render import json_for_script, render_page

#: Held-out examples whose answers are put beside each other, and how long an answer may be: a page
#: of hundreds of cells is to stay within a few megabytes.
_SAMPLES = 40
_CHARACTERS = 1500

#: Curves that are drawn in a colour when the page opens, beside the baseline's.
_CURVES_AT_FIRST = 3

#: A change of so many times what matters is shown in full colour.
_FULL_COLOUR = 10


def page(study: Study) -> str:
    """Return the study as HTML, in which what runs wrote is text and nothing else."""
    values = {
        "study": study,
        "plan": study.plan,
        "counts": wording.counts(study),
        "seeds": len(study.plan.seeds),
        "tips": _tips(study),
        "tip_counts": _tip_counts(study),
        "forests": _forests(study),
        "joint": _joint_forest(study),
        "curves": _curves(study),
        "trades": _trades(study),
        "families": _families(study),
        "costs": wording.cost_table(study, nothing="–"),
        "samples": _samples(study),
        "cells": _cells(study),
        "failures": [cell for cell in study.cells if cell.status not in AS_MEANT],
        "provenance": _provenance(study),
        "settings": _settings(study),
        "wording": wording,
    }
    return render_page(Path(__file__).parent, values)


# --- verdicts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tip:
    verdict: str
    kind: str  # a class of the page
    claim: str
    variant: str
    finding: str


#: Verdicts in the order in which a reader wants them.
_ORDER = ("supported", "contradicted", "not supported", "undecided")


def _tips(study: Study) -> list[_Tip]:
    """The claims with what became of them; the variants themselves where there are no claims."""
    tips = []
    for _, variants in ranked(study):
        for variant in variants:
            comparison = variant.comparison
            assert comparison is not None
            if variant.tip is None and (study.plan.tips or study.plan.better):
                continue
            tips.append(
                _Tip(
                    verdict=wording.verdict(variant),
                    kind=_kind(comparison) if variant.tip is None else _of_verdict(comparison),
                    claim=variant.tip or variant.name,
                    variant=variant.name,
                    finding=wording.finding(variant),
                )
            )
    places = {name: place for place, name in enumerate(_ORDER)}
    return sorted(tips, key=lambda tip: places.get(tip.verdict, len(places)))


def _tip_counts(study: Study) -> str:
    """How many claims came out which way, in a sentence."""
    verdicts = Counter(
        wording.verdict(each) for each in study.variants if each.tip and each.comparison
    )
    total = sum(verdicts.values())
    told = ", ".join(
        f"{verdicts[name]} {name}"
        for name in sorted(verdicts, key=lambda v: (_ORDER.index(v) if v in _ORDER else 9, v))
    )
    return f"Of {total} tip{'' if total == 1 else 's'}: {told}." if total else ""


def _of_verdict(comparison: Comparison) -> str:
    return "" if comparison.verdict is None else comparison.verdict.name


def _kind(comparison: Comparison) -> str:
    """The class of a comparison: what its colour says."""
    if comparison.verdict is Verdict.not_supported:
        return "nothing"
    return str(comparison.standing)


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    variant: str
    kind: str
    drawing: Markup
    change: str
    note: str


@dataclass(frozen=True, slots=True)
class _Forest:
    metric: str
    better_is: str
    margin: str
    baseline: str
    evidence: str
    marks: str
    groups: list[tuple[str, list[_Row]]]
    axis: Markup


def _forests(study: Study) -> list[_Forest]:
    """A forest plot for each metric that decides."""
    groups = [
        (wording.GROUP_TITLES[standing], [each.comparison for each in own if each.comparison])
        for standing, own in ranked(study)
    ]
    metrics = dict.fromkeys(each.metric for each in study.comparisons if each.effect is not None)
    return [_forest(metric, groups) for metric in metrics]


def _joint_forest(study: Study) -> _Forest | None:
    """What factors do by themselves and two by two; as they were named, not ranked."""
    titles = {
        1: "Main effects: with the factor less without it, over all others",
        2: "Interactions",
    }
    groups = [
        (title, [each for each in study.joint if len(each.variant.split(" × ")) == size])
        for size, title in titles.items()
    ]
    return _forest(study.joint[0].metric, groups) if study.joint else None


def _forest(metric: str, groups: Sequence[tuple[str, Sequence[Comparison]]]) -> _Forest:
    own = [
        (title, [(each, each.effect) for each in members if each.metric == metric and each.effect])
        for title, members in groups
    ]
    measured = [pair for _, pairs in own for pair in pairs]
    margin = max(each.relevant for each, _ in measured)
    extents = [
        (effect.low, effect.high)
        if effect.low is not None and effect.high is not None
        else (effect.value, effect.value)
        for _, effect in measured
    ]
    clear = [
        ends
        for (each, _), ends in zip(measured, extents, strict=True)
        if each.standing not in (Standing.no_difference, Standing.unknown)
    ]
    scale = figures.effect_scale(extents, margin, clear=clear)
    beyond = any(not scale.low <= effect.value <= scale.high for _, effect in measured)
    cut = any(low < scale.low or high > scale.high for low, high in extents)
    usual = Counter(wording.evidence(effect) for _, effect in measured).most_common(1)[0][0]
    baseline = measured[0][0].baseline
    assert baseline is not None
    return _Forest(
        metric=metric,
        better_is=wording.better_is(metric),
        margin=wording.size(metric, margin),
        baseline=wording.level(metric, baseline),
        evidence=usual,
        marks="".join(
            sentence
            for sentence, applies in (
                (" An arrow at the edge: the interval goes on.", cut),
                (" A hollow mark at the edge: the effect lies beyond.", beyond),
                (" The axis is bent: far from 0 it goes in powers of ten.", scale.bend is not None),
            )
            if applies
        ),
        groups=[
            (title, [_forest_row(each, scale, margin, usual) for each, _ in pairs])
            for title, pairs in own
            if pairs
        ],
        axis=Markup(figures.effect_axis(scale, percent=wording.is_share(metric))),
    )


def _forest_row(comparison: Comparison, scale: figures.Scale, margin: float, usual: str) -> _Row:
    effect = comparison.effect
    assert effect is not None
    change = wording.change(comparison.metric, effect)
    evidence = wording.evidence(effect)
    notes = [] if evidence == usual else [evidence]
    if p := wording.p_values(comparison):
        notes.append(f"p {p}")
    smallest = wording.detectable(comparison)
    nothing_varies = (comparison.detectable or 0.0) <= 1e-12
    if comparison.standing is Standing.no_difference and smallest and not nothing_varies:
        notes.append(smallest)
    drawing = figures.interval(
        effect.value,
        effect.low,
        effect.high,
        scale=scale,
        margin=margin,
        title=f"{comparison.variant}: {change}",
    )
    return _Row(comparison.variant, _kind(comparison), Markup(drawing), change, ", ".join(notes))


@dataclass(frozen=True, slots=True)
class _Curves:
    drawing: Markup
    names: list[tuple[str, str]]  # a variant and its class, "" while hidden


def _curves(study: Study) -> _Curves | None:
    made = [
        curve
        for each in study.variants
        if each.trains
        if (curve := figures.curve_of(each.name, [cell.curve for cell in each.finished]))
    ]
    if not made:
        return None
    clear = [
        each.name
        for standing, variants in ranked(study)
        if standing in (Standing.worse, Standing.better)
        for each in variants
    ]
    names = [curve.name for curve in made]
    shown = [name for name in clear if name in names][:_CURVES_AT_FIRST]
    classes = {name: f"ink{place}" for place, name in enumerate(shown, start=1)}
    if study.plan.baseline in names:
        classes[study.plan.baseline] = "ink0"
    # What is drawn last lies on top.
    drawing = figures.curves(
        sorted(made, key=lambda c: c.name == study.plan.baseline), classes=classes
    )
    return _Curves(Markup(drawing), [(name, classes.get(name, "")) for name in names])


@dataclass(frozen=True, slots=True)
class _Trade:
    title: str
    unit: str
    metric: str
    better_is: str
    drawing: Markup


def _trades(study: Study) -> list[_Trade]:
    """Quality against cost: training time and memory, for what trains."""
    metric = study.plan.primary
    if metric is None or direction(metric) == 0:
        return []
    trades = []
    for name in ("training_seconds", "peak_memory_mib"):
        points = [
            _point(each, name)
            for each in study.variants
            if name in each.costs and each.level is not None and each.decides == metric
        ]
        if len(points) < 2:
            continue
        title, unit, _ = wording.COST_TITLES[name]
        drawing = figures.quality_against_cost(
            points,
            lower_is_better=direction(metric) < 0,
            percent=wording.is_share(metric),
            title=f"{metric} against {title}",
        )
        trades.append(_Trade(title, unit, metric, wording.better_is(metric), Markup(drawing)))
    return trades


def _point(variant: Variant, cost: str) -> figures.Point:
    spread, comparison = variant.costs[cost], variant.comparison
    assert variant.level is not None
    assert variant.decides is not None
    y, y_range = variant.level.value, None
    told = f"{variant.name}: {wording.level(variant.decides, y)}, {wording.cost(cost, spread)}"
    if comparison is not None and comparison.effect is not None:
        effect = comparison.effect
        if effect.low is not None and effect.high is not None:
            # The interval of the effect, laid around the variant's own value.
            y_range = (y + effect.low - effect.value, y + effect.high - effect.value)
    return figures.Point(
        name=variant.name,
        x=spread.mean,
        y=y,
        x_range=(spread.low, spread.high),
        y_range=y_range,
        kind="baseline" if comparison is None else _kind(comparison),
        title=told,
    )


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tint:
    text: str
    kind: str
    strength: str  # 0 to 1: how full the colour is
    title: str


@dataclass(frozen=True, slots=True)
class _Family:
    """Metrics that belong together, as a table of variants by sources."""

    title: str
    metrics: list[str]
    rows: list[tuple[str, list[_Tint]]]


def _families(study: Study) -> list[_Family]:
    """Effects on every metric, by what is measured."""
    found = {
        variant.name: {
            each.metric: each
            for each in [variant.comparison, *variant.exploratory]
            if each is not None and each.effect is not None
        }
        for variant in study.variants
        if variant.comparison is not None
    }
    metrics = sorted({metric for own in found.values() for metric in own}, key=_by_source)
    heads = ["score/all", *head_scores(study.cells)]
    titles: dict[str, list[str]] = {"Loss": [], "Head scores": [], "Other scores": []}
    for metric in metrics:
        what = metric.partition("/")[0]
        if what == "loss":
            titles["Loss"].append(metric)
        elif metric in heads:
            titles["Head scores"].append(metric)
        elif what in ("diversity", "stops", "tokens"):
            titles.setdefault(what.capitalize(), []).append(metric)
        else:
            titles["Other scores"].append(metric)
    return [
        _Family(
            title,
            own,
            [
                (name, [_tint(effects.get(metric)) for metric in own])
                for name, effects in found.items()
                if any(metric in effects for metric in own)
            ],
        )
        for title, own in titles.items()
        if own
    ]


def _by_source(metric: str) -> tuple[bool, str, str]:
    what, _, source = metric.partition("/")
    return source != "all", source, what


def _tint(comparison: Comparison | None) -> _Tint:
    if comparison is None or comparison.effect is None:
        return _Tint("", "none", "0", "not measured on both sides")
    effect, metric = comparison.effect, comparison.metric
    title = f"{wording.change(metric, effect)}, {wording.evidence(effect)}"
    # Uncorrected, the primary ones too: this is the exploratory table.
    clear = effect.p is not None and effect.p < ALPHA
    sign = direction(metric) * effect.value
    kind = "none" if not clear or sign == 0 else "better" if sign > 0 else "worse"
    full = comparison.relevant * _FULL_COLOUR
    strength = min(1.0, max(0.2, abs(effect.value) / full)) if full > 0 else 0.6
    text = wording.short_change(metric, effect)
    return _Tint(text, kind, f"{strength:.2f}", title)


@dataclass(frozen=True, slots=True)
class _CellRow:
    cell: Cell
    values: list[tuple[str, str]]  # what to sort by, and what to show


@dataclass(frozen=True, slots=True)
class _CellTable:
    header: list[str]
    rows: list[_CellRow]


def _cells(study: Study) -> _CellTable:
    """Every cell with the metrics that decide and what it took."""
    metrics = [each for each in (study.plan.primary, study.plan.answers_primary) if each]
    metrics = list(dict.fromkeys(metrics))
    names = [name for name in COSTS if name not in ("training_tokens", "evaluation_seconds")]
    rows = []
    for cell in study.cells:
        own = recorded(cell)
        values = [
            (str(own[metric]), wording.level(metric, own[metric])) if metric in own else ("", "")
            for metric in metrics
        ]
        for name in names:
            value = cost(cell, name)
            shown = "" if value is None else wording.amount(name, value)
            values.append(("" if value is None else str(value), shown))
        rows.append(_CellRow(cell, values))
    titles = [
        f"{title}, {unit}" if unit else title
        for title, unit, _ in (wording.COST_TITLES[name] for name in names)
    ]
    return _CellTable([*metrics, *titles], rows)


# --- samples ------------------------------------------------------------------------------------


def _samples(study: Study) -> Markup | None:
    """Answers of every variant to the same questions under one seed, as JSON for the page's script.

    The seed is the one that most variants have finished; the questions are the first of each
    source by their ids, which say nothing about the answers.
    """
    seeds = Counter(cell.seed for cell in study.cells if cell.samples and _is_done(cell))
    if not seeds:
        return None
    seed = min(seeds, key=lambda each: (-seeds[each], each))
    cells = {
        variant.name: next((c for c in variant.finished if c.seed == seed and c.samples), None)
        for variant in study.variants
    }
    answered = {name: _first_answers(cell) for name, cell in cells.items() if cell is not None}
    chosen = _choose(answered.values())
    questions: dict[str, dict[str, str]] = {}
    for answers in answered.values():
        for example, row in answers.items():
            if example in chosen:
                questions.setdefault(
                    example,
                    {
                        "source": row["source"],
                        "prompt": _cut(row["prompt"]),
                        "reference": _cut(row["reference"]),
                    },
                )
    order = [example for example in chosen if example in questions]
    data = {
        "seed": seed,
        "baseline": study.plan.baseline,
        "questions": [questions[example] for example in order],
        "answers": {
            name: [_answer(answers.get(example)) for example in order]
            for name, answers in answered.items()
        },
        "heads": {
            name.partition("/")[2]: name.partition("/")[0] for name in head_scores(study.cells)
        },
    }
    return json_for_script(data)


def _is_done(cell: Cell) -> bool:
    return cell.status is CellStatus.finished


def _first_answers(cell: Cell) -> dict[str, dict[str, Any]]:
    """One answer to each question: the first, where several were drawn."""
    found: dict[str, dict[str, Any]] = {}
    for row in cell.samples:
        found.setdefault(row["id"], row)
    return found


def _choose(answered: Iterable[dict[str, dict[str, Any]]]) -> list[str]:
    """Up to ``_SAMPLES`` questions, as many of each source, those that most variants answered."""
    counts = Counter(example for answers in answered for example in answers)
    by_source: dict[str, list[str]] = {}
    for example in sorted(counts, key=lambda each: (-counts[each], each)):
        by_source.setdefault(example.partition("/")[0], []).append(example)
    share = _SAMPLES // max(1, len(by_source))
    return [example for source in sorted(by_source) for example in by_source[source][:share]]


def _answer(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"text": _cut(str(row["completion"])), "scores": row["scores"]}


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …"


# --- origin -------------------------------------------------------------------------------------


def _settings(study: Study) -> tuple[list[tuple[str, str]], list[tuple[str, dict[str, str]]]]:
    """The baseline's settings, and what each other variant has changed."""
    cells = study.baseline.cells if study.baseline is not None else []
    config = next((cell.config for cell in cells if cell.config), None)
    rows: list[tuple[str, str]] = []
    if config is not None:
        try:
            rows = [row for row in config_rows(config) if row[0] != "seed"]
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            rows = []  # of another version of the project
    changed = [(each.name, each.differences) for each in study.variants if each.differences]
    return rows, changed


def _provenance(study: Study) -> list[tuple[str, str]]:
    """Where the numbers come from; several values where the cells differ."""
    done = [cell for cell in study.cells if _is_done(cell)]
    records = [cell.provenance for cell in done]
    packages = package_versions(done)
    rows = [
        ("command", _distinct(" ".join(command) for command in study.plan.commands)),
        ("commit", _distinct(_commit(_at(each, "code")) for each in records)),
        ("code digest", _distinct(str(_at(each, "code", "digest"))[:16] for each in records)),
        ("started", _period(records)),
        ("device", _distinct(str(_at(each, "device", "name")) for each in records)),
        ("platform", _distinct(str(each.get("platform", "")) for each in records)),
        ("Python", _distinct(str(each.get("python", "")) for each in records)),
        ("packages", ", ".join(f"{name} {' or '.join(own)}" for name, own in packages.items())),
        ("base model", _distinct(map(_base_model, done))),
        *_data_digests([cell.data for cell in done]),
    ]
    return [(label, text) for label, text in rows if text]


def _at(values: Any, *keys: str) -> Any:
    """What is nested in a record, or "" where it lacks it."""
    for key in keys:
        values = values.get(key, "") if isinstance(values, dict) else ""
    return values


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(sorted({text for text in texts if text}))


def _commit(code: Any) -> str:
    commit = str(_at(code, "commit") or "")
    return f"{commit[:12]}{' with uncommitted changes' if _at(code, 'dirty') else ''}"


def _period(records: Sequence[dict[str, Any]]) -> str:
    starts = sorted(
        str(each["started"])[:16].replace("T", " ") for each in records if "started" in each
    )
    if not starts:
        return ""
    return starts[0] if starts[0] == starts[-1] else f"{starts[0]} to {starts[-1]}"


def _base_model(cell: Cell) -> str:
    """A base model's name and its weights' digests."""
    path = str(_at(cell.config, "model", "path"))
    files = _at(cell.provenance, "base_model", "files") or {}
    digests = [
        f"{name} {str(_at(file, 'sha256'))[:16]}"
        for name, file in sorted(files.items())
        if name.endswith((".safetensors", ".bin"))
    ]
    return ", ".join([base_name(path), *digests]) if path else ""


def _data_digests(manifests: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    digests: dict[str, set[str]] = {}
    for manifest in manifests:
        for source, about in (_at(manifest, "sources") or {}).items():
            for file, digest in (_at(about, "digests") or {}).items():
                digests.setdefault(source, set()).add(f"{file} {str(digest)[:16]}")
    return [(f"data: {source}", "; ".join(sorted(own))) for source, own in sorted(digests.items())]
