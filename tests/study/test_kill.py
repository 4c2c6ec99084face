"""A sweep that is killed at random moments ends as one that was left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SWEEP = (
    *("ablation=baseline,rank_8,merged", "seeds=2", "tracking=files", "trainer.max_steps=6"),
    *("trainer.checkpoint_steps=2", "evaluation.loss_examples=8", "evaluation.generate_examples=2"),
)
KILLS = 20


def start(folder: Path, log: Path, sweep: tuple[str, ...] = SWEEP) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "sweep.py"), *sweep, f"hydra.sweep.dir={folder}"]
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=folder.parent, stdout=output, stderr=output)


def effects(folder: Path) -> list[list[str]]:
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole = tmp_path / "alone" / "whole"
    whole.parent.mkdir()
    assert start(whole, tmp_path / "alone.txt").wait() == 0

    killed = tmp_path / "killed" / "sweep"
    killed.parent.mkdir()
    moments = random.Random(0)
    done = ended = 0
    while done < KILLS:
        process = start(killed, tmp_path / "killed.txt")
        wait = moments.uniform(1.0, 25.0)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is not None:  # it came to its end: begin anew, and go on killing
            assert process.returncode == 0
            assert effects(killed) == effects(whole)
            ended += 1
            for sibling in killed.parent.iterdir():  # nothing to be copied from
                sibling.rename(tmp_path / f"{sibling.name}.{ended}")
            killed = killed.with_name(f"sweep_{ended}")
            continue
        family = family_of(process)
        if done % 2:  # the launcher alone, or all that it started
            for member in family:
                os.kill(member.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        done += 1
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
        statuses = sorted(
            json.loads(path.read_text(encoding="utf-8"))["status"]
            for path in killed.glob("*/result.json")
        )
        print(f"kill {done:2} after {wait:4.1f} s: {len(family)} processes, cells {statuses}")
    assert start(killed, tmp_path / "killed.txt").wait() == 0
    assert effects(killed) == effects(whole)
