"""How far the intervals, p-values and power of ``dollyllama.study.compare`` can be trusted.

    OMP_NUM_THREADS=1 python -m benchmarks.intervals [--simulations 3000]

Whole studies are made up with a known effect and analysed by the code that analyses real ones.
What varies is given as shares of the variance of the effect, seeds/examples/rest, so that a share
means the same at every size. Percentages of N simulations have a standard error of at most
50 / sqrt(N), near 95 % of 22 / sqrt(N).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit, nctdtr, stdtrit

from dollyllama.card import markdown_table
from dollyllama.study.compare import (
    ALPHA,
    MOST_LENT,
    Array,
    Crossed,
    Effect,
    crossed,
    detectable,
    half_width,
    share_luck,
    with_two_more,
)

SEEDS, EXAMPLES = (3, 5, 10), (50, 217, 1000)
#: Of the examples, as of the default run's held-out ones.
MIDDLE = 217
VARIANTS = 15
#: Claims and other variants of the default study, which share ALPHA.
STUDY = (9, 18)
RESAMPLES = 1000
OURS, ALONE, SATTERTHWAITE = "ours", "each alone", "each alone, one t of Satterthwaite's df"
#: Values in one array: bounds the memory.
BATCH = 4_000_000

Random = np.random.Generator
Flags = npt.NDArray[np.bool_]
#: (generator, simulations, seeds, examples) -> differences_NSE, weights_NE
Draw = Callable[[Random, int, int, int], tuple[Array, Array]]
#: Of the effect's variance: seeds, examples, rest.
Shares = tuple[float, float, float]
Noise = Callable[[Random, tuple[int, ...]], Array]
#: (generator, runs) -> how many times as much seeds, and the rest, move each run; baseline first.
Luck = Callable[[Random, int], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to make up studies, and the effect that is true in them."""

    name: str
    draw: Draw
    truth: float = 0.0
    #: Whether single values are right or wrong, as a study knows of its scores.
    scores: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=3000, help="studies for each number")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    for title, table in (
        ("Intervals of 95 % that hold the truth, %, by seeds × examples", coverage_table),
        (
            f"Answers that seldom change: intervals that hold the truth / p < {ALPHA}, %, 3 seeds",
            seldom_table,
        ),
        (f"A/A: p < {ALPHA}, %, by seeds, {MIDDLE} examples", false_alarm_table),
        (f"The same intervals by other means, {MIDDLE} examples: hold the truth, %", rivals_table),
        (f"Whole studies: {ONE} and {ANY}, %, by seeds, {MIDDLE} examples", study_table),
        ("An effect of 1.5 standard deviations: p < 0.05, %, by seeds", power_table),
        ("Smallest effect found in 80 %, in such deviations, by seeds", detectable_table),
    ):
        print(f"\n{title}\n\n{table(rng, given.simulations)}", flush=True)


def coverage_table(rng: Random, simulations: int) -> str:
    sizes = [(seeds, examples) for seeds in SEEDS for examples in EXAMPLES]
    rows = []
    for setting in SETTINGS:
        row = [
            f"{coverage(setting, rng, simulations, seeds, examples):.1f}"
            for seeds, examples in sizes
        ]
        rows.append([setting.name, *row])
    return markdown_table(["", *(f"{seeds} × {examples}" for seeds, examples in sizes)], rows)


def coverage(setting: Setting, rng: Random, simulations: int, seeds: int, examples: int) -> float:
    """The percentage of intervals that hold the true effect."""
    held = [
        np.abs(found.value - setting.truth) <= half_width(found)
        for found, _ in studies(setting, rng, simulations, seeds, examples)
    ]
    return 100 * float(np.concatenate(held).mean())


def seldom_table(rng: Random, simulations: int) -> str:
    (own,) = rng.spawn(1)  # so that the tables below stay as they are without this one
    rows = []
    for share, better in SELDOM:
        for name, scores in (("two more", True), ("Student's t alone", False)):
            draw, truth = changes(share, better), share * (2 * better - 1)
            setting = Setting("", draw, truth, scores=scores)
            row = [
                f"{coverage(setting, own, simulations, 3, examples):.1f} / "
                f"{false_alarms(setting, own, simulations, 3, examples):.1f}"
                for examples in FEW
            ]
            rows.append([f"{share:.0%} change, {better:.0%} of them for the better, {name}", *row])
    return markdown_table(["", *map(str, FEW)], rows)


