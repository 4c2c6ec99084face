"""Metrics as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dollyllama.config import SCORES
from dollyllama.evaluation.metric import DETAILS, LENGTHS, Metric

#: In their own unit, with how many decimals; everything else is a share from 0 to 1.
_DECIMALS = {"loss": 3, "tokens": 1}

#: What is better when it falls; the rest but lengths is better when it rises.
LOWER_IS_BETTER = frozenset({"loss"})

#: What graders say of an answer where its reference lets them; ``passes`` wants tests.
_SCORES = frozenset(name for names in SCORES.values() for name in names) - {"passes"}

#: Standard errors beyond which a change is called one: about 95 % when nothing has changed.
_NOISE = 1.96


def compare_table(
    before: Sequence[Metric] | None,
    after: Sequence[Metric],
    *,
    primary: str | None = None,
) -> str:
    """Metrics before and after training side by side; only ``after`` when there is no before.

    primary: the metric that decides, which goes first.

    Shares are shown in percent. A change is "better" or "worse" when it exceeds 1.96 standard
    errors of the difference, taken as if the two were measured on different examples: where answers
    to one example go together, that overstates the error and errs towards "within noise". Below
    stands how many answers' questions a score could not be given to.
    """
    earlier = {metric.name: metric for metric in before or ()}
    names = [*earlier, *(metric.name for metric in after if metric.name not in earlier)]
    names = [name for name in names if _what(name) not in DETAILS]
    names.sort(key=lambda name: name != primary)
    later = {metric.name: metric for metric in after}
    if before is None:
        titles = ["", "value", "n"]
        rows = [[name, _value(later[name]), str(later[name].n)] for name in names]
    else:
        titles = ["", "before", "after", "change", "", "n"]
        rows = [_row(name, earlier.get(name), later.get(name)) for name in names]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    verdict = 4

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column in (0, verdict) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([*(line(row) for row in [titles, *rows]), *_not_scored(after)])


def _not_scored(metrics: Sequence[Metric]) -> list[str]:
    """A line on the scores that fewer questions have than were answered; [] where all have them."""
    asked = {
        source: metric.n
        for metric in metrics
        for what, _, source in [metric.name.partition("/")]
        if what == "tokens"
    }
    missing = [
        f"{metric.name} {asked[source] - metric.n} of {asked[source]}"
        for metric in metrics
        for what, _, source in [metric.name.partition("/")]
        if what in _SCORES and metric.n < asked.get(source, 0)
    ]
    return [f"not scored, for their references: {', '.join(missing)}"] if missing else []


def _row(name: str, before: Metric | None, after: Metric | None) -> list[str]:
    if before is None or after is None:
        count = after or before
        assert count is not None
        return [name, _value(before), _value(after), "", "", str(count.n)]
    change = after.value - before.value
    decimals = _DECIMALS.get(_what(name))
    shown = f"{100 * change:+z.1f} %" if decimals is None else f"{change:+z.{decimals}f}"
    n = str(after.n) if before.n == after.n else f"{before.n}, {after.n}"
    return [name, _value(before), _value(after), shown, _verdict(name, before, after), n]


def _verdict(name: str, before: Metric, after: Metric) -> str:
    if before.standard_error is None or after.standard_error is None or _what(name) in LENGTHS:
        return ""
    change = after.value - before.value
    if abs(change) <= _NOISE * math.hypot(before.standard_error, after.standard_error):
        return "within noise"
    return "better" if (change < 0) == (_what(name) in LOWER_IS_BETTER) else "worse"


def _what(name: str) -> str:
    return name.partition("/")[0]


def _value(metric: Metric | None) -> str:
    """The value and its standard error; a dash where nothing was measured."""
    if metric is None:
        return "-"
    error = metric.standard_error
    if (decimals := _DECIMALS.get(_what(metric.name))) is not None:
        shown = f"{metric.value:.{decimals}f}"
        return shown + ("" if error is None else f" ± {error:.{decimals}f}")
    return f"{100 * metric.value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"
