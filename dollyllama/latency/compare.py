"""Timings of several sides as medians, as ratios of paired rounds, and as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: The least share of cases in which an interval is to hold the true median.
MIN_COVERAGE = 0.9

#: Fewer rounds have no interval of that coverage: 1 - 2 / 2**4 is 0.875.
MIN_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """What one answer of a batch took.

    first_seconds: the prompt's pass and the first token. next_seconds: the mean from one further
    token of a row to the next. tokens_per_second: tokens of all rows over the whole time.
    growth_mib: peak memory beyond what was held before, None where that cannot be measured.
    """

    first_seconds: float
    next_seconds: float
    tokens_per_second: float
    growth_mib: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """The timings of each side by round, at one size of batch and context (tokens a row)."""

    batch: int
    context: int
    sides: dict[str, list[Timing]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it, interpolated between the values as NumPy does."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of paired ratios and its interval, which has at least ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """How many times ``below`` the values ``above`` are, round by round; at least MIN_ROUNDS.

    The interval lies between two order statistics of the rounds' ratios: the sign test's, which
    takes the rounds for independent and their distribution for nothing in particular (David and
    Nagaraja 2003, Order Statistics, section 7.1). It is the shortest that covers MIN_COVERAGE.
    """
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    n = len(ratios)
    left_out = 0  # ratios at either end
    while _coverage(n, left_out + 1) >= MIN_COVERAGE:
        left_out += 1
    return Ratio(
        median=statistics.median(ratios),
        low=ratios[left_out],
        high=ratios[n - 1 - left_out],
        coverage=_coverage(n, left_out),
    )


def _coverage(n: int, left_out: int) -> float:
    """How probably a median lies within n draws less so many at either end."""
    return float(1 - 2 * sum(math.comb(n, k) for k in range(left_out + 1)) / 2**n)


def latency_table(cells: Sequence[Cell], weights_mib: Mapping[str, float]) -> str:
    """Medians with quartiles, a line for each cell and side; without memory where it has none."""
    rows = [["batch", "context", "side", *_TITLES]]
    for cell in cells:
        for side, timings in cell.sides.items():
            growth = [each.growth_mib for each in timings if each.growth_mib is not None]
            rows.append(
                [
                    str(cell.batch),
                    str(cell.context),
                    side,
                    _milliseconds([each.first_seconds for each in timings]),
                    _milliseconds([each.next_seconds for each in timings]),
                    f"{statistics.median(each.tokens_per_second for each in timings):.1f}",
                    f"{weights_mib[side]:.1f}",
                    f"{statistics.median(growth):.1f}" if growth else "",
                ]
            )
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    side_column = 2
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == side_column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


_TITLES = ("first token, ms", "further token, ms", "tokens/s", "weights, MiB", "beside them, MiB")


def verdict(cell: Cell) -> str:
    """Whether merging paid in one cell: the adapter's time per further token over the merged's."""
    ratio = adapter_over_merged(cell)
    if ratio.low <= 1 <= ratio.high:
        said = "within noise"
    else:
        said = "merging pays" if ratio.low > 1 else "merging costs time"
    return (
        f"batch {cell.batch}, context {cell.context}: {said}; the adapter takes "
        f"{ratio.median:.3f} times the merged model's time per further token "
        f"({ratio.low:.3f} to {ratio.high:.3f}, {100 * ratio.coverage:.1f} % interval)"
    )


def adapter_over_merged(cell: Cell) -> Ratio:
    """The ratio that ``verdict`` is about."""
    adapter, merged = (
        [each.next_seconds for each in cell.sides[side]] for side in ("adapter", "merged")
    )
    return paired_ratio(adapter, merged)


def _milliseconds(seconds: Sequence[float]) -> str:
    found = spread(seconds)
    return f"{1e3 * found.median:.2f} ({1e3 * found.low:.2f}–{1e3 * found.high:.2f})"