def false_alarm_table(rng: Random, simulations: int) -> str:
    rows = []
    for setting in ALIKE:
        row = [f"{false_alarms(setting, rng, simulations, seeds, MIDDLE):.1f}" for seeds in SEEDS]
        rows.append([setting.name, *row])
    for kind in (OURS, ALONE, SATTERTHWAITE):
        for name, shares in FAMILIES.items():
            row = [
                f"{family_alarms(shares, rng, simulations, seeds, MIDDLE, kind):.1f}"
                for seeds in SEEDS
            ]
            rows.append([f"any of {VARIANTS} variants, Holm, {name}, {kind}", *row])
    (own,) = rng.spawn(1)  # so that the tables below stay as they are without these rows
    for name, shares in FAMILIES.items():
        row = [f"{study_alarms(shares, own, simulations, seeds, MIDDLE):.1f}" for seeds in SEEDS]
        claims, others = STUDY
        rows.append([f"any of {claims} claims and {others} other variants, {name}", *row])
    return markdown_table(["", *map(str, SEEDS)], rows)


def false_alarms(
    setting: Setting, rng: Random, simulations: int, seeds: int, examples: int
) -> float:
    """The percentage of studies with a p below ALPHA."""
    alarms = [
        np.abs(found.value) > half_width(found, 1 - ALPHA)
        for found, _ in studies(setting, rng, simulations, seeds, examples)
    ]
    return 100 * float(np.concatenate(alarms).mean())


def family_alarms(
    shares: Shares,
    rng: Random,
    simulations: int,
    seeds: int,
    examples: int,
    kind: str = OURS,
) -> float:
    """The percentage of whole studies without effects in which any corrected p is below ALPHA.

    All variants are compared with one baseline. Holm's first step decides: the smallest p against
    ALPHA by the number of variants.
    """
    alarms = 0
    for _ in range(simulations):
        runs = draw_crossed(rng, 1 + VARIANTS, seeds, examples, shares)
        found = crossed(runs[1:] - runs[0], np.ones(examples))
        level = 1 - ALPHA / VARIANTS
        if kind == OURS:
            found = share_luck(found, seeds, examples)
            half = half_width(found, level)
        else:
            half = rivals(found, seeds, examples, level)[kind]
        alarms += bool((np.abs(found.value) > half).any())
    return 100 * alarms / simulations


def study_alarms(shares: Shares, rng: Random, simulations: int, seeds: int, examples: int) -> float:
    """``family_alarms`` of a study as reports correct it: two families that share ALPHA."""
    alarms = 0
    # The level of each variant's interval at Holm's first step.
    level = np.concatenate([np.full(size, 1 - ALPHA / (len(STUDY) * size)) for size in STUDY])
    for _ in range(simulations):
        runs = draw_crossed(rng, 1 + len(level), seeds, examples, shares)
        found = share_luck(crossed(runs[1:] - runs[0], np.ones(examples)), seeds, examples)
        alarms += bool((np.abs(found.value) > half_width(found, level)).any())
    return 100 * alarms / simulations


#: What is counted of whole studies without effects.
ONE, ANY = "a variant has p < 0.05", "any has, by Holm's first step"


def study_table(rng: Random, simulations: int) -> str:
    """Of variants whose runs differ between seeds by other amounts, with luck shared and alone."""
    rows = []
    for variants in SIZES:
        for name, luck in LUCK.items():
            for kind in (OURS, ALONE):
                counts = [
                    " ".join(
                        f"{count:.1f}"
                        for count in luck_alarms(luck, rng, simulations, variants, seeds, kind=kind)
                    )
                    for seeds in SEEDS
                ]
                rows.append([f"{variants} variants, {name}, {kind}", *counts])
    return markdown_table(["", *map(str, SEEDS)], rows)


