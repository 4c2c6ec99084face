"""Sweeps on Ray and by submitit under faults end as one that nothing disturbed."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.study import fake_slurm
from tests.study.test_launchers import installed, losses, start

pytestmark = pytest.mark.slow
STUDY = (
    *("ablation=baseline,rank_8", "seeds=2", "tracking=files", "data.max_rows=128"),
    *("trainer.max_steps=6", "trainer.checkpoint_steps=1", "trainer.logging_steps=1"),
    *("evaluation.loss_examples=8", "evaluation.generate_examples=0"),
)
CELLS = 4


def report(folder: Path) -> list[list[str]]:
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, left alone."""
    place = tmp_path_factory.mktemp("whole")
    assert start(place / "sweep", *STUDY, log=place / "log.txt").wait() == 0
    return place / "sweep"


class Study:
    """The study in a folder of its own, to be started again and again by the same command."""

    def __init__(self, place: Path, *launcher: str) -> None:
        self.folder = place / "sweep"
        self.log = place / "log.txt"
        self._launcher = launcher
        self._began = 0.0

    def start(self) -> subprocess.Popen[bytes]:
        self._began = time.time()
        self.process = start(self.folder, *STUDY, *self._launcher, log=self.log)
        return self.process

    def again_with(self, *launcher: str) -> None:
        self._launcher += launcher

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a moment of a sweep that is running."""
        while not condition():
            assert self.process.poll() is None, self.told()
            time.sleep(0.1)

    def training(self) -> list[Path]:
        """Cells that have written a checkpoint since the last start, and are not done."""
        places = self.folder.glob("*/checkpoints/checkpoint-*/digests.json")
        return sorted({each.parents[2] for each in places if modified(each) > self._began})

    def finished(self) -> dict[Path, int]:
        """When each cell that is done was: a cell that is run again has another time."""
        return {
            result: result.stat().st_mtime_ns
            for result in self.folder.glob("*/result.json")
            if json.loads(result.read_text(encoding="utf-8"))["status"] == "finished"
        }

    def check(self, whole: Path, done: dict[Path, int]) -> None:
        """The report and all losses are those of the ``whole`` one; none of ``done`` ran again."""
        assert done.items() <= self.finished().items()
        assert len(self.finished()) == CELLS
        assert losses(self.folder) == losses(whole)
        assert report(self.folder) == report(whole)


def modified(file: Path) -> float:
    """When a file was written; 0 for one that is gone meanwhile."""
    return file.stat().st_mtime if file.exists() else 0.0


def named(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# --- Ray ------------------------------------------------------------------------------------------


class Head:
    """The head of a Ray cluster, which may die and be started again at the same address."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = tempfile.mkdtemp(prefix="ray")  # a socket's path must be short
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        program = Path(sys.executable).with_name("ray")
        flags = (f"--port={self._port}", f"--temp-dir={self._folder}", "--num-cpus=2")
        flags += ("--num-gpus=1",)  # Ray counts it; nobody looks whether it is there
        command = [program, "start", "--head", *flags, "--include-dashboard=false"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _family(self) -> list[psutil.Process]:
        own = [each for each in psutil.process_iter() if self._folder in named(each)]
        return own + [child for each in own for child in each.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        return [each for each in self._family() if named(each).startswith("ray::_run_job")]

    def kill(self) -> None:
        family = self._family()
        for each in family:
            each.kill()
        psutil.wait_procs(family)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    if not installed("hydra_ray_launcher"):
        pytest.skip("hydra_ray_launcher is not installed: docs/ray.md tells how")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15, unless told otherwise
    head = Head()
    head.start()
    yield head
    head.kill()


def test_ray_loses_a_worker_the_launching_process_and_the_head(
    head: Head, whole: Path, tmp_path: Path
) -> None:
    launcher = ("hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={head.address}")
    study = Study(tmp_path, *launcher)
    process = study.start()
    study.until(study.training)
    head.workers()[0].kill()
    study.until(lambda: len(study.finished()) >= 1)
    process.terminate()
    assert process.wait() == 75, study.told()
    done = study.finished()
    assert "the same command goes on" in study.told()

    process = study.start()
    study.until(study.training)
    head.kill()
    head.start()
    assert process.wait() == 75, study.told()
    assert "Ray's head was started anew and does not know of this sweep" in study.told()
    done |= study.finished()

    assert study.start().wait() == 0, study.told()
    study.check(whole, done)


@pytest.mark.parametrize(("share", "at_once"), [("0.5", 2), ("1", 1)])
def test_ray_runs_as_many_cells_as_have_room_on_a_gpu(
    head: Head, tmp_path: Path, share: str, at_once: int
) -> None:
    launcher = ("hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={head.address}")
    study = Study(tmp_path, *launcher, f"+hydra.launcher.ray.remote.num_gpus={share}", "device=cpu")
    process = study.start()
    most = 0
    while process.poll() is None:
        most = max(most, len(head.workers()))
        time.sleep(0.1)
    assert process.wait() == 0, study.told()
    assert len(study.finished()) == CELLS
    assert most == at_once


# --- submitit -------------------------------------------------------------------------------------


def jobs(folder: Path) -> list[psutil.Process]:
    """The processes that run jobs of a sweep."""
    wanted = f"submitit.core._submit {folder}"
    return [each for each in psutil.process_iter() if wanted in named(each)]


def of_cell(folder: Path, cell: Path) -> psutil.Process:
    """The process of the job that runs a cell: the one that has it locked."""
    lock = str(folder / ".locks" / cell.name)
    for each in jobs(folder):
        if (lock, True) in [(file.path, file.mode == "r+") for file in each.open_files()]:
            return each
    raise AssertionError(f"nobody runs {cell.name}")


@pytest.fixture
def submitit() -> None:
    if not installed("hydra_submitit_launcher"):
        pytest.skip("hydra_submitit_launcher is not installed: docs/slurm.md tells how")


def test_submitit_loses_jobs_and_the_launching_process(
    submitit: None, whole: Path, tmp_path: Path
) -> None:
    study = Study(tmp_path, "hydra/launcher=submitit_local")
    process = study.start()
    study.until(lambda: len(study.training()) == 2)
    lost, requeued = study.training()
    of_cell(study.folder, lost).kill()
    of_cell(study.folder, requeued).send_signal(signal.SIGUSR2)
    study.until(lambda: "interrupted" in study.told())  # it wrote its checkpoint, and runs again
    assert process.wait() == 1, study.told()
    assert "is lost" in study.told()
    assert "Traceback" not in study.told()
    done = study.finished()
    assert len(done) == CELLS - 1  # the lost one alone is left
    assert lost / "result.json" not in done

    process = study.start()
    study.until(study.training)
    held = of_cell(study.folder, lost)
    held.suspend()  # so that it is there for all that follows
    process.terminate()
    assert process.wait() == 75, study.told()
    process = study.start()
    study.until(lambda: len(jobs(study.folder)) > 1)
    process.kill()
    process.wait()
    held.resume()
    assert study.start().wait() == 0, study.told()
    study.check(whole, done)
    psutil.wait_procs(jobs(study.folder))


def test_slurm_requeues_a_job_that_goes_on_from_its_checkpoint(
    submitit: None, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's own sbatch file and its own requeueing, with what stands in for Slurm."""
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    fake_slurm.install(slurm)
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    study = Study(tmp_path, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10")

    def out_of_time() -> None:
        """Signal the job of a cell as Slurm does; a job of 10 minutes is always out of time."""
        study.until(study.training)
        cell = study.training()[0]
        of_cell(study.folder, cell).send_signal(signal.SIGUSR2)
        ends = len(study.told().split(": interrupted"))
        study.until(lambda: len(study.told().split(": interrupted")) > ends)

    process = study.start()
    out_of_time()
    assert process.wait() == 1, study.told()
    assert "error: submitit: UncompletedJobError: Job not requeued" in study.told()
    done = study.finished()
    assert len(done) == CELLS - 1

    study.again_with("hydra.launcher.max_num_timeout=1")
    process = study.start()
    out_of_time()
    assert process.wait() == 0, study.told()
    assert len(list(slurm.glob("*.script"))) == 2  # an array each: no job but these
    study.check(whole, done)
