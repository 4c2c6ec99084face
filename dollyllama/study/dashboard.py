"""The views of a study as a W&B workspace and a W&B report, made from its folder alone.

Both have a section each for quality, cost, stability and samples; the report begins with the
effects that ``summary_run`` logs. wandb-workspaces (the extra ``dashboard``) builds them, and
is imported where it is used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollyllama import tracking
from dollyllama.study.records import Cell, Plan, head_scores, read_sweep

#: The tables, pictures and pages that the runs of a study and its summary log.
SAMPLES = "samples/after"
EFFECTS, FOREST, REPORT = "effects", "forest", "report"
#: W&B's job type of the run that sums a study up; its cells have others.
STUDY_JOB = "study"
#: Where ``open_tracker`` puts the variant into W&B's config.
VARIANT = "study.variant"

#: W&B's grids are 24 columns wide.
_WIDE, _HALF, _HEIGHT = 24, 12, 8
#: W&B shows ten lines and twenty bars unless told otherwise.
_MAX_RUNS, _MAX_BARS = 500, 100


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What a dashboard shows: the W&B group of the runs, and the metrics, the primary ones first.

    project, entity: where the runs are; None for W&B's own default.
    """

    plan: Plan
    project: str
    entity: str | None
    group: str
    metrics: list[str]


def read_dashboard(folder: Path, *, project: str | None, entity: str | None) -> Dashboard:
    """Read what the dashboard of the sweep in ``folder`` shows.

    project, entity: in place of those in the configs of its cells. ValueError when ``folder`` holds
    no run, nothing is measured yet, or its runs were kept from W&B.
    """
    plan, cells = read_sweep([folder])
    metrics = _metrics(plan, cells)
    if not metrics:
        raise ValueError(f"no cell of {folder} has measured anything yet: wait for the first one")
    settings = [cell.config["tracking"] for cell in cells if cell.config.get("tracking")]
    tracked = [each for each in settings if each["wandb"] != "disabled"]
    if not tracked and project is None:
        raise ValueError(
            f"the runs of {folder} were not given to W&B (tracking.wandb=disabled): there is "
            f"nothing to show there, unless --project says where they are"
        )
    own = tracked[0] if tracked else {"project": None, "entity": None, "group": None}
    return Dashboard(
        plan=plan,
        project=project or str(own["project"]),
        entity=entity or own["entity"],
        group=own["group"] or tracking.study_group(folder),
        metrics=metrics,
    )


def specification(dashboard: Dashboard) -> dict[str, Any]:
    """The workspace and the report as W&B stores them: JSON-like, made without network."""
    return {
        "entity": dashboard.entity,
        "project": dashboard.project,
        "group": dashboard.group,
        # The package's only way to what it would send, short of sending it.
        "workspace": _dump(_workspace(dashboard)._to_model().spec),
        "report": _dump(_report(dashboard)._to_model().spec),
    }


def publish(dashboard: Dashboard) -> list[str]:
    """Save workspace and report on W&B; returns their addresses.

    ValueError in one line when nobody is logged in, or W&B refuses or does not answer.
    """
    if not tracking.is_logged_in():
        raise ValueError("nobody is logged in to W&B here: run `wandb login`, then this again")
    import wandb
    from requests import RequestException

    made = [_workspace(dashboard), _report(dashboard)]
    try:
        entity = dashboard.entity or wandb.Api().default_entity
        for each in made:
            each.entity = entity
            each.save()
    except (wandb.errors.Error, RequestException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"W&B does not take the dashboard: {reason}") from error
    return [str(each.url) for each in made]


