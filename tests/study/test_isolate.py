"""A process of its own: how it may end, and that it ends with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dollyllama.study.isolate import End, Ended, run_isolated
from tests.study import faults

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("function", "seconds", "ended"),
    [
        (faults.finish, None, Ended(End.done)),
        (faults.raise_at_once, None, Ended(End.raised)),
        (faults.eat_memory, None, Ended(End.raised)),
        (faults.kill_itself, None, Ended(End.killed, signal.SIGKILL)),
        (faults.crash, None, Ended(End.killed, signal.SIGSEGV)),
        (faults.hang, 2.0, Ended(End.too_long)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_end_is_told(
    function: object, seconds: float | None, ended: Ended, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    assert callable(function)
    arguments = (None, tmp_path / "cell", None)
    found = run_isolated(function, *arguments, log=log, environment={}, seconds=seconds)
    assert found == ended


def test_output_and_tracebacks_go_to_the_log_and_not_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    for function in (faults.finish, faults.raise_at_once):
        arguments = (None, tmp_path / "cell", None)
        run_isolated(function, *arguments, log=log, environment={}, seconds=None)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("it finished\nTraceback")
    assert text.endswith("ValueError: no such thing\n")
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_the_childs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_SHARE", raising=False)
    for environment in ({"A_SHARE": "two"}, {}):
        run_isolated(
            faults.say_environment,
            "A_SHARE",
            log=tmp_path / "log.txt",
            environment=environment,
            seconds=None,
        )
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "two\nNone\n"


def test_the_child_runs_the_code_of_its_parent(tmp_path: Path) -> None:
    """Not that of another clone, which the environment has installed."""
    other = tmp_path / "other"
    (other / "dollyllama" / "study").mkdir(parents=True)
    for name in ("__init__", "study/__init__", "study/isolate"):
        (other / "dollyllama" / f"{name}.py").touch()
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from dollyllama.study.isolate import run_isolated\n"
        "from dollyllama.provenance import package_versions\n"
        "print(run_isolated(package_versions, log=Path('log.txt'), environment={},"
        " seconds=None).end)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(other)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.slow
def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    program = (
        "from pathlib import Path\n"
        "from dollyllama.study.isolate import run_isolated\n"
        "from tests.study import faults\n"
        f"place = Path({str(folder)!r})\n"
        "run_isolated(faults.hang, None, place, None, log=place.parent / 'log.txt',"
        " environment={}, seconds=None)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (folder / "result.json").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2  # the fork server, the cell
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert len(gone) == len(family)


def test_a_parent_that_exits_by_a_signal_waits_until_the_child_has_saved(tmp_path: Path) -> None:
    """As submitit ends a job that is to run again: its handler of SIGUSR2 exits."""
    folder = tmp_path / "cell"
    program = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from dollyllama.study.isolate import run_isolated\n"
        "from tests.study import faults\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(144))\n"
        f"place = Path({str(folder)!r})\n"
        "run_isolated(faults.hang_and_save, None, place, None, log=place.parent / 'log.txt',"
        " environment={}, seconds=None)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (folder / "result.json").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGUSR2)
    assert parent.wait() == 144
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["status"] == (
        "interrupted"
    )