def luck_alarms(
    luck: Luck, rng: Random, simulations: int, variants: int, seeds: int, *, kind: str = OURS
) -> tuple[float, float]:
    """Percentages of the last variant's false alarms, and of studies with any.

    Half the variance of an effect is that of seeds, half the rest, of runs whose luck is 1.
    """
    one = several = 0
    for _ in range(simulations):
        of_seeds = draw_crossed(rng, 1 + variants, seeds, 1, (0.5, 0, 0))
        rest = draw_crossed(rng, 1 + variants, seeds, MIDDLE, (0, 0, 0.5))
        by_seed, by_rest = luck(rng, variants + 1)
        runs = by_seed[:, None, None] * of_seeds + by_rest[:, None, None] * rest
        found = crossed(runs[1:] - runs[0], np.ones(MIDDLE))
        if kind == OURS:
            found = share_luck(found, seeds, MIDDLE)
        size = np.abs(found.value)
        one += bool(size[-1] > half_width(found, 1 - ALPHA)[-1])
        several += bool((size > half_width(found, 1 - ALPHA / variants)).any())
    return 100 * one / simulations, 100 * several / simulations


def rivals_table(rng: Random, simulations: int) -> str:
    rows = []
    for seeds in SEEDS[:2]:
        for setting in SETTINGS[: len(SHARES)]:
            held: dict[str, list[Flags]] = {}
            for found, values in studies(setting, rng, simulations, seeds, MIDDLE):
                for name, half in rivals(found, seeds, MIDDLE).items():
                    held.setdefault(name, []).append(np.abs(found.value) <= half)
                held.setdefault("bootstrap", []).append(in_bootstrap(rng, values))
            counts = [f"{100 * np.concatenate(each).mean():.1f}" for each in held.values()]
            rows.append([f"{seeds} seeds, {setting.name}", *counts])
    return markdown_table(["", *held], rows)


def rivals(found: Crossed, seeds: int, examples: int, level: float = 0.95) -> dict[str, Array]:
    """Half the width of each kind of interval of a comparison alone, ours first."""
    df_seeds, df_examples = seeds - 1, examples - 1
    df_rest = df_seeds * df_examples
    rest = found.residual
    of_seeds = examples * found.between_seeds + rest
    of_examples = seeds * found.between_examples + rest

    def half(total: Array, df: Array | float) -> Array:
        variance = np.maximum(total, 0) / (seeds * examples)
        return np.asarray(stdtrit(df, (1 + level) / 2) * np.sqrt(variance))

    def satterthwaite(total: Array, parts: list[tuple[Array, int]]) -> Array:
        below = sum(part**2 / df for part, df in parts)
        return np.maximum(1, total**2 / np.maximum(below, 1e-300))

    added = np.maximum(0, of_examples - rest)
    quasi = of_seeds + of_examples - rest
    all_parts = [(of_seeds, df_seeds), (of_examples, df_examples), (rest, df_rest)]
    largest = np.maximum(quasi, np.maximum(of_seeds, of_examples))
    share = satterthwaite(of_seeds + added, [(of_seeds, df_seeds), (added, df_examples)])
    return {
        ALONE: half_width(found, level),
        SATTERTHWAITE: half(of_seeds + added, share),
        "quasi-F": half(quasi, satterthwaite(quasi, all_parts)),
        "quasi-F, at least each mean square": half(largest, satterthwaite(largest, all_parts)),
        "t over seeds": half(of_seeds, df_seeds),
        "t over examples": half(of_examples, df_examples),
    }


def in_bootstrap(rng: Random, values: Array) -> Flags:
    """Whether 0 lies in the percentile interval of a bootstrap of seeds, then examples.

    A drawn example keeps its seeds together (Owen 2007, arXiv:0712.1111): of the hierarchical
    bootstraps the one that suits crossed factors. The same resamples serve all studies.
    """
    _, seeds, examples = values.shape
    seed_counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    example_counts = rng.multinomial(examples, np.full(examples, 1 / examples), RESAMPLES)
    low, high = np.empty(len(values)), np.empty(len(values))
    for number, study in enumerate(values):
        means = ((seed_counts @ study) * example_counts).sum(1) / examples
        low[number], high[number] = np.percentile(means, [2.5, 97.5])
    return np.asarray((low <= 0) & (high >= 0))