def _metrics(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """The metrics worth a panel: the primary ones, then the loss and the head score of a source."""
    measured = {
        metric["name"] for cell in cells for metric in _after(cell) if metric["value"] is not None
    }
    losses = sorted(name for name in measured if name.startswith("loss/"))
    wanted = [plan.primary, plan.answers_primary, *losses, *head_scores(cells)]
    return [name for name in dict.fromkeys(wanted) if name in measured]


def _after(cell: Cell) -> list[dict[str, Any]]:
    return list(cell.result.get("metrics", {}).get("after", []))


def _sections(dashboard: Dashboard) -> dict[str, list[Any]]:
    """Panels by section; every bar and line is a variant, its seeds averaged."""
    import wandb_workspaces.reports.v2 as wr

    variant = wr.Config(VARIANT)
    half, wide = wr.Layout(w=_HALF, h=_HEIGHT), wr.Layout(w=_WIDE, h=2 * _HEIGHT)
    primary = dashboard.metrics[0]

    def bars(metric: str, spread: str, title: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[metric],
            groupby=variant,
            groupby_aggfunc="mean",
            groupby_rangefunc=spread,
            max_runs_to_show=_MAX_RUNS,
            max_bars_to_show=_MAX_BARS,
            layout=half,
        )

    def lines(metric: str, spread: str, title: str) -> Any:
        return wr.LinePlot(
            title=title,
            x="Step",
            y=[metric],
            groupby=variant,
            groupby_aggfunc="mean",
            groupby_rangefunc=spread,
            max_runs_to_show=_MAX_RUNS,
            layout=half,
        )

    return {
        "Quality": [
            *(
                bars(name, "stderr", f"{name}: mean and standard error over seeds")
                for name in dashboard.metrics
            ),
            lines("train/loss", "stderr", "training loss: mean and standard error over seeds"),
        ],
        "Cost": [
            *(
                bars(name, "minmax", f"{name}: mean and range over seeds")
                for name in tracking.COSTS
            ),
            wr.ScatterPlot(
                title=f"{primary} against the seconds of training",
                x=wr.SummaryMetric("cost/training_seconds"),
                y=wr.SummaryMetric(primary),
                layout=half,
            ),
        ],
        "Stability": [
            bars(primary, "minmax", f"{primary}: mean and range over seeds"),
            lines("train/loss", "minmax", "training loss: mean and range over seeds"),
            lines("train/grad_norm", "minmax", "gradient norm: mean and range over seeds"),
        ],
        "Samples": [wr.WeavePanelSummaryTable(table_name=SAMPLES, layout=wide)],
    }


def _cells_of(dashboard: Dashboard) -> Any:
    """W&B's filter for the cells of the study."""
    from wandb_workspaces import expr

    in_group = expr.Metric("Group") == dashboard.group
    return expr.And(in_group, expr.Metric("JobType") != STUDY_JOB)


def _columns(dashboard: Dashboard) -> list[str]:
    first, _, rest = VARIANT.partition(".")
    return [
        "run:displayName",
        "run:state",
        f"config:{first}.value.{rest}",
        "config:seed.value",
        *(f"summary:{name}" for name in dashboard.metrics[:2]),
    ]


def _workspace(dashboard: Dashboard) -> Any:
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=dashboard.entity or "",
        project=dashboard.project,
        name=f"Study {_without_symbols(dashboard.group)}",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections(dashboard).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_cells_of(dashboard),
            groupby=[expr.Config(VARIANT)],
            pinned_columns=_columns(dashboard),
        ),
    )


def _without_symbols(text: str) -> str:
    """W&B takes them for emojis, and refuses a "=" from a folder that is named by overrides."""
    return "".join(" " if unicodedata.category(each).startswith("S") else each for each in text)


def _report(dashboard: Dashboard) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    # A run set without entity and project is that of the report's own project.
    study = wr.Runset(
        name="the study",
        filters=expr.And(
            expr.Metric("Group") == dashboard.group, expr.Metric("JobType") == STUDY_JOB
        ),
    )
    cells = wr.Runset(
        name="cells",
        filters=_cells_of(dashboard),
        groupby=[f"config.{VARIANT}"],
        pinned_columns=_columns(dashboard),
    )
    low, high = wr.Layout(w=_WIDE, h=_HEIGHT), wr.Layout(w=_WIDE, h=2 * _HEIGHT)
    blocks = [
        wr.P(_opening(dashboard)),
        wr.H2("Effects"),
        wr.PanelGrid(
            runsets=[study],
            panels=[
                wr.WeavePanelSummaryTable(table_name=EFFECTS, layout=low),
                wr.MediaBrowser(media_keys=[FOREST], num_columns=1, layout=high),
            ],
        ),
    ]
    for name, panels in _sections(dashboard).items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[cells], panels=panels)]
    return wr.Report(
        entity=dashboard.entity or "",
        project=dashboard.project,
        title=f"Study {dashboard.group}"[:128],
        description=_opening(dashboard),
        blocks=blocks,
        width="fluid",
    )


def _opening(dashboard: Dashboard) -> str:
    plan = dashboard.plan
    seeds = ", ".join(map(str, plan.seeds))
    primary = f" {plan.primary} was chosen beforehand to decide." if plan.primary else ""
    return (
        f"Every variant is compared with {plan.baseline}, over the seeds {seeds}.{primary} Effects "
        f"are paired by seed and held-out example; bars and lines here are not."
    )


def _dump(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
