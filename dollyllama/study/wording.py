"""Numbers and verdicts of a study in words, the same in terminal, Markdown and page."""

from __future__ import annotations

import math
from collections import Counter

from dollyllama.evaluation.metric import LENGTHS
from dollyllama.study.analyse import COSTS, Comparison, Spread, Standing, Study, Variant, direction
from dollyllama.study.compare import ALPHA, Effect, Verdict
from dollyllama.study.records import CellStatus

#: What a cost of ``analyse.COSTS`` is called, its unit, and what to divide by for it.
COST_TITLES: dict[str, tuple[str, str, float]] = {
    "training_seconds": ("training time", "s", 1),
    "training_tokens": ("training tokens", "", 1),
    "tokens_per_second": ("speed", "tokens/s", 1),
    "peak_memory_mib": ("peak memory", "MiB", 1),
    "adapter_bytes": ("adapter", "MiB", 2**20),
    "evaluation_seconds": ("evaluation time", "s", 1),
}
assert tuple(COST_TITLES) == COSTS

#: What the variants of one standing are headed by.
GROUP_TITLES: dict[Standing, str] = {
    Standing.worse: "Worse than the baseline",
    Standing.better: "Better than the baseline",
    Standing.different: "Different from the baseline",
    Standing.no_difference: "Not told apart from the baseline",
    Standing.unknown: "Without an interval",
}

_VERDICT_OF_VARIANT = {
    Verdict.supported: "worse",
    Verdict.contradicted: "better",
    Verdict.not_supported: "no difference that matters",
    Verdict.undecided: "no difference detected",
}


def level(metric: str, value: float) -> str:
    """A value of a metric: losses and lengths in their own unit, the rest in percent."""
    if is_share(metric):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if _is_length(metric) else f"{value:.3f}"


def level_with_interval(metric: str, effect: Effect) -> str:
    """``0.153 (0.131 to 0.175)``, without the interval where there is none."""
    if effect.low is None or effect.high is None:
        return level(metric, effect.value)
    # An interval by Student's t knows nothing of the ends that no value passes.
    most = 1.0 if is_share(metric) else math.inf
    low, high = (level(metric, min(most, max(0.0, end))) for end in (effect.low, effect.high))
    return f"{level(metric, effect.value)} ({low.removesuffix(' %')} to {high})"


def size(metric: str, value: float, *, like: Effect | None = None) -> str:
    """The size of a change without its sign; shares in percentage points.

    like: an effect to whose precision it is rounded.
    """
    scale, unit = (100, " points") if is_share(metric) else (1, "")
    return f"{abs(value) * scale:.{_decimals(metric, like)}f}{unit}"


def change(metric: str, effect: Effect) -> str:
    """``+0.031 (+0.022 to +0.040)``; shares in percentage points."""
    if _is_nothing(effect):
        return "0, exactly"
    scale, unit = (100, " points") if is_share(metric) else (1, "")
    decimals = _decimals(metric, effect)

    def signed(value: float) -> str:
        return _signed(value * scale, decimals)

    if effect.low is None or effect.high is None:
        return f"{signed(effect.value)}{unit}"
    return f"{signed(effect.value)} ({signed(effect.low)} to {signed(effect.high)}){unit}"


def short_change(metric: str, effect: Effect) -> str:
    """``+0.031``, in percentage points without the word: for narrow columns."""
    scale = 100 if is_share(metric) else 1
    decimals = 1 if is_share(metric) else 3
    return _signed(effect.value * scale, decimals)


def amount(name: str, value: float) -> str:
    """A cost of one cell, without its unit."""
    return _number(value / COST_TITLES[name][2])


def cost(name: str, spread: Spread) -> str:
    """A mean with its unit, and the range where the cells differ."""
    _, unit, divisor = COST_TITLES[name]
    mean, low, high = (_number(value / divisor) for value in (spread.mean, spread.low, spread.high))
    shown = mean if low == high else f"{mean} ({low} to {high})"
    return f"{shown} {unit}".rstrip()


def verdict(variant: Variant) -> str:
    """One or two words: on the tip that the variant drops, else on the variant itself."""
    comparison = variant.comparison
    if comparison is None:
        return "baseline"
    if comparison.effect is None:
        return "no result"
    if comparison.effect.low is None:
        return "one seed" if comparison.effect.seeds == 1 else "no interval"
    if comparison.verdict is None:
        return "different" if comparison.standing is Standing.different else ""
    if variant.tip:
        return str(comparison.verdict)
    if comparison.verdict is Verdict.undecided and _is_suggestive(comparison):
        return "not settled"
    return _VERDICT_OF_VARIANT[comparison.verdict]


def finding(variant: Variant) -> str:
    """What was found about a compared variant, with the number: half a sentence."""
    assert variant.comparison is not None
    start = "" if variant.tip is None else "without it " if variant.drops_tip else "with it "
    found = told(variant.comparison, start=start)
    also = variant.diverged
    return found if also is None or also in found else f"{found}; {also}"


