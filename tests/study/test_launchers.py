"""The same study under every launcher, searches, and how a machine is shared out."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from dollyllama import sweeping
from dollyllama.study import slots
from dollyllama.study.cells import status_of
from dollyllama.study.prune import losses_on_the_way

ROOT = Path(__file__).parents[2]
TINY = (
    *("trainer.max_steps=2", "tracking=files", "evaluation.generate_examples=0"),
    "evaluation.loss_examples=8",
)
PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "submitit_local": "hydra_submitit_launcher",
}
#: Ray would join a cluster that it knows of, or remembers.
OWN = {"ray": ("hydra.launcher.ray.init.address=local",)}


def installed(plugin: str) -> bool:
    return find_spec(f"hydra_plugins.{plugin}") is not None


def start(folder: Path, *overrides: str, log: Path) -> subprocess.Popen[bytes]:
    """Launch a sweep into ``folder``, with one thread a cell, and its output to ``log``."""
    command = [sys.executable, str(ROOT / "sweep.py"), f"hydra.sweep.dir={folder}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=folder.parent, env=environment, stdout=output, stderr=output
        )


def sweep(folder: Path, *overrides: str) -> tuple[int, str]:
    """Run a sweep to its end: exit status and output."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / "log.txt"
    status = start(folder, *overrides, log=log).wait()
    return status, log.read_text(encoding="utf-8")


def losses(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in folder.glob("*/losses.jsonl")}


# --- the machine shared out -----------------------------------------------------------------------


def hydra_config(target: str, **launcher: Any) -> Any:
    return OmegaConf.create({"launcher": {"_target_": f"hydra_plugins.{target}", **launcher}})


def test_cells_at_once_are_the_launchers_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sweeping, slots):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(slots, "cuda_device_count", lambda: 0)
    joblib = "hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    found = [
        sweeping._at_once_of(hydra_config("x.BasicLauncher")),
        sweeping._at_once_of(hydra_config(joblib, n_jobs=3)),
        sweeping._at_once_of(hydra_config(joblib, n_jobs=-1)),
        sweeping._at_once_of(hydra_config("x.submitit_launcher.LocalLauncher")),
        sweeping._at_once_of(hydra_config("x.submitit_launcher.SlurmLauncher")),
        sweeping._at_once_of(hydra_config("x.ray_launcher.RayLauncher", ray={"init": {}})),
    ]
    assert found == [1, 3, 8, 8, 0, 0]


def test_threads_and_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: 8)
    monkeypatch.setattr(slots, "cuda_device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with ExitStack() as held:
        taken = [held.enter_context(slots.slot(tmp_path, 4)) for _ in range(4)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in taken] == ["5", "7", "5", "7"]
    assert {each["OMP_NUM_THREADS"] for each in taken} == {"2"}


def test_a_job_waits_for_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "cuda_device_count", lambda: 0)
    first = ExitStack()
    first.enter_context(slots.slot(tmp_path, 1))
    waited = []

    def free_it(seconds: float) -> None:
        waited.append(seconds)
        first.close()

    monkeypatch.setattr(slots, "time", SimpleNamespace(sleep=free_it))
    with slots.slot(tmp_path, 1):
        assert len(waited) == 1


def test_a_scheduler_shares_out_by_itself(tmp_path: Path) -> None:
    with ExitStack() as held:
        shares = [held.enter_context(slots.slot(tmp_path, 0)) for _ in range(3)]
    assert shares == [{}, {}, {}]


def _watch_over_launcher() -> None:
    sweeping._die_with_launcher()
    time.sleep(600)


def _launch_and_die(pid: Any) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_watch_over_launcher)
    worker.start()
    pid.value = worker.pid
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_with_a_launcher_that_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    pid = context.Value("i", 0)
    launcher = context.Process(target=_launch_and_die, args=(pid,))
    launcher.start()
    launcher.join()
    assert pid.value
    try:
        worker = psutil.Process(pid.value)
    except psutil.NoSuchProcess:
        return
    assert psutil.wait_procs([worker], timeout=60)[1] == []


# --- launchers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic") / "sweep"
    axes = ("ablation=baseline,rank_8", "seeds=1", "hydra/launcher=basic")
    assert sweep(folder, *axes, *TINY)[0] == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PLUGINS)
