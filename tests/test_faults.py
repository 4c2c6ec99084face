"""What happens to a run when the machine fails it: a full disk, a folder that goes, a wrong clock.

The faults are real: a small file system is filled, files are removed, the system's time is moved.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dollyllama import launch
from tests.test_run import SMALL, UNMEASURED

ROOT = Path(__file__).parents[1]
#: Before a size, a folder and a command: runs it with a file system of that size on the folder.
SMALL_DISK = (
    *("unshare", "--mount", "--map-root-user", "sh", "-c"),
    'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"',
    "sh",
)


def train(folder: Path, *overrides: str, code: str = "", size: str | None = None) -> Any:
    """``python train.py`` to its end; in a small file system of its own when there is a size.

    code: runs in the process before all else.
    """
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    if size is not None:
        command = [*SMALL_DISK, size, str(folder.parent), *command]
    site = folder.parent.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(done: Any) -> str:
    """The last line on stderr; there is no traceback above it."""
    assert "Traceback" not in done.stderr, done.stderr
    return str(done.stderr.strip().splitlines()[-1])


@pytest.fixture
def mountable(tmp_path: Path) -> None:
    (tmp_path / "try").mkdir()
    command = [*SMALL_DISK, "1m", str(tmp_path / "try"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a small file system: {done.stderr.strip()}")


@pytest.mark.slow
@pytest.mark.usefixtures("mountable")
def test_a_full_disk_stops_a_run_with_one_line_and_a_folder_that_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    overrides = (
        *UNMEASURED,
        "trainer.max_steps=6",
        "trainer.checkpoint_steps=1",
        "trainer.keep_checkpoints=5",
    )
    # What is on the small disk is gone with the process that mounted it: it is copied out first.
    saved = tmp_path / "saved"
    keep = (
        "import atexit, shutil\n"
        f"atexit.register(lambda: shutil.copytree({str(disk)!r}, {str(saved)!r}))\n"
    )
    done = train(disk / "run", *overrides, code=keep, size="10m")
    assert done.returncode == launch.MENDABLE
    line = last_line(done)
    assert line.startswith("error: [Errno 28] No space left on device")
    assert line.endswith(f"; when that is mended, python train.py resume={disk / 'run'} goes on")

    run = saved / "run"
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "failed"
    assert "No space left" in result["error"]
    assert list((run / "checkpoints").glob("checkpoint-*"))
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]

    assert train(run, *overrides).returncode == 0
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    assert train(whole, *overrides).returncode == 0
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


def disturbed(
    command: list[str],
    ready: Callable[[], bool],
    disturb: Callable[[subprocess.Popen[bytes]], object],
    log: Path,
) -> tuple[int, str]:
    """Start a command and disturb it once it is ready: its exit status and what it said."""
    with log.open("w+", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        while process.poll() is None and not ready():
            time.sleep(0.1)
        disturb(process)
        status = process.wait(120)
        file.seek(0)
        return status, file.read()


@pytest.mark.slow
def test_a_folder_that_is_removed_meanwhile_ends_the_run_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    metrics = folder / "metrics.jsonl"
    command = [
        *(sys.executable, "train.py", *UNMEASURED, "trainer.max_steps=100000"),
        f"hydra.run.dir={folder}",
    ]
    status, said = disturbed(
        command,
        lambda: metrics.exists() and bool(metrics.read_text()),
        lambda _: shutil.rmtree(folder),
        tmp_path / "log.txt",
    )
    assert status == launch.MENDABLE
    assert "Traceback" not in said
    assert said.rstrip().endswith(f"removed while its run was going on: '{metrics}'")


#: The clock of the system, which is some days off at every look.
ODD_CLOCK = """
import random, time
_time, _draw = time.time, random.Random(0)
time.time = lambda: _time() + _draw.uniform(-1e6, 1e6)
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing_but_the_times_of_the_log(tmp_path: Path) -> None:
    for name, code in (("steady", ""), ("jumping", ODD_CLOCK)):
        (tmp_path / name).mkdir()
        done = train(tmp_path / name / "run", *SMALL, code=code)
        assert done.returncode == 0, done.stderr
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl", "losses.jsonl"):
        steady, jumping = (tmp_path / each / "run" / name for each in ("steady", "jumping"))
        assert steady.read_bytes() == jumping.read_bytes()
    seconds = json.loads((tmp_path / "jumping/run/result.json").read_text())["seconds"]
    assert all(0 <= spent < 600 for spent in seconds.values())


@pytest.mark.slow
def test_sigterm_before_training_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = folder / "result.json"
    command = [sys.executable, "train.py", *SMALL, f"hydra.run.dir={folder}"]
    status, said = disturbed(
        command, result.exists, subprocess.Popen.terminate, tmp_path / "log.txt"
    )
    assert (status, said.splitlines()[-1]) == (
        launch.RESUMABLE,
        f"interrupted: python train.py resume={folder} goes on",
    )
    assert json.loads(result.read_text(encoding="utf-8"))["status"] == "interrupted"
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to all processes of a command, as systemd and schedulers give it."""
    os.killpg(process.pid, signal.SIGTERM)


def interrupt_group(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def check_that_cells_stop(
    command: list[str], folder: Path, cells: int, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    """End a sweep when so many cells train: each writes a checkpoint, and no other begins."""

    def training() -> bool:
        return sum(bool(path.read_text()) for path in folder.glob("*/metrics.jsonl")) == cells

    status, said = disturbed(command, training, end, folder.with_name("log.txt"))
    assert (status, said.splitlines()[-1]) == (
        launch.RESUMABLE,
        "interrupted: the same command goes on",
    )
    results = list(folder.glob("*/result.json"))
    statuses = [json.loads(each.read_text(encoding="utf-8"))["status"] for each in results]
    assert statuses == ["interrupted"] * cells
    assert all(list(each.parent.glob("checkpoints/checkpoint-*")) for each in results)


@pytest.mark.parametrize(
    "end",
    [
        subprocess.Popen.terminate,
        pytest.param(end_group, marks=pytest.mark.slow),
        pytest.param(interrupt_group, marks=pytest.mark.slow),
    ],
)
def test_cells_that_run_side_by_side_write_a_checkpoint_and_no_other_begins(
    tmp_path: Path, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    folder = tmp_path / "sweep"
    command = [
        *(sys.executable, "sweep.py", *UNMEASURED, "sweep=none", "seed=range(4)"),
        *("hydra.launcher.n_jobs=2", "trainer.max_steps=100000", f"hydra.sweep.dir={folder}"),
    ]
    check_that_cells_stop(command, folder, 2, end)


@pytest.mark.parametrize(
    "end", [pytest.param(subprocess.Popen.terminate, marks=pytest.mark.slow), end_group]
)
def test_sigterm_to_a_sweep_lets_its_cell_write_a_checkpoint(
    tmp_path: Path, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    folder = tmp_path / "sweep"
    command = [
        *(sys.executable, "train.py", "--multirun", *UNMEASURED, "seed=0"),
        *("trainer.max_steps=100000", f"hydra.sweep.dir={folder}"),
    ]
    check_that_cells_stop(command, folder, 1, end)
