"""What a study can find, told before it runs from cells that are done."""

from __future__ import annotations

from statistics import median

from dollyllama.study.analyse import Comparison, Study
from dollyllama.study.compare import ALPHA, detectable, seeds_needed
from dollyllama.study.wording import size


def power_lines(study: Study, *, seeds: int, comparisons: int) -> list[str]:
    """A line a primary metric: the effects that ``seeds`` find 4 times in 5, and the seeds that a
    relevant one needs.

    From the spread between seeds and examples of the finished cells of ``study``; p-values
    corrected for ``comparisons`` (the first of Holm's steps). Medians over the variants that have
    an interval; empty without any.
    """
    by_metric: dict[str, list[Comparison]] = {}
    for each in study.comparisons:
        if each.effect is not None and each.effect.standard_error:
            by_metric.setdefault(each.metric, []).append(each)
    alpha = ALPHA / max(1, comparisons)
    lines = []
    for metric, found in sorted(by_metric.items()):
        effects = [each.effect for each in found if each.effect is not None]
        smallest = [detectable(effect, seeds=seeds, alpha=alpha) for effect in effects]
        known = [value for value in smallest if value is not None]
        relevant = median(each.relevant for each in found)
        needed = [seeds_needed(effect, relevant, alpha=alpha) for effect in effects]
        # None, more seeds than can be had, comes after every number.
        needed.sort(key=lambda number: float("inf") if number is None else number)
        count = needed[len(needed) // 2]
        lines.append(
            f"{metric}: {seeds} seeds find an effect of {size(metric, median(known))} 4 times in 5"
            if known
            else f"{metric}: {seeds} seeds find nothing"
        )
        lines[-1] += f"; the smallest that matters, {size(metric, relevant)}, " + (
            f"needs {count} seeds" if count else "more seeds do not find: it needs more examples"
        )
    return lines