def test_every_launcher_gives_the_same_results(
    launcher: str, one_after_the_other: Path, tmp_path: Path
) -> None:
    if not installed(PLUGINS[launcher]):
        pytest.skip(f"{PLUGINS[launcher]} is not installed: docs/launchers.md tells how")
    folder = tmp_path / "sweeps" / "one"
    axes = ("ablation=baseline,rank_8", "seeds=1", f"hydra/launcher={launcher}")
    axes += OWN.get(launcher, ())
    status, output = sweep(folder, *axes, *TINY)
    assert status == 0, output
    assert "[2/2]" in output  # the launching process tells the progress
    assert len(losses(folder)) == 2
    assert losses(folder) == losses(one_after_the_other)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_nothing_goes_on_when_the_launching_process_is_killed(
    launcher: str, tmp_path: Path
) -> None:
    if not installed(PLUGINS[launcher]):
        pytest.skip(f"{PLUGINS[launcher]} is not installed: docs/launchers.md tells how")
    folder = tmp_path / "sweep"
    axes = ("ablation=baseline,rank_8", "seeds=1", f"hydra/launcher={launcher}")
    axes += OWN.get(launcher, ())
    long = ("trainer.max_steps=4000", "trainer.logging_steps=1")
    process = start(folder, *axes, *TINY, *long, log=tmp_path / "log.txt")
    while not any(file.stat().st_size for file in folder.glob("*/metrics.jsonl")):
        assert process.poll() is None, (tmp_path / "log.txt").read_text(encoding="utf-8")
        time.sleep(0.1)
    # Ray renames its processes; what computes is a fork of the fork server.
    family = psutil.Process(process.pid).children(recursive=True)
    cells = [each for each in family if "forkserver" in " ".join(each.cmdline())]
    assert cells
    process.kill()
    process.wait()
    assert psutil.wait_procs(cells, timeout=60)[1] == []


# --- searches -------------------------------------------------------------------------------------

needs_optuna = pytest.mark.skipif(
    not installed("hydra_optuna_sweeper"), reason="hydra-optuna-sweeper is not installed"
)
#: Learning rates of which some make a run diverge.
WIDE = (
    *("sweep=search", "hydra.sweeper.n_jobs=1", "hydra/launcher=basic"),
    *("hydra.sweeper.sampler.n_startup_trials=2", "optimizer.lr=tag(log,interval(1e-3,1e5))"),
)


@needs_optuna
def test_a_dry_run_of_a_search_tells_what_it_chooses_from(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "search"
    command = ("sweep=search", "lora.r=choice(2,4)", "lora.dropout=0.1", *TINY)
    status, output = sweep(folder, *command, "hydra.sweeper.n_trials=7", "--dry-run")
    assert status == 0, output
    lines = output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["optimizer.lr", "tag(log,interval(2e-4,2e-2))"],
        ["lora.r", "choice(2,4)"],
        ["lora.dropout", "0.1"],
    ]
    assert lines[4].startswith("7 cells are proposed in ")
    assert lines[4].endswith("search, 0 are there; 2 steps of 8 rows")
    assert lines[5].startswith("time and memory are told here once the first cell is done")
    assert lines[6:] == ["less where a cell is proposed again"]
    assert not folder.exists()


@needs_optuna
def test_a_key_that_is_needed_may_be_searched_for(tmp_path: Path) -> None:
    command = ("sweep=search", "trainer.max_steps=null", "trainer.epochs=interval(0.5,2)")
    status, output = sweep(tmp_path / "sweeps" / "search", *command, "--dry-run")
    assert status == 0, output
    assert "trainer.epochs  interval(0.5,2)" in output


