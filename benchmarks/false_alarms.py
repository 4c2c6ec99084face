"""How often the statistics see an effect where there is none, on real runs.

``python -m benchmarks.false_alarms`` trains many cells of one config, each under a seed of its
own, and splits them at random into groups that are compared as a baseline and its variants would
be: an A/A study, whose every finding is false. The cells are kept, and a second call goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

from dollyllama.study.analyse import Standing, analyse
from dollyllama.study.records import Cell, Plan, read_sweep

ROOT = Path(__file__).parents[1]
METRICS = ("loss/all", "score/all")
#: Of one study.
VARIANTS = (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="a side of a study")
    parser.add_argument("--steps", type=int, default=8, help="of training in a cell")
    parser.add_argument("--shuffles", type=int, default=50, help="ways to group the same cells")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/sweeps/false_alarms")
    given = parser.parse_args()
    count = 2 * given.seeds * given.studies
    overrides = [
        *("sweep=none", "ablation=baseline", f"seed=range({count})", "tracking=files"),
        *(f"trainer.max_steps={given.steps}", "evaluation.generate_examples=4"),
        f"hydra.sweep.dir={given.folder}",
    ]
    subprocess.run([sys.executable, str(ROOT / "sweep.py"), *overrides], cwd=ROOT, check=True)
    plan, cells = read_sweep([given.folder])
    for metric, variants in product(METRICS, VARIANTS):
        decided = replace(plan, primary=metric)
        apart = studies(decided, cells, given.seeds, variants, random.Random(0))
        what = f"studies of {variants} and the baseline, {given.seeds} seeds"
        print(f"{metric}: {sum(apart)} of {len(apart)} {what} name an effect")
        many = [
            alarm
            for number in range(1, given.shuffles + 1)
            for alarm in studies(decided, cells, given.seeds, variants, random.Random(number))
        ]
        print(f"  the same cells in {given.shuffles} other groupings: {fmean(many):.1%}")


def studies(
    plan: Plan, cells: list[Cell], seeds: int, variants: int, order: random.Random
) -> list[bool]:
    """Whether each study of disjoint groups of ``seeds`` cells finds any effect."""
    mixed = order.sample(cells, len(cells))
    size = (1 + variants) * seeds
    alarms = []
    for at in range(0, len(mixed) - size + 1, size):
        sides = [
            replace(
                cell,
                variant=f"other_{number // seeds}" if number >= seeds else plan.baseline,
                seed=number % seeds,
            )
            for number, cell in enumerate(mixed[at : at + size])
        ]
        found = analyse(plan, sides).comparisons
        alarms.append(any(each.standing in (Standing.better, Standing.worse) for each in found))
    return alarms


if __name__ == "__main__":
    main()
