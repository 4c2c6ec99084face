"""How long the command line takes to answer beside a bare Hydra app: its config, help, an error.

    python benchmarks/startup.py

The bare app is the smallest that Hydra allows: one YAML of one key and an empty function, which it
runs where ours refuses an impossible value (only a composed one can be judged). Both take turns;
the ratio is median over median, of wall time and of processor time, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'question':18}{'bare s':>8}{'ours s':>8}{'ratio':>7}{'ratio of processor time':>26}")
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "app.py")
        bare.write_text(BARE, encoding="utf-8")
        Path(folder, "app.yaml").write_text("key: 1\n", encoding="utf-8")
        for question, (ours, theirs) in QUESTIONS.items():
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
            for number in range(rounds + 1):  # the first warms the file cache and does not count
                for side, script, arguments in (
                    ("bare", bare, theirs),
                    ("ours", ROOT / "train.py", ours),
                ):
                    measured = run(script, arguments, folder)
                    if number:
                        times[side].append(measured)
            wall = {side: statistics.median(pair[0] for pair in times[side]) for side in times}
            cpu = {side: statistics.median(pair[1] for pair in times[side]) for side in times}
            print(
                f"{question:18}{wall['bare']:8.2f}{wall['ours']:8.2f}"
                f"{wall['ours'] / wall['bare']:7.2f}{cpu['ours'] / cpu['bare']:26.2f}"
            )


def run(script: Path, arguments: list[str], folder: str) -> tuple[float, float]:
    """Seconds of wall and of processor time that a command takes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
