"""A sweep before it runs: which cells, what is left out and why, what it may cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from heapq import heapreplace
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from dollyllama import config
from dollyllama.files import check_inner, read_signed_json, write_signed_json
from dollyllama.redact import redact
from dollyllama.study.cells import (
    Planned,
    finished_cells,
    finished_twin,
    is_settled,
    read_result,
    variant_name,
)

PLAN_FILE = "sweep.json"


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the sweep: the overrides of the axes, and its config or why there is none."""

    overrides: list[str]
    run: config.Run | None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """cells: in the order of the sweep. left_out: a variant and the reason, in one line.

    refused: jobs whose config is impossible, and why; the user is to mend them.
    """

    cells: list[Planned]
    left_out: dict[str, str]
    refused: list[tuple[list[str], str]]
    baseline: str
    settings: config.Sweep
    primary: str | None
    budget: str
    steps: int | None
    tracking: config.Tracking


def plan_study(jobs: Sequence[tuple[Job, Planned | None]]) -> StudyPlan:
    """Check a sweep as a whole. The first job that can run is the baseline.

    ValueError in one line for a seed that is given twice, an axis that changes nothing, and an
    ``answers_primary`` that is not measured.
    """
    possible = [(job.overrides, job.run) for job, _ in jobs if job.run is not None]
    if not possible:
        _refuse_all([job for job, _ in jobs])
    overrides, first = possible[0]
    settings = first.sweep
    baseline = variant_name(overrides)
    cells: list[Planned] = []
    left_out: dict[str, str] = {}
    refused: list[tuple[list[str], str]] = []
    by_key: dict[str, Planned] = {}
    for job, planned in jobs:
        if planned is None:
            variant = variant_name(job.overrides)
            if variant in settings.optional:
                left_out[variant] = str(job.refused)
            else:
                refused.append((job.overrides, str(job.refused)))
            continue
        twin = by_key.setdefault(planned.fingerprint, planned)
        if twin is planned:
            cells.append(planned)
        elif twin.variant == planned.variant:
            raise ValueError(
                f"seed {planned.seed} of {planned.variant} is there twice: "
                f"{' '.join(job.overrides)}"
            )
        else:
            left_out[planned.variant] = f"the same as {twin.variant}: it changes nothing"
    variants = {cell.variant for cell in cells}
    if len(variants) == 1 and left_out and not refused:
        raise ValueError(
            f"nothing is varied: {'; '.join(f'{name} is {why}' for name, why in left_out.items())}"
        )
    _check_answers(cells, settings, first, baseline)
    return StudyPlan(
        cells=cells,
        left_out=left_out,
        refused=refused,
        baseline=baseline,
        settings=settings,
        primary=first.evaluation.primary,
        budget=" or ".join(dict.fromkeys(budget_of(run.trainer) for _, run in possible)),
        steps=first.trainer.max_steps,
        tracking=first.tracking,
    )


def _refuse_all(jobs: Sequence[Job]) -> NoReturn:
    if not jobs:
        raise ValueError("the sweep has no cells: an axis has no values")
    reasons = Counter(job.refused for job in jobs)
    reason, count = reasons.most_common(1)[0]
    raise ValueError(f"no cell can run: {reason}" + (f" ({count} cells)" if count > 1 else ""))


def _check_answers(
    cells: Sequence[Planned], settings: config.Sweep, run: config.Run, baseline: str
) -> None:
    """Refuse variants that share the baseline's adapter and have no metric to be judged by."""
    trained = {cell.training for cell in cells if cell.variant == baseline}
    answering = [c.variant for c in cells if c.training in trained and c.variant != baseline]
    if not answering:
        return
    if settings.answers_primary is None:
        raise ValueError(
            f"{answering[0]} changes the answers alone, not the loss: name the metric that "
            f"decides, sweep.answers_primary=score/all"
        )
    measured = run.measured()
    if settings.answers_primary not in measured:
        raise ValueError(
            f"sweep.answers_primary={settings.answers_primary} is not measured: there are "
            f"{', '.join(measured)}; evaluation.generate_examples says how many are answered"
        )


