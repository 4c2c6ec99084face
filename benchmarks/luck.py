"""Whether seeds move the variants of a study in proportion to how much their examples scatter.

    python -m benchmarks.luck SWEEP

``dollyllama.study.compare.share_luck`` expects so of the variants of a study. For each metric: by
what factor the variances between the seeds' values differ from one comparison to the next, as the
standard deviation of their logarithms; the same of these variances over the comparison's residual;
and what chance alone would make of equal ones with so few seeds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.special import polygamma

from dollyllama.card import markdown_table
from dollyllama.study.analyse import analyse, effects
from dollyllama.study.compare import Effect
from dollyllama.study.records import read_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sweep", type=Path)
    given = parser.parse_args()
    rows = []
    for (metric, kind), found in sorted(effects_alone(given.sweep).items()):
        residual = np.array([each.residual for each in found], dtype=float)
        own = np.array([each.between_seeds for each in found], dtype=float)
        own += residual / np.array([each.examples for each in found])
        varies = (own > 0) & (residual > 0)
        if varies.sum() < 3:
            continue
        own, residual = own[varies], residual[varies]
        df = np.array([each.seeds for each in found])[varies] - 1
        rows.append(
            [
                f"{metric}, {kind}",
                str(len(own)),
                f"{own.max() / own.min():,.0f}",
                f"{np.log(own).std(ddof=1):.2f}",
                f"{np.log(own / residual).std(ddof=1):.2f}",
                f"{np.sqrt(polygamma(1, df / 2).mean()):.2f}",
            ]
        )
    header = ["", "comparisons", "largest / smallest", "scatter", "over the residual", "by chance"]
    print(markdown_table(header, rows))


def effects_alone(sweep: Path) -> dict[tuple[str, str], list[Effect]]:
    """(metric, whether variants train) -> what each has with nobody's luck but its own."""
    plan, cells = read_sweep([sweep])
    found = defaultdict(list)
    for name in sorted({cell.variant for cell in cells} - {plan.baseline}):
        study = analyse(plan, [cell for cell in cells if cell.variant in (name, plan.baseline)])
        trains = {variant.name: variant.trains for variant in study.variants}
        for _, each in effects(study):
            if each.effect is not None and each.effect.standard_error is not None:
                kind = "trained" if trains[each.variant] else "answers alone"
                found[each.metric, kind].append(each.effect)
    return found


if __name__ == "__main__":
    main()
