"""How often the statistics see an effect where there is none, on real runs.

``python -m benchmarks.false_alarms`` trains many cells of one config, each under a seed of its
own, and splits them at random into pairs of groups that are compared as baseline and variant would
be: an A/A study, whose every finding is false. The cells are kept, and a second call goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from dollyllama.study.analyse import Standing, analyse
from dollyllama.study.records import Cell, Plan, read_sweep

ROOT = Path(__file__).parents[1]
METRICS = ("loss/all", "score/all")


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
    for metric in METRICS:
        decided = replace(plan, primary=metric)
        apart = studies(decided, cells, given.seeds, random.Random(0))
        print(f"{metric}: {sum(apart)} false alarms in {len(apart)} studies of {given.seeds} seeds")
        many = [
            alarm
            for number in range(1, given.shuffles + 1)
            for alarm in studies(decided, cells, given.seeds, random.Random(number))
        ]
        print(f"  the same cells in {given.shuffles} other groupings: {fmean(many):.1%}")


def studies(plan: Plan, cells: list[Cell], seeds: int, order: random.Random) -> list[bool]:
    """Whether each study of two disjoint groups of ``seeds`` cells finds an effect."""
    mixed = order.sample(cells, len(cells))
    alarms = []
    for at in range(0, len(mixed) - 2 * seeds + 1, 2 * seeds):
        sides = [
            replace(cell, variant=plan.baseline if number < seeds else "other", seed=number % seeds)
            for number, cell in enumerate(mixed[at : at + 2 * seeds])
        ]
        (comparison,) = analyse(plan, sides).comparisons
        alarms.append(comparison.standing in (Standing.better, Standing.worse))
    return alarms


if __name__ == "__main__":
    main()