@pytest.mark.slow
@needs_optuna
def test_a_search_goes_on_and_names_its_best(tmp_path: Path) -> None:
    whole, partial = tmp_path / "whole" / "search", tmp_path / "partial" / "search"
    status, output = sweep(whole, *WIDE, "hydra.sweeper.n_trials=4", *TINY)
    assert status == 0, output
    results = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in whole.glob("*/result.json")
    }
    assert len(results) == 4
    assert {each["status"] for each in results.values()} == {"finished", "diverged"}
    values = {
        name: each["metrics"]["after"][0]["value"]
        for name, each in results.items()
        if each["status"] == "finished"
    }
    best = min(values, key=lambda name: values[name])
    rate = best.partition("+")[0]
    assert f"the best of {len(values)}: {rate} " in output
    assert rate in (whole / "report.md").read_text(encoding="utf-8")
    # The same proposals again: what is there is taken, what is not is run.
    assert sweep(partial, *WIDE, "hydra.sweeper.n_trials=2", *TINY)[0] == 0
    assert len(losses(partial)) >= 1
    began = {file: file.stat().st_mtime_ns for file in partial.glob("*/result.json")}
    assert len(began) == 2
    assert sweep(partial, *WIDE, "hydra.sweeper.n_trials=4", *TINY)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in began} == began
    assert losses(partial) == losses(whole)
    # Those that are there are not among what is left.
    status, output = sweep(partial, *WIDE, "hydra.sweeper.n_trials=6", *TINY, "--dry-run")
    assert status == 0, output
    assert "6 cells are proposed in " in output
    assert ", 4 are there; " in output
    assert " for the 2 left, 1 at once, going by " in output


@pytest.mark.slow
@needs_optuna
def test_a_search_ends_cells_that_fall_behind(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "search"
    command = (
        *("sweep=search", "hydra.sweeper.n_jobs=1", "hydra/launcher=basic", *TINY),
        *("hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.n_startup_trials=5"),
        *("trainer.max_steps=3", "trainer.eval_steps=2", "sweep.prune_after=1"),
    )

    def results() -> dict[str, tuple[str, str | None]]:
        return {file.parent.name: status_of(file.parent) for file in folder.glob("*/result.json")}

    status, output = sweep(folder, *command)
    assert status == 0, output
    first = results()
    pruned = [name for name, (status, _) in first.items() if status == "pruned"]
    assert 1 <= len(pruned) < len(first) == 5
    assert {status for status, _ in first.values()} == {"finished", "pruned"}
    assert f"the best of {5 - len(pruned)}: " in output
    assert "by step 2, where 1 had " in output
    for name in pruned:
        assert losses_on_the_way(folder / name, "loss/all").keys() == {2}
        assert not (folder / name / "adapter").exists()
    assert "pruned" in (folder / "report.html").read_text(encoding="utf-8")

    # The same proposals again are judged as they were; what is there is taken.
    shutil.rmtree(folder / pruned[-1])
    began = {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}
    assert sweep(folder, *command)[0] == 0
    assert results() == first
    assert {file: file.stat().st_mtime_ns for file in began} == began
    # Without the rule they are trained to their end.
    assert sweep(folder, *command, "sweep.prune_after=null")[0] == 0
    assert results() == dict.fromkeys(first, ("finished", None))


def test_a_study_of_whole_cells_prunes_none(tmp_path: Path) -> None:
    status, output = sweep(tmp_path / "sweeps" / "ranks", "sweep=ranks", "sweep.prune_after=3")
    assert status == 2
    assert output.startswith("error: sweep.prune_after is for a search")


@needs_optuna
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (
                *("evaluation.primary=score/all", "hydra.sweeper.direction=maximize"),
                "sweep.prune_after=5",
            ),
            "sweep.prune_after judges cells by their loss on the way, not by score/all",
        ),
        (("sweep.prune_after=5",), "trainer.eval_steps=null measures none"),
        (
            ("sweep.prune_after=5", "trainer.eval_steps=24"),
            "trainer.eval_steps=24 measures none: give it fewer steps of 24",
        ),
        (("sweep.prune_after=0",), "sweep.prune_after must be"),
        (("lora.r=0",), "lora.r must be"),
        (("lora.r=choice(0,4)",), "lora.r must be"),
        (("lora.rr=choice(2,4)",), "did you mean lora.r"),
        (("seeds=3",), "seeds has no effect on a search"),
        (("trainer.max_steps=null", "trainer.epochs=null"), "trainer wants exactly one of"),
        (("evaluation.primary=null",), "a search needs a metric to judge by"),
        (("evaluation.primary=score/all",), "hydra.sweeper.direction=maximize"),
    ],
)
def test_a_search_is_checked_before_its_first_cell(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sweeps" / "search"
    status, output = sweep(folder, "sweep=search", *overrides)
    assert status == 2
    assert message in output
    assert output.count("\n") == 1
    assert not folder.exists()
