"""Pictures of one run, drawn from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollyllama.evaluation.metric import DETAILS, LENGTHS
from dollyllama.files import parse_json, read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe & Ito's colours, which readers with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#999999"
#: The share of the logged steps that one smoothed point averages over.
_WINDOW_SHARE = 0.05


def loss_curve(folder: Path, path: Path) -> None:
    """Draw a run's training loss, held-out losses and scores into the PNG file ``path``.

    Left, by optimizer step: the loss of the logged steps, a running mean of it, and the held-out
    loss of every source wherever it was measured. Right, when answers were graded: every score
    before and after training, with its standard error.
    ValueError when the run logged no training loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_json_lines(folder / "metrics.jsonl")
    scores = _scores(folder)
    # Two bars a score, each with its number: they need room.
    size = (10 if scores else 6, max(3.8, 0.36 * len(scores)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if scores:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_scores(right, scores)
    else:
        left = figure.subplots()
    _draw_losses(left, lines, folder)
    temporary = path.with_name(f".{path.name}.tmp")
    # Without the date and the version, equal numbers are equal bytes.
    figure.savefig(temporary, format="png", metadata={"Software": None})
    temporary.replace(path)


def running_mean(values: list[float], window: int) -> list[float]:
    """Mean over each value and up to ``window`` on either side of it; fewer towards the ends."""
    means = []
    for place in range(len(values)):
        reach = min(window, place, len(values) - 1 - place)
        near = values[place - reach : place + reach + 1]
        means.append(sum(near) / len(near))
    return means


def _draw_losses(axes: Axes, lines: list[dict[str, Any]], folder: Path) -> None:
    trained = [line for line in lines if line.get("train/loss") is not None]
    if not trained:
        raise ValueError(f"{folder / 'metrics.jsonl'} has no training loss to draw")
    steps = [line["step"] for line in trained]
    losses = [line["train/loss"] for line in trained]
    smooth = running_mean(losses, max(1, round(len(losses) * _WINDOW_SHARE)))
    axes.plot(steps, losses, color=_GREY, alpha=0.4, linewidth=0.8)
    axes.plot(steps, smooth, color=_GREY, linewidth=2, label="training")
    names = sorted({name for line in lines for name in line if name.startswith("loss/")})
    for number, name in enumerate(names):
        measured = [line for line in lines if line.get(name) is not None]
        axes.plot(
            [line["step"] for line in measured],
            [line[name] for line in measured],
            "o--",
            color=_COLOURS[number % len(_COLOURS)],
            linewidth=1,
            markersize=5,
            label=f"held out: {name.removeprefix('loss/')}",
        )
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token", title="Loss")
    axes.set_ylim(bottom=0)
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8)


def _scores(folder: Path) -> list[tuple[str, dict[str, Any] | None, dict[str, Any]]]:
    """Name, metric before and metric after for every score that ended up measured.

    Loss, lengths and details are left out.
    """
    path = folder / "result.json"
    if not path.exists():
        return []
    metrics = parse_json(path.read_text(encoding="utf-8"))["metrics"]
    before = {metric["name"]: metric for metric in metrics.get("before", [])}
    return [
        (metric["name"], before.get(metric["name"]), metric)
        for metric in metrics.get("after", [])
        if metric["name"].partition("/")[0] not in {"loss", *DETAILS, *LENGTHS}
        if metric["value"] is not None
    ]


def _draw_scores(
    axes: Axes, scores: list[tuple[str, dict[str, Any] | None, dict[str, Any]]]
) -> None:
    height = 0.38
    for place, (_, before, after) in enumerate(scores):
        for metric, offset, colour in ((before, -height, _GREY), (after, 0.0, _COLOURS[0])):
            if metric is not None and metric["value"] is not None:
                bars = axes.barh(
                    place + offset + height / 2,
                    metric["value"],
                    height,
                    color=colour,
                    xerr=metric["standard_error"] or None,
                    error_kw={"elinewidth": 1, "ecolor": "#333333"},
                    label=("before" if offset else "after") if place == 0 else None,
                )
                axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(scores)), [name for name, _, _ in scores])
    axes.set_ylim(len(scores) - 0.4, -1.6)  # from top to bottom, with room for the legend
    axes.set_xlim(0, 1)
    axes.set(xlabel="score, ± standard error", title="Held-out answers")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncol=2)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
