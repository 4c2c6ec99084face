"""How long the command line takes to answer, and to train, beside what it cannot do without.

    python benchmarks/startup.py [--first-step]

Its config, help and an error stand beside the smallest app that Hydra allows: one YAML of one key
and an empty function, which it runs where ours refuses an impossible value (only a composed one can
be judged). --first-step: from the command to the end of the first optimizer step of the default
run, less the measurement of the untrained model, beside a process that imports the packages that a
run is made of; with data prepared before, and without.

Both take turns; the ratio is median over median, of wall time and of processor time, which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
BARE = """
import hydra

@hydra.main(config_path=".", config_name="app", version_base="1.3")
def main(composed):
    pass

main()
"""
#: What is asked of train.py, and the bare app's counterpart.
QUESTIONS = {
    "--cfg job": (["--cfg", "job"], ["--cfg", "job"]),
    "--help": (["--help"], ["--help"]),
    "unknown key": (["lora.rnk=8"], ["rnk=8"]),
    "impossible value": (["lora.r=0"], ["key=0"]),
}
#: The fixed packages of a run, and what of transformers loads most of the rest.
IMPORTS = """
import bitsandbytes, datasets, hydra, omegaconf, peft, torch, transformers, wandb
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
"""
#: train.py, which ends with its first step, and a status that nothing else has.
FIRST_STEP_STATUS = 17
FIRST_STEP = f"""
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

register_optimizer_step_post_hook(lambda *_: os._exit({FIRST_STEP_STATUS}))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-step", action="store_true")
    arguments = parser.parse_args()
    print(f"{'':18}{'bare s':>8}{'ours s':>8}{'ratio':>7}{'ratio of processor time':>26}")
    ours: tuple[str, ...]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.first_step:
            imports = (sys.executable, "-c", IMPORTS)
            overrides = ("evaluation=none", "tracking=wandb_offline")
            ours = (sys.executable, "-c", FIRST_STEP, str(TRAIN), *overrides)
            for what, cache in (("prepared", "kept"), ("not prepared", "new-{}")):
                print(compare(what, imports, ours, folder, cache=cache, rounds=arguments.rounds))
        else:
            bare = folder / "app.py"
            bare.write_text(BARE, encoding="utf-8")
            Path(folder, "app.yaml").write_text("key: 1\n", encoding="utf-8")
            for question, (asked, theirs) in QUESTIONS.items():
                ours = (sys.executable, str(TRAIN), *asked)
                other = (sys.executable, str(bare), *theirs)
                print(compare(question, other, ours, folder, cache="kept", rounds=arguments.rounds))


def compare(
    what: str,
    bare: Sequence[str],
    ours: Sequence[str],
    folder: Path,
    *,
    cache: str,
    rounds: int,
) -> str:
    """A line of the table. cache: of prepared data, with the number of the round if it has {}."""
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for number in range(rounds + 1):  # the first warms the file cache and does not count
        for side, command in (("bare", bare), ("ours", ours)):
            measured = run(command, folder, cache=cache.format(number))
            if number:
                times[side].append(measured)
    wall = {side: statistics.median(pair[0] for pair in times[side]) for side in times}
    cpu = {side: statistics.median(pair[1] for pair in times[side]) for side in times}
    return (
        f"{what:18}{wall['bare']:8.2f}{wall['ours']:8.2f}"
        f"{wall['ours'] / wall['bare']:7.2f}{cpu['ours'] / cpu['bare']:26.2f}"
    )


def run(command: Sequence[str], folder: Path, *, cache: str) -> tuple[float, float]:
    """Seconds of wall and of processor time that a command takes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "DOLLYLLAMA_CACHE": str(folder / cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if FIRST_STEP in command and os.waitstatus_to_exitcode(status) != FIRST_STEP_STATUS:
        raise SystemExit("there was no first step: run train.py to see why")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
