"""A run that is killed at random moments, again and again, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dollyllama.files import read_json_lines
from tests.test_run import SMALL

ROOT = Path(__file__).parents[1]
KILLS, MERGE_KILLS = 25, 12
RUNS = {
    "default": ("tracking=files",),
    # Batches of two micro-batches, a rate that changes at every step, draws of dropout, a state of
    # 8 bits, and a checkpoint after every other step.
    "all that has a state": (
        *SMALL,
        "data.max_rows=512",
        "trainer=brief",
        "trainer.batch_size=4",
        "trainer.accumulation=2",
        "trainer.max_steps=30",
        "trainer.checkpoint_steps=2",
        "trainer.eval_steps=5",
        "lora.dropout=0.1",
        "schedule=cosine",
        "schedule.warmup_ratio=0.2",
        "optimizer=adamw_8bit",
    ),
}
#: What differs between two runs of the same config, in metrics.jsonl and in the model card: times,
#: speed, and what else the machine does.
MEASURED = ("time", "train/tokens_per_second", "memory/peak_mib")
MEASURED_LINES = (b"| time |", b"| peak memory |")


def start(folder: Path, overrides: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """``python train.py`` in its own folder and with its own cache; the same command each time."""
    with (folder.parent / f"{folder.name}.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"],
            cwd=folder.parent,
            env={**os.environ, "DOLLYLLAMA_CACHE": str(folder.parent / f"{folder.name}-cache")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run folder that its config decides."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in read_json_lines(folder / "metrics.jsonl")
    ]
    whole = ("config.yaml", "data.json", "losses.jsonl", "rejected.jsonl", "samples.jsonl")
    adapter = files_of(folder / "adapter")
    card = adapter.pop("README.md").splitlines()
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "status": result["status"],
        "metrics": result["metrics"],
        "train": {key: result["train"][key] for key in ("steps", "tokens", "loss")},
        "lines": lines,
        "adapter": adapter,
        "card": [line for line in card if not line.startswith(MEASURED_LINES)],
        **{name: (folder / name).read_bytes() for name in whole if (folder / name).exists()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(tmp_path: Path, name: str) -> None:
    began = time.monotonic()
    assert start(tmp_path / "whole", RUNS[name]).wait() == 0
    longest = (time.monotonic() - began) * 0.6
    expected = outcome(tmp_path / "whole")

    moments = random.Random(0)
    kills = runs = 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        process = start(folder, RUNS[name])
        try:
            process.wait(moments.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        # It came to its end in spite of the kills: compare it, and begin another one.
        log = (tmp_path / f"{folder.name}.txt").read_text(encoding="utf-8")
        assert process.returncode == 0, log
        assert outcome(folder) == expected
        runs += 1
    folder = tmp_path / f"killed-{runs}"
    assert start(folder, RUNS[name]).wait() == 0, (tmp_path / f"{folder.name}.txt").read_text()
    assert outcome(folder) == expected


@pytest.mark.slow
def test_a_merge_killed_at_random_moments_leaves_nothing_and_then_merges_as_ever(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    assert start(run, (*SMALL, "trainer.max_steps=2")).wait() == 0
    adapter = files_of(run / "adapter")

    def merge(output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dollyllama", "merge", str(run), "--output", output]
        with (tmp_path / "merge.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, "--max-kl", "9", "--min-greedy", "0"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    began = time.monotonic()
    process = merge("whole")
    written = wait_for(tmp_path / ".whole.tmp" / "whole", process)
    assert process.wait() == 0, (tmp_path / "merge.txt").read_text(encoding="utf-8")
    before, longest = written - began, time.monotonic() - began
    moments = random.Random(0)
    kills = half_way = 0
    while kills < MERGE_KILLS:
        process = merge("killed")
        # Every other one while the model is written or compared, which is soon over.
        if kills % 2:
            wait_for(tmp_path / ".killed.tmp" / "killed", process)
        try:
            process.wait(moments.uniform(0, longest - before if kills % 2 else before))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            half_way += (tmp_path / ".killed.tmp" / "killed").exists()
            if not (tmp_path / "killed").exists():
                continue  # else it was killed between that and its exit
        else:
            assert process.returncode == 0, (tmp_path / "merge.txt").read_text(encoding="utf-8")
        assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "killed")
    print(f"{kills} kills, {half_way} of them while the merged model was made or compared")
    assert half_way
    assert merge("killed").wait() == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not (tmp_path / ".killed.tmp").exists()
    assert files_of(run / "adapter") == adapter


def wait_for(folder: Path, process: subprocess.Popen[bytes]) -> float:
    """When ``folder`` appeared, or the process ended."""
    while not folder.exists() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