def told(comparison: Comparison, *, start: str = "") -> str:
    """A comparison in half a sentence. start: what a clear effect's begins with."""
    effect, metric = comparison.effect, comparison.metric
    if effect is None:
        return f"nothing to compare: {comparison.missing}"
    if effect.low is None or effect.high is None:
        few = "one seed" if effect.seeds == 1 else f"{effect.examples} examples"
        return (
            f"{metric} differs by {change(metric, effect)}, and {few} cannot tell that from chance"
        )
    if comparison.standing in (Standing.worse, Standing.better, Standing.different):
        side = "higher" if effect.value > 0 else "lower"
        low, high = sorted((abs(effect.low), abs(effect.high)))
        found = (
            f"{start}{metric} is {side} by {size(metric, effect.value, like=effect)} "
            f"({_bare(metric, low, effect)} to {_bare(metric, high, effect)})"
        )
        if abs(effect.value) >= comparison.relevant:
            return found
        return (
            f"{found}, less than the {size(metric, comparison.relevant, like=effect)} that matters"
        )
    if _is_nothing(effect):
        return f"no difference in {metric} in any seed or example"
    if comparison.verdict is Verdict.not_supported:
        margin = size(metric, comparison.relevant, like=effect)
        return f"no difference that matters: {change(metric, effect)}, within ±{margin}"
    found = f"no difference detected: {change(metric, effect)}"
    if _is_suggestive(comparison):
        found = f"{change(metric, effect)}, which the correction for many comparisons overrules"
    smallest = detectable(comparison)
    if smallest is None:
        return found
    return f"{found}; {smallest}"


def detectable(comparison: Comparison) -> str | None:
    """What this many seeds and examples would find; None where that is not known."""
    found, metric = comparison.detectable, comparison.metric
    if found is None:
        return None
    if is_share(metric) and found > 1:
        return "no possible effect would have been found"
    # A loss can rise without end, but not fall below 0.
    if direction(metric) < 0 and comparison.baseline is not None and found > comparison.baseline:
        return "no possible improvement would have been found"
    return f"smallest detectable effect {size(metric, found)}"


def _is_suggestive(comparison: Comparison) -> bool:
    """Whether an effect is told from chance by itself, and not among so many comparisons."""
    p, corrected = comparison.effect.p if comparison.effect else None, comparison.corrected_p
    return p is not None and corrected is not None and p < ALPHA <= corrected


def counts(study: Study) -> str:
    """``75 cells: 72 finished, 2 failed, 1 planned``."""
    statuses = Counter(cell.status for cell in study.cells)
    told = ", ".join(f"{statuses[each]} {each}" for each in CellStatus if statuses[each])
    total = sum(statuses.values())
    return f"{total} cell{'' if total == 1 else 's'}: {told}"


def evidence(effect: Effect) -> str:
    """``3 seeds × 217 examples``."""
    seeds = "1 seed" if effect.seeds == 1 else f"{effect.seeds} seeds"
    return f"{seeds} × {effect.examples:,} examples"


def better_is(metric: str) -> str:
    return {1: "higher is better", -1: "lower is better", 0: "neither is better"}[direction(metric)]


def probability(p: float) -> str:
    """A p-value to three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_values(comparison: Comparison) -> str:
    """``0.008, corrected 0.067``; one of them where they are the same, "" without any."""
    effect, corrected = comparison.effect, comparison.corrected_p
    if effect is None or effect.p is None:
        return ""
    raw = probability(effect.p)
    if corrected is None or probability(corrected) == raw:
        return raw
    return f"{raw}, corrected {probability(corrected)}"


def cost_table(study: Study, *, nothing: str = "") -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Titles of what was measured, and each variant with its values, or ``nothing``."""
    names = [name for name in COSTS if any(name in each.costs for each in study.variants)]
    rows = [
        (
            each.name,
            [cost(name, each.costs[name]) if name in each.costs else nothing for name in names],
        )
        for each in study.variants
        if each.costs
    ]
    return [COST_TITLES[name][0] for name in names], rows


def headline(study: Study) -> str:
    """The study in one line."""
    plan = study.plan
    decides = f"{plan.primary} decides" if plan.primary else "no metric decides"
    parts = [plan.budget, counts(study), f"baseline {plan.baseline}", decides]
    return f"{plan.title}: {'; '.join(part for part in parts if part)}"


def tip_lines(study: Study) -> list[str]:
    """A line for each claim that a variant drops, by the claim."""
    return sorted(
        f"{each.tip} — {verdict(each)}: {finding(each)} [{each.name}]"
        for each in study.variants
        if each.tip and each.comparison is not None
    )


def _is_nothing(effect: Effect) -> bool:
    """Whether nothing differs but by the rounding of sums."""
    ends = (effect.value, effect.low, effect.high)
    return all(end is not None and abs(end) < 1e-12 for end in ends)


def _is_length(metric: str) -> bool:
    return metric.partition("/")[0] in LENGTHS


def is_share(metric: str) -> bool:
    """Whether its values are from 0 to 1, told in percent."""
    return not _is_length(metric) and metric.partition("/")[0] != "loss"


def _decimals(metric: str, effect: Effect | None) -> int:
    """So many that the interval's half shows two digits, within what a reader can take in."""
    least, most = (3, 5) if metric.startswith("loss/") else (1, 2)
    if effect is None or effect.low is None or effect.high is None:
        return least
    half = (effect.high - effect.low) / 2 * (100 if is_share(metric) else 1)
    if half <= 0:
        return least
    return min(most, max(least, 1 - math.floor(math.log10(half))))


def _bare(metric: str, value: float, like: Effect) -> str:
    return size(metric, value, like=like).removesuffix(" points")


def _signed(value: float, decimals: int) -> str:
    """With a true minus sign, as wide as the plus; without one where it rounds to 0."""
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