def budget_of(trainer: config.Trainer) -> str:
    """What every cell has in common: "48 steps of 8 rows"."""
    rows = trainer.batch_size * trainer.accumulation
    if trainer.max_steps is not None:
        steps = "1 step" if trainer.max_steps == 1 else f"{trainer.max_steps:,} steps"
        return f"{steps} of {rows} rows"
    if trainer.max_tokens is not None:
        return f"{trainer.max_tokens:,} training tokens in steps of {rows} rows"
    if trainer.max_seconds is not None:
        return f"as many steps of {rows} rows as fit into {trainer.max_seconds:g} s"
    return f"{trainer.epochs:g} epochs in steps of {rows} rows"


def write_plan(plan: StudyPlan, folder: Path, command: Sequence[str]) -> None:
    """Write ``sweep.json``, from which the report knows what was asked for.

    What decides, and the seeds, are kept as they were when the first cell was finished, beside what
    is asked for now.
    """
    seeds = sorted({cell.seed for cell in plan.cells})
    judging = {
        "baseline": plan.baseline,
        "primary": plan.primary,
        "answers_primary": plan.settings.answers_primary,
        "relevant": plan.settings.relevant,
        "tips": plan.settings.tips,
        "better": plan.settings.better,
    }
    write_signed_json(
        folder / PLAN_FILE,
        {
            "command": redact(list(command)),
            "seeds": seeds,
            **judging,
            "judged_first": _judged_first(folder, {**judging, "seeds": seeds}),
            "factors": plan.settings.factors,
            "budget": plan.budget,
            "cells": [asdict(cell) for cell in plan.cells],
            "left_out": redact(
                plan.left_out
                | {variant_name(overrides): reason for overrides, reason in plan.refused}
            ),
        },
    )


