"""What a study can find, told before it runs from cells that are done."""

from __future__ import annotations

import math
from statistics import median

from dollyllama.study.analyse import Comparison, Study
from dollyllama.study.compare import ALPHA, detectable, seeds_needed
from dollyllama.study.wording import size


def power_lines(study: Study, *, seeds: int) -> list[str]:
    """What ``seeds`` find 4 times in 5, and the seeds that the smallest relevant effect needs.

    A line for the claims, one for the other variants and one for what they do together, for each
    metric that decides: p-values are corrected within these, which share the error rate (the first
    of Holm's steps counts). From the spread between seeds and examples of the finished cells of
    ``study``, medians over what has an interval.
    """
    families: dict[tuple[str, str], list[Comparison]] = {}
    for variant in study.variants:
        if variant.comparison is not None:
            name = "other variants" if variant.tip is None else "claims"
            families.setdefault((name, variant.comparison.metric), []).append(variant.comparison)
    for comparison in study.joint:
        name = "factors" if study.plan.factors else "interactions"
        families.setdefault((name, comparison.metric), []).append(comparison)
    sizes = {
        name: sum(len(found) for (other, _), found in families.items() if other == name)
        for name, _ in families
    }
    lines = []
    for (name, metric), found in sorted(families.items()):
        known = [each for each in found if each.effect is not None and each.effect.standard_error]
        if known:
            told = _told(known, metric, seeds=seeds, alpha=ALPHA / (len(sizes) * sizes[name]))
            lines.append(f"{name}, {metric}: {told}")
    return lines


def _told(found: list[Comparison], metric: str, *, seeds: int, alpha: float) -> str:
    effects = [each.effect for each in found if each.effect is not None]
    smallest = [detectable(effect, seeds=seeds, alpha=alpha) for effect in effects]
    known = [value for value in smallest if value is not None]
    if not known:
        return f"{seeds} seeds find nothing"
    told = f"{seeds} seeds find an effect of {size(metric, median(known))} 4 times in 5"
    if (relevant := median(each.relevant for each in found)) == 0:
        return told
    # More seeds than can be had come after every number.
    needed = sorted(seeds_needed(each, relevant, alpha=alpha) or math.inf for each in effects)
    count = needed[len(needed) // 2]
    wanted = f"{count} seeds" if math.isfinite(count) else "over 1,000 seeds, if not more examples"
    return f"{told}; the smallest that matters, {size(metric, relevant)}, needs {wanted}"
