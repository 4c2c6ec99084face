"""A study on W&B: one run, in the group of its cells, with the effects, their picture, the report.

What the dashboard shows besides the cells themselves, under the names that it looks for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollyllama.config import fingerprint
from dollyllama.redact import redact
from dollyllama.study.analyse import Comparison, Study, effects
from dollyllama.study.dashboard import EFFECTS, FOREST, REPORT, STUDY_JOB
from dollyllama.tracking import open_wandb, resolve_mode, study_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a report writes into the folder of its sweep.
REPORT_FILES = ("report.html", "report.md", "report.csv", "cells.csv")

_COLOUR, _GREY = "#0072B2", "#999999"


def log_study(
    study: Study,
    folder: Path,
    *,
    mode: str,
    project: str | None,
    entity: str | None,
    group: str | None,
    tags: Sequence[str] | None,
    artifacts: bool,
) -> None:
    """Log ``study``, whose sweep and report lie in ``folder``, as a W&B run of the job type study.

    mode, project, entity, group, tags: as for ``tracking.open_tracker``. artifacts: keep the
    report's files as an artefact too; ``report.html`` is shown anyhow. Logged again, the run goes
    on under the same id: a part of it that waits on this disk gives way to the new one, on W&B the
    latest is what tables show. Nothing that happens to W&B raises, but ValueError when mode is
    online and nobody is logged in.
    """
    if resolve_mode(mode) == "disabled":
        return
    group = group or study_group(folder)
    run = open_wandb(
        folder,
        mode=mode,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        job_type=STUDY_JOB,
        name=f"study {group}",
        run_id=fingerprint([STUDY_JOB, str(folder.resolve())]),
        config=_settings(study),
        record=REPORT_FILES[0],
        replace=True,
    )
    run.table(EFFECTS, redact(effect_rows(study)))
    with tempfile.TemporaryDirectory() as temporary:
        picture = Path(temporary) / "forest.png"
        if draw_forest(study, picture):
            run.image(FOREST, picture)
    files = [folder / name for name in REPORT_FILES if (folder / name).is_file()]
    if (folder / REPORT_FILES[0]) in files:
        run.page(REPORT, folder / REPORT_FILES[0])
    if artifacts and files:
        run.artifact(f"{REPORT}-{group}", REPORT, files, copy=True)
    run.summary(_numbers(study))
    run.finish(failed=False)


def effect_rows(study: Study) -> list[dict[str, Any]]:
    """Every comparison of the study as a row of equal keys, the primary ones first."""
    rows = sorted(effects(study), key=lambda pair: pair[0] != "primary")
    return [_row(role, each) for role, each in rows]


def draw_forest(study: Study, path: Path) -> bool:
    """Draw the primary effects with their intervals into the PNG file ``path``, a plot a metric.

    A dot without a line has no interval. Grey: within the noise, after correction. Returns whether
    there was anything to draw.
    """
    metrics: dict[str, list[Comparison]] = {}
    for each in study.comparisons:
        if each.effect is not None:
            metrics.setdefault(each.metric, []).append(each)
    if not metrics:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [len(group) + 1.5 for group in metrics.values()]
    figure = Figure(figsize=(8, 0.3 * sum(heights) + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (metric, group) in zip(plots, metrics.items(), strict=True):
        _draw_effects(axes, metric, group, baseline=study.plan.baseline)
    # Without the version, equal numbers are equal bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
    return True


def _draw_effects(axes: Axes, metric: str, group: list[Comparison], *, baseline: str) -> None:
    for place, each in enumerate(group):
        effect = each.effect
        assert effect is not None
        colour = _COLOUR if each.standing in ("better", "worse", "different") else _GREY
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [place, place], color=colour, linewidth=2)
        axes.plot(effect.value, place, "o", color=colour, markersize=5)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(group)), [each.variant for each in group], fontsize=8)
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.set_xlabel(f"{metric}: variant less {baseline}, 95 % interval", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.2)


def _row(role: str, each: Comparison) -> dict[str, Any]:
    effect = each.effect
    return {
        "variant": each.variant,
        "metric": each.metric,
        "kind": role,
        "verdict": str(each.verdict) if each.verdict else None,
        "standing": str(each.standing),
        "baseline": each.baseline,
        "effect": effect.value if effect else None,
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "p": effect.p if effect else None,
        "corrected p": each.corrected_p,
        "matters from": each.relevant,
        "smallest detectable": each.detectable,
        "seeds": effect.seeds if effect else None,
        "examples": effect.examples if effect else None,
        "missing": each.missing,
    }


def _settings(study: Study) -> dict[str, Any]:
    plan = study.plan
    return {
        "baseline": plan.baseline,
        "primary": plan.primary,
        "answers_primary": plan.answers_primary,
        "relevant": plan.relevant,
        "budget": plan.budget,
        "seeds": plan.seeds,
        "tips": plan.tips,
        "left_out": plan.left_out,
    }


def _numbers(study: Study) -> dict[str, Any]:
    """The study in W&B's summary: how much of it there is, and every primary effect."""
    return {
        "study/variants": len(study.variants),
        "study/cells": len(study.cells),
        "study/finished_cells": sum(len(each.finished) for each in study.variants),
        "study/warnings": study.warnings,
        **{
            f"effect/{each.variant}": each.effect.value
            for each in study.comparisons
            if each.effect is not None
        },
    }