def power_table(rng: Random, simulations: int) -> str:
    """Exact where only seeds matter, as Student's t has it, and simulated by our analysis."""
    sizes = (3, 5, 6, 10)
    rows = []
    for name, in_deviations in (
        ("of the differences between seeds", 1.5),
        ("of one run between seeds; correlated 0 with the other's", 1.5 / 2**0.5),
        ("correlated 0.6", 1.5 / 0.8**0.5),
        ("correlated 0.8", 1.5 / 0.4**0.5),
    ):
        row = []
        for seeds in sizes:
            critical = stdtrit(seeds - 1, 1 - ALPHA / 2)
            exact = 100 * (1 - nctdtr(seeds - 1, in_deviations * seeds**0.5, critical))
            # The seeds' part of the differences has variance 1 and all else next to none.
            planted = Setting("", _planted(in_deviations))
            found = false_alarms(planted, rng, simulations, seeds, EXAMPLES[0])
            row.append(f"{exact:.0f} ({found:.0f})")
        rows.append([name, *row])
    for variants in SIZES:
        row = [f"({study_power(rng, simulations, variants, seeds):.0f})" for seeds in sizes]
        rows.append([f"of the differences, in a study of {variants} variants", *row])
    return markdown_table(["standard deviation … exact (simulated)", *map(str, sizes)], rows)


def study_power(rng: Random, simulations: int, variants: int, seeds: int) -> float:
    """The percentage of effects of 1.5 standard deviations of a difference that are found."""
    found = 0
    for _ in range(simulations):
        runs = 0.5**0.5 * rng.standard_normal((1 + variants, seeds, 1))
        runs = runs + 0.01 * rng.standard_normal((1 + variants, seeds, EXAMPLES[0]))
        differences = 1.5 + runs[1:] - runs[0]
        study = share_luck(crossed(differences, np.ones(EXAMPLES[0])), seeds, EXAMPLES[0])
        found += int((np.abs(study.value) > half_width(study, 1 - ALPHA)).sum())
    return 100 * found / (simulations * variants)


def detectable_table(_rng: Random, _simulations: int) -> str:
    """In standard deviations of the differences between seeds, where nothing else matters."""
    alone = Effect(0.0, SEEDS[0], MIDDLE, between_seeds=1.0, between_examples=0.0, residual=0.0)
    sizes = (3, 4, 5, 6, 8, 10)
    rows = []
    for comparisons in (1, 5, VARIANTS):
        shared = replace(alone, lenders=comparisons - 1, prior_df=MOST_LENT)
        for name, effect in ((OURS, shared), (ALONE, alone)):
            found = [detectable(effect, seeds=seeds, alpha=ALPHA / comparisons) for seeds in sizes]
            smallest = [f"{each:.1f}" for each in found]
            rows.append([f"comparisons {comparisons}, {name}", *smallest])
    return markdown_table(["", *map(str, sizes)], rows)


def _planted(effect: float) -> Draw:
    def draw(rng: Random, simulations: int, seeds: int, examples: int) -> tuple[Array, Array]:
        seed = rng.standard_normal((simulations, seeds, 1))
        rest = 0.01 * rng.standard_normal((simulations, seeds, examples))
        return effect + seed + rest, np.ones((simulations, examples))

    return draw


