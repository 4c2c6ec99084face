"""A study as files and as a table for the terminal: the views of ``analyse.Study``, in text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dollyllama.card import markdown_table
from dollyllama.files import write_text
from dollyllama.study import wording
from dollyllama.study.analyse import (
    COSTS,
    Comparison,
    Study,
    Variant,
    analyse,
    cost,
    effects,
    ranked,
)
from dollyllama.study.page import page
from dollyllama.study.records import AS_MEANT, Cell, read_sweep, recorded


def write_report(
    folder: Path,
    folders: Sequence[Path],
    *,
    baseline: str | None = None,
    primary: str | None = None,
    selected: bool = False,
) -> Study:
    """Write ``report.html``, ``report.md``, ``report.csv`` and ``cells.csv`` into ``folder``.

    folders, baseline, primary: see ``records.read_sweep``, also for its ValueErrors; another is for
    a ``primary`` that no finished cell measured. selected: the baseline was taken because it came
    out best of these very cells, which the report then says. What is written depends on the
    contents of ``folders`` alone: the same twice, byte for byte.
    """
    plan, cells = read_sweep(folders, baseline=baseline, primary=primary)
    if selected:
        plan = replace(plan, warnings=[_SELECTED.format(plan.baseline), *plan.warnings])
    study = analyse(plan, cells)
    if primary is not None:
        _check_primary(study, primary)
    write_text(folder / "report.html", page(study))
    write_text(folder / "report.md", markdown(study))
    write_text(folder / "report.csv", effects_csv(study))
    write_text(folder / "cells.csv", cells_csv(study))
    return study


_SELECTED = (
    "the baseline {} is the best of these very cells: it is lucky as well as good, so that all "
    "others look worse than they are; compare it over seeds of its own"
)


def _check_primary(study: Study, primary: str) -> None:
    metrics = {name for cell in study.cells for name in recorded(cell)}
    if metrics and primary not in metrics:
        near = get_close_matches(primary, sorted(metrics), n=1, cutoff=0)[0]
        raise ValueError(f"no cell has measured {primary}: did you mean {near}?")


def terminal_table(study: Study) -> str:
    """Verdicts first, by groups; then what stands in the way of believing them."""
    rows: list[list[str] | str] = [["", "value", "against the baseline", "p", "verdict"]]
    if study.baseline is not None:
        rows.append(_row(study.baseline))
    for standing, variants in ranked(study):
        rows += ["", wording.GROUP_TITLES[standing], *map(_row, variants)]
    cells = [row for row in rows if isinstance(row, list)]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = [
        row
        if isinstance(row, str)
        else "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [
        [f"{each.variant}: {_joint(each)}" for each in study.joint],
        [f"tip: {line}" for line in wording.tip_lines(study)],
        [f"{cell.folder.name}: {_why(cell)}" for cell in _failures(study)],
        [f"left out: {name}: {why}" for name, why in study.plan.left_out.items()],
        [f"note: {line}" for line in study.warnings],
    ]
    parts = [[wording.headline(study)], lines, *notes]
    return "\n\n".join("\n".join(part) for part in parts if part)


def markdown(study: Study) -> str:
    """The study as a page of Markdown."""
    parts = [f"# Study: {study.plan.title}", wording.headline(study) + "."]
    if tips := wording.tip_lines(study):
        parts += ["## Tips", "\n".join(f"- {line}" for line in tips)]
    parts += ["## Effects", _READING]
    rows = [_row(study.baseline)] if study.baseline is not None else []
    for standing, variants in ranked(study):
        rows += [[f"*{wording.GROUP_TITLES[standing]}*", "", "", "", ""], *map(_row, variants)]
    header = ["variant", "value", "against the baseline", "p", "verdict"]
    parts.append(markdown_table(header, rows))
    if study.joint:
        lines = [f"- {each.variant}: {_joint(each)}" for each in study.joint]
        parts += ["## Together", _TOGETHER, "\n".join(lines)]
    titles, costs = wording.cost_table(study)
    rows = [[name, *values] for name, values in costs]
    parts += ["## Costs", markdown_table(["variant", *titles], rows)]
    if failures := _failures(study):
        rows = [[cell.folder.name, str(cell.status), cell.reason or ""] for cell in failures]
        parts += ["## Cells without a result", markdown_table(("cell", "status", "why"), rows)]
    if study.plan.left_out:
        parts += ["## Left out", markdown_table(("variant", "why"), study.plan.left_out.items())]
    if study.warnings:
        parts += ["## Notes", "\n".join(f"- {line}" for line in study.warnings)]
    parts.append(
        "All effects, exploratory ones included, are in report.csv; all cells in cells.csv."
    )
    return "\n\n".join(parts) + "\n"


_READING = (
    "Each effect is the variant less the baseline, paired by seed and held-out example, with its "
    "95 % interval. p is also corrected (Holm) over the claims, and over the other variants: the "
    "corrected one decides. Inside the group without a detected difference the order is "
    "alphabetical: it says nothing."
)

_TOGETHER = (
    "Main effects of the factors, and interactions (a × b): what two changes do beyond the sum of "
    "what each does. p is corrected among these too."
)

_EFFECT_COLUMNS = (
    *("variant", "metric", "role", "value", "low", "high", "standard_error"),
    *("degrees_of_freedom", "p", "corrected_p", "seeds", "examples", "unpaired"),
    *("between_seeds", "between_examples", "residual", "lenders", "prior_df", "added"),
    *("baseline", "relevant", "detectable", "standing", "verdict", "missing"),
)


def effects_csv(study: Study) -> str:
    """A line for each variant and metric."""
    return _csv(_EFFECT_COLUMNS, [_effect_row(role, each) for role, each in effects(study)])


def _effect_row(role: str, each: Comparison) -> dict[str, Any]:
    values = asdict(each)
    effect = values.pop("effect") or {}
    del values["primary"]
    return {**values, **effect, "role": role, "standing": each.standing}


def _joint(each: Comparison) -> str:
    """An effect of the design with its p."""
    p = wording.p_values(each)
    return f"{wording.told(each)} (p {p})" if p else wording.told(each)


def cells_csv(study: Study) -> str:
    """A line for each cell: how it ended, what it took, and every metric of its record."""
    values = {cell.folder: recorded(cell) for cell in study.cells}
    metrics = sorted({name for own in values.values() for name in own})
    about = ("folder", "variant", "seed", "status", "reason", "fingerprint", "trained_by")
    rows = [
        {
            **{name: getattr(cell, name) for name in about},
            "folder": cell.folder.name,
            **{name: cost(cell, name) for name in COSTS},
            **values[cell.folder],
        }
        for cell in study.cells
    ]
    return _csv((*about, *COSTS, *metrics), rows)


def _row(variant: Variant) -> list[str]:
    name = variant.name
    value = (
        wording.level_with_interval(variant.decides, variant.level)
        if (variant.decides and variant.level)
        else ""
    )
    comparison = variant.comparison
    if comparison is None or comparison.effect is None:
        return [name, value, "", "", wording.verdict(variant)]
    return [
        name,
        value,
        wording.change(comparison.metric, comparison.effect),
        wording.p_values(comparison),
        wording.verdict(variant),
    ]


def _failures(study: Study) -> list[Cell]:
    return [cell for cell in study.cells if cell.status not in AS_MEANT]


def _why(cell: Cell) -> str:
    told = cell.reason is not None and cell.reason != cell.status
    return f"{cell.status}: {cell.reason}" if told else str(cell.status)


def _csv(header: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