def _judged_first(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What was to decide when the first cell was finished; what is ``now``, where none is."""
    if not any(finished_cells(folder)):
        return now
    try:
        before = read_signed_json(folder / PLAN_FILE)
    except (OSError, ValueError):
        return now
    return before.get("judged_first") or {key: before.get(key) for key in now}


def read_plan(folder: Path) -> list[Planned]:
    """The cells of ``sweep.json``. ValueError when it is missing or damaged."""
    path = folder / PLAN_FILE
    try:
        cells = [Planned(**cell) for cell in read_signed_json(path)["cells"]]
        for cell in cells:
            check_inner(cell.folder)
        return cells
    except FileNotFoundError:
        raise ValueError(f"{folder} is no sweep folder: it has no {PLAN_FILE}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def plan_text(plan: StudyPlan, folder: Path, *, at_once: int) -> str:
    """The plan for the terminal: cells by variant, what is done, and what the rest may take."""
    done = {cell.folder for cell in plan.cells if is_settled(folder / cell.folder)}
    left = [cell for cell in plan.cells if cell.folder not in done]
    there = [cell for cell in left if finished_twin(folder.absolute() / cell.folder, cell)]
    rows = [("variant", "seeds", "done", "")]
    for variant in dict.fromkeys(cell.variant for cell in plan.cells):
        own = [cell for cell in plan.cells if cell.variant == variant]
        count = sum(cell.folder in done for cell in own)
        note = "baseline" if variant == plan.baseline else ""
        rows.append((variant, ",".join(str(cell.seed) for cell in own), str(count), note))
    rows += [(variant, "", "", f"left out: {why}") for variant, why in plan.left_out.items()]
    refused = dict.fromkeys((variant_name(overrides), why) for overrides, why in plan.refused)
    rows += [(variant, "", "", f"refused: {why}") for variant, why in refused]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    ]
    lines += ["", f"{len(plan.cells)} cells in {folder}, {len(done)} of them done; {plan.budget}"]
    if there:
        lines.append(f"{len(there)} others are done in a sweep beside it, and will be copied")
    first = {cell.training: cell.folder for cell in reversed(plan.cells)}
    to_run = [cell for cell in left if cell not in there]
    train = sum(first[cell.training] == cell.folder for cell in to_run)
    costs = _costs_like(folder, plan.budget)
    lines.append(_estimate(train, len(to_run) - train, costs, at_once))
    if done:
        # Not needed to start a sweep, which imports nothing heavy.
        from dollyllama.study.analyse import analyse
        from dollyllama.study.power import power_lines
        from dollyllama.study.records import read_sweep

        seeds = len({cell.seed for cell in plan.cells})
        lines += power_lines(analyse(*read_sweep([folder])), seeds=seeds)
    else:
        lines.append("what it can find is told here once some cells are done")
    return "\n".join(lines)


def search_text(
    ranges: Mapping[str, str], trials: int | None, run: config.Run, *, folder: Path, at_once: int
) -> str:
    """A search for the terminal: what it chooses from, what is there, what the rest may take.

    ranges: by key, in the sweeper's words. trials: None where the sweeper does not say how many.
    """
    budget = budget_of(run.trainer)
    # One that was ended on its way would be ended there again.
    cells = [file.parent for file in folder.glob("*/result.json")]
    there = sum(is_settled(cell, lambda _: "again") for cell in cells)
    width = max(map(len, ranges), default=0)
    lines = [f"{key:{width}}  {values}" for key, values in ranges.items()]
    many = "cells are proposed" if trials is None else f"{trials} cells are proposed"
    lines += ["", f"{many} in {folder}, {there} are there; {budget}"]
    left = 0 if trials is None else max(0, trials - there)
    if trials is not None:
        lines.append(_estimate(left, 0, _costs_like(folder, budget), at_once))
    if left:
        falls = "" if run.sweep.prune_after is None else ", and where one falls behind and is ended"
        lines.append(f"less where a cell is proposed again{falls}")
    return "\n".join(lines)


def _costs_like(folder: Path, budget: str) -> list[_Cost]:
    """What finished cells of this sweep took, or else of sweeps beside it with the same budget."""
    if own := _costs(folder):
        return own
    alike = [sweep for sweep in sorted(folder.parent.glob("*/")) if _budget(sweep) == budget]
    return [cost for sweep in alike for cost in _costs(sweep)]


def _estimate(train: int, answer: int, costs: Sequence[_Cost], at_once: int) -> str:
    """Time and memory of so many cells that train and that only answer, as finished ones took."""
    left = train + answer
    if not left:
        return "nothing is left to run"
    if not costs:
        return (
            "time and memory are told here once the first cell is done; memory before that by "
            "python -m dollyllama plan OVERRIDES"
        )
    seconds = [fmean(own) for trains in (True, False) if (own := _seconds(costs, trains))]
    total = _makespan([seconds[0]] * train + [seconds[-1]] * answer, at_once)
    memory = max(cost.memory_mib for cost in costs)
    return (
        f"about {max(1, round(total / 60))} min for the {left} left, {at_once} at "
        f"once, going by {len(costs)} finished ones; peak memory {memory:,.0f} MiB a cell"
    )


def _makespan(durations: Sequence[float], at_once: int) -> float:
    """When the last one ends where each begins as soon as one of ``at_once`` places is free."""
    ends = [0.0] * at_once
    for duration in durations:
        heapreplace(ends, ends[0] + duration)
    return max(ends)


def _budget(sweep: Path) -> str | None:
    try:
        return str(read_signed_json(sweep / PLAN_FILE)["budget"])
    except (OSError, ValueError, KeyError):
        return None


@dataclass(frozen=True, slots=True)
class _Cost:
    seconds: float
    memory_mib: float
    trained: bool


def _seconds(costs: Sequence[_Cost], trained: bool) -> list[float]:
    return [cost.seconds for cost in costs if cost.trained is trained]


def _costs(sweep: Path) -> list[_Cost]:
    """What the finished cells of a sweep took that were run there, not copied."""
    costs = []
    for cell, about in finished_cells(sweep):
        with suppress(ValueError, KeyError, TypeError):
            result = read_result(cell)
            if about["reused_from"] is None:
                memory = float(result["train"]["peak_memory_mib"])
                seconds = float(result["seconds"]["total"])
                costs.append(_Cost(seconds, memory, about["trained_by"] is None))
    return costs