def studies(
    setting: Setting, rng: Random, simulations: int, seeds: int, examples: int
) -> Iterator[tuple[Crossed, Array]]:
    """Made-up studies in batches: their analysis and their differences_NSE."""
    at_once = max(1, BATCH // (seeds * examples))
    for start in range(0, simulations, at_once):
        count = min(at_once, simulations - start)
        values, weights = setting.draw(rng, count, seeds, examples)
        measured = with_two_more(values, weights) if setting.scores else (values, weights)
        yield crossed(*measured), values


def normal(rng: Random, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def heavy(rng: Random, shape: tuple[int, ...]) -> Array:
    """Student's t of 3 degrees of freedom, variance 1."""
    return np.asarray(rng.standard_t(3, shape) / 3**0.5)


def skewed(rng: Random, shape: tuple[int, ...]) -> Array:
    """Exponential, mean 0, variance 1, skewness 2."""
    return rng.standard_exponential(shape) - 1


def draw_crossed(
    rng: Random,
    simulations: int,
    seeds: int,
    examples: int,
    shares: Shares,
    seed_noise: Noise = normal,
    noise: Noise = normal,
) -> Array:
    """values_NSE whose mean has variance 1, of which each part has its share."""
    of_seeds, of_examples, of_rest = (
        share * count
        for share, count in zip(shares, (seeds, examples, seeds * examples), strict=True)
    )
    values: Array = of_rest**0.5 * noise(rng, (simulations, seeds, examples))
    values += of_examples**0.5 * noise(rng, (simulations, 1, examples))
    values += of_seeds**0.5 * seed_noise(rng, (simulations, seeds, 1))
    return values


def plain(shares: Shares, *, seed_noise: Noise = normal, noise: Noise = normal) -> Draw:
    """Examples that weigh the same."""

    def draw(rng: Random, simulations: int, seeds: int, examples: int) -> tuple[Array, Array]:
        values = draw_crossed(rng, simulations, seeds, examples, shares, seed_noise, noise)
        return values, np.ones((simulations, examples))

    return draw


#: Standard deviation of the logarithm of an example's tokens.
TOKENS_LOG = 0.8
#: How much more an example that is e times as long differs, in standard deviations.
TOKENS_SLOPE = 0.5


def by_tokens(shares: Shares) -> Draw:
    """Losses a token: long examples weigh more, are less noisy and have another effect."""

    def draw(rng: Random, simulations: int, seeds: int, examples: int) -> tuple[Array, Array]:
        log_tokens = TOKENS_LOG * rng.standard_normal((simulations, examples))
        tokens = np.exp(log_tokens)
        # Of a lognormal, the mean logarithm weighted by size is its variance: the effect stays 0.
        by_length = TOKENS_SLOPE * (log_tokens - TOKENS_LOG**2)
        values = draw_crossed(rng, simulations, seeds, examples, (0, 0, shares[2]))
        values /= np.sqrt(tokens)[:, None]
        values += draw_crossed(rng, simulations, 1, examples, (0, shares[1], 0))
        values += (examples * shares[1]) ** 0.5 * by_length[:, None]
        values += draw_crossed(rng, simulations, seeds, 1, (shares[0], 0, 0))
        return values, tokens

    return draw


def answers(mean_logit: float, seed_spread: float, example_spread: float) -> Draw:
    """Right or wrong, drawn anew in each run: examples differ in how hard they are.

    seed_spread: what a run's luck adds to all logits; example_spread: what the variant adds to an
    example's, both standard deviations.
    """

    def draw(rng: Random, simulations: int, seeds: int, examples: int) -> tuple[Array, Array]:
        logits = mean_logit + 2 * rng.standard_normal((simulations, 1, examples))
        change = example_spread * rng.standard_normal((simulations, 1, examples))
        right = []
        for own in (logits - change / 2, logits + change / 2):
            luck = seed_spread * rng.standard_normal((simulations, seeds, 1))
            chance = rng.random((simulations, seeds, examples))
            right.append((chance < expit(own + luck)).astype(np.float64))
        return right[1] - right[0], np.ones((simulations, examples))

    return draw


def changes(share: float, better: float) -> Draw:
    """Answers that are the same in every seed, of which a few change: some of them get right."""

    def draw(rng: Random, simulations: int, seeds: int, examples: int) -> tuple[Array, Array]:
        shape = (simulations, 1, examples)
        direction = np.where(rng.random(shape) < better, 1.0, -1.0)
        values = np.where(rng.random(shape) < share, direction, 0.0)
        return np.repeat(values, seeds, axis=1), np.ones((simulations, examples))

    return draw


#: How many of the examples, and shares of answers that change and of those that get right.
FEW = (8, 16, 30, 64, 217)
SELDOM = ((0.05, 0.5), (0.1, 0.5), (0.3, 0.5), (0.05, 1.0), (0.1, 1.0))

SHARES: dict[str, Shares] = {
    "seeds 90/5/5": (0.9, 0.05, 0.05),
    "examples 5/90/5": (0.05, 0.9, 0.05),
    "rest 5/5/90": (0.05, 0.05, 0.9),
    "mixed 33/33/33": (1 / 3, 1 / 3, 1 / 3),
    "seeds and examples 75/20/5": (0.75, 0.2, 0.05),
}
MIXED, BY_EXAMPLES = SHARES["mixed 33/33/33"], SHARES["examples 5/90/5"]
SETTINGS = (
    *(Setting(name, plain(shares)) for name, shares in SHARES.items()),
    Setting("heavy tails, mixed", plain(MIXED, seed_noise=heavy, noise=heavy)),
    Setting("heavy tails, examples 5/90/5", plain(BY_EXAMPLES, seed_noise=heavy, noise=heavy)),
    Setting("skewed examples, mixed", plain(MIXED, noise=skewed)),
    Setting("skewed examples 5/90/5", plain(BY_EXAMPLES, noise=skewed)),
    Setting("skewed seeds 90/5/5", plain(SHARES["seeds 90/5/5"], seed_noise=skewed)),
    Setting("weighted by tokens, mixed", by_tokens(MIXED)),
    Setting("weighted by tokens, examples 5/90/5", by_tokens(BY_EXAMPLES)),
    Setting("answers right or wrong", answers(0, 0.2, 1), scores=True),
    Setting("answers, few right", answers(-5, 0.2, 0), scores=True),
)
#: Variants that are the baseline under another name: no example has an effect of its own.
ALIKE = (
    Setting("seeds 100/0/0", plain((1, 0, 0))),
    Setting("both 50/0/50", plain((0.5, 0, 0.5))),
    Setting("rest 0/0/100", plain((0, 0, 1))),
    Setting("heavy tails 50/0/50", plain((0.5, 0, 0.5), seed_noise=heavy, noise=heavy)),
    Setting("skewed seeds 50/0/50", plain((0.5, 0, 0.5), seed_noise=skewed)),
    Setting("weighted by tokens 50/0/50", by_tokens((0.5, 0, 0.5))),
    Setting("answers right or wrong", answers(0, 0.2, 0), scores=True),
    Setting("answers, few right", answers(-5, 0.2, 0), scores=True),
)
#: Of whole studies; in the second, variants move examples without moving the mean.
FAMILIES: dict[str, Shares] = {"50/0/50": (0.5, 0, 0.5), "90/5/5": SHARES["seeds 90/5/5"]}


def seeds_alone(factors: Callable[[Random, int], Array]) -> Luck:
    return lambda rng, runs: (factors(rng, runs), np.ones(runs))


def everything(factors: Callable[[Random, int], Array]) -> Luck:
    def luck(rng: Random, runs: int) -> tuple[Array, Array]:
        drawn = factors(rng, runs)
        return drawn, drawn

    return luck


def times(*factors: float) -> Callable[[Random, int], Array]:
    """The last runs' factors."""
    return lambda rng, runs: np.append(np.ones(runs - len(factors)), factors)


#: How much the runs of a study differ.
LUCK: dict[str, Luck] = {
    "alike": seeds_alone(times()),
    "seeds lognormal, 0.6": seeds_alone(lambda rng, runs: rng.lognormal(0, 0.6, runs)),
    "seeds lognormal, 1.2": seeds_alone(lambda rng, runs: rng.lognormal(0, 1.2, runs)),
    "all lognormal, 1.2": everything(lambda rng, runs: rng.lognormal(0, 1.2, runs)),
    "seeds move the one 3 times as much": seeds_alone(times(3)),
    "seeds move the one 10 times as much": seeds_alone(times(10)),
    "seeds move three 10 times as much": seeds_alone(times(10, 10, 10)),
    "seeds move the baseline twice as much": seeds_alone(
        lambda rng, runs: np.append(2.0, np.ones(runs - 1))
    ),
}
#: Variants of whole studies.
SIZES = (3, VARIANTS)

if __name__ == "__main__":
    main()
