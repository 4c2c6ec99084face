"""As much of Slurm on one machine as submitit asks for: arrays, requeueing, states.

``install`` puts sbatch, srun, scontrol, scancel and sacct into a folder; each is this file under
another name. A job is a session of its own below a keeper, which starts it again after a requeue.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

NAMES = ("sbatch", "srun", "scontrol", "scancel", "sacct")
#: Seconds from SIGTERM to SIGKILL; Slurm's KillWait.
KILL_WAIT = 30


def install(folder: Path) -> None:
    for name in NAMES:
        program = folder / name
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "{folder}" "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)


def sbatch(folder: Path, script: str) -> None:
    """Start every task of an array, all at once."""
    text = Path(script).read_text(encoding="utf-8")
    array = re.search(r"--array=0-(\d+)", text)
    number = str(1000 + len(list(folder.glob("*.script"))))
    (folder / f"{number}.script").write_text(text, encoding="utf-8")
    for task in range(int(array[1]) + 1) if array else [None]:
        job = number if task is None else f"{number}_{task}"
        (folder / f"{job}.state").write_text("PENDING", encoding="utf-8")
        keeper = [sys.executable, __file__, "keep", str(folder), job]
        nowhere = subprocess.DEVNULL  # submitit reads what sbatch says to its end
        subprocess.Popen(keeper, start_new_session=True, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {number}")


def keep(folder: Path, job: str) -> None:
    """Run a job to its end, and again while it has been requeued."""
    number, _, task = job.partition("_")
    own = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    if task:
        own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    state, requeued = folder / f"{job}.state", folder / f"{job}.requeue"
    while True:
        command = ["bash", str(folder / f"{number}.script")]
        running = subprocess.Popen(command, env=os.environ | own, start_new_session=True)
        (folder / f"{job}.pid").write_text(str(running.pid), encoding="utf-8")
        state.write_text("RUNNING", encoding="utf-8")
        status = running.wait()
        while members(running.pid):
            time.sleep(0.1)
        if requeued.exists():
            requeued.unlink()
            continue
        if state.read_text(encoding="utf-8") != "CANCELLED":
            state.write_text("FAILED" if status else "COMPLETED", encoding="utf-8")
        return


def srun(folder: Path, *arguments: str) -> None:
    """Become the command, with its output where it is to go."""
    command = list(arguments)
    number = os.environ["SLURM_JOB_ID"]
    marks = {"%A": number, "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%j": number, "%t": "0"}
    while command[0].startswith("--"):
        flag = command.pop(0)
        if flag in {"--output", "--error"}:
            name = re.sub("%[Aajt]", lambda mark: marks[mark[0]], command.pop(0))
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, 1 + (flag == "--error"))
    os.execvp(command[0], command)


def scontrol(folder: Path, verb: str, job: str) -> None:
    assert verb == "requeue"
    (folder / f"{job}.requeue").touch()
    _end(folder, job)


def scancel(folder: Path, job: str) -> None:
    (folder / f"{job}.state").write_text("CANCELLED", encoding="utf-8")
    _end(folder, job)


def _end(folder: Path, job: str) -> None:
    """SIGTERM to all processes of a job, and what is left after a while is killed."""
    session = int((folder / f"{job}.pid").read_text(encoding="utf-8"))
    caller = os.getpid()
    if os.fork():
        return
    os.setsid()
    while os.getppid() == caller:  # scontrol, called by the job itself, comes back first
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGTERM)
        psutil.wait_procs(members(session), timeout=KILL_WAIT)
        os.killpg(session, signal.SIGKILL)


def members(session: int) -> list[psutil.Process]:
    """What of a job is alive."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(each.pid) == session and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def sacct(folder: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for state in folder.glob("*.state"):
        print(f"{state.stem}|{state.read_text(encoding='utf-8')}|here")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
