"""What a sweep costs beside its training, and what it saves against one process a cell.

``python -m benchmarks.sweep`` runs the same cells twice, in alternation: by ``sweep.py``, and by
one ``python train.py`` after the other. Printed are both times, their ratio, and the sweep's
overhead: the time of all its workers that was spent neither on data, model, training nor
evaluation of a cell, as a share of what was. Beside it stands all that was not training, evaluation
included, as a share of the training.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Six that train to one that takes an adapter over, as in the default study.
VARIANTS = ("baseline", "rank_8", "no_dropout", "attention_only", "fp4", "full_text_loss", "merged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=24, help="of training in a cell")
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="how many, at most 7")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tracking", default="wandb_offline", help="as in conf/tracking")
    parser.add_argument("--sweep-only", action="store_true", help="measure the overhead alone")
    arguments = parser.parse_args()
    names = VARIANTS[: arguments.variants]
    seeds = range(arguments.seeds)
    shared = [
        *("experiment=brief", f"trainer.max_steps={arguments.steps}"),
        f"tracking={arguments.tracking}",
    ]
    ratios, shares = [], []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            axes = [f"seed=range({arguments.seeds})", f"ablation={','.join(names)}"]
            sweep = [*shared, *axes, "sweep=none", f"hydra.sweep.dir={folder}/sweeps/one"]
            swept = run("sweep.py", sweep)
            own, training, at_once = work_of(folder / "sweeps/one")
            shares.append(swept * at_once / own - 1)
            print(
                f"round {number + 1}: sweep {swept:.0f} s with {at_once} cells at once, of which "
                f"the cells' own {own / at_once:.0f} s: overhead {shares[-1]:.1%} (over training "
                f"alone {swept * at_once / training - 1:.1%})",
                flush=True,
            )
            if arguments.sweep_only:
                continue
            apart = sum(
                run(
                    "train.py",
                    [
                        *shared,
                        f"seed={seed}",
                        f"ablation={name}",
                        f"hydra.run.dir={folder}/{name}{seed}",
                    ],
                )
                for seed in seeds
                for name in names
            )
            ratios.append(apart / swept)
            print(
                f"  one process a cell, one after the other: {apart:.0f} s: {ratios[-1]:.2f} times"
            )
    print(f"overhead: median {statistics.median(shares):.1%}")
    if ratios:
        print(f"sweep.py is {statistics.median(ratios):.2f} times as fast")


def run(script: str, arguments: list[str]) -> float:
    """Seconds that a command took. SystemExit with its last lines when it failed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{script} {' '.join(arguments)}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def work_of(sweep: Path) -> tuple[float, float, int]:
    """The seconds of all cells' own work, of its training, and how many cells ran at once."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(sweep.glob("*/result.json"))]
    own = sum(
        seconds
        for result in results
        for part, seconds in result["seconds"].items()
        if part != "total"
    )
    training = sum(result["seconds"].get("train", 0.0) for result in results)
    return own, training, len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
