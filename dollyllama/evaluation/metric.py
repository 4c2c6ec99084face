"""A measured number, how far to trust it, and on how many examples it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Metrics that the record has and a reader can do without: what ``diversity`` is made of.
DETAILS = frozenset({"distinct_1", "distinct_2", "rep_2", "rep_3", "rep_4", "words"})

#: Counts, neither good nor bad.
LENGTHS = frozenset({"words", "tokens"})


@dataclass(frozen=True, slots=True)
class Metric:
    """``name`` is ``<what>/<source>``; ``standard_error`` is over examples, None below two."""

    name: str
    value: float
    standard_error: float | None
    n: int


def mean_metric(name: str, scores: Sequence[float]) -> Metric:
    """The mean of at least one score and its standard error, sd / sqrt(n) with n - 1 in the sd."""
    n = len(scores)
    mean = math.fsum(scores) / n
    if n < 2:
        return Metric(name, mean, None, n)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (n - 1)
    return Metric(name, mean, math.sqrt(variance / n), n)


def ratio_metric(name: str, totals: Sequence[float], sizes: Sequence[float]) -> Metric:
    """Sum of totals over sum of sizes, for examples of unequal size (tokens), and its error.

    The error is that of the ratio estimator (Cochran 1977, Sampling Techniques, eq. 6.13, without
    the finite-population term): examples are the independent units, not the tokens in them.
    """
    n, size = len(totals), math.fsum(sizes)
    ratio = math.fsum(totals) / size
    if n < 2:
        return Metric(name, ratio, None, n)
    residuals = (total - ratio * own for total, own in zip(totals, sizes, strict=True))
    squares = math.fsum(residual**2 for residual in residuals)
    return Metric(name, ratio, math.sqrt(squares * n / (n - 1)) / size, n)
