"""A run in a process of its own, forked after the imports.

``forkserver`` keeps a process that has imported the libraries (ten seconds) and nothing else: no
thread of Python, no model, no run of W&B. Every cell is a fork of it, so an out-of-memory kill, a
crash or a leaked gigabyte ends that cell alone.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dollyllama.interrupt import Terminated, end_on_sigterm
from dollyllama.redact import mask_output

#: Imported once for all cells. W&B imports its ``launch`` in each run that it starts.
_PRELOADED = ("dollyllama.study.forkserver", "dollyllama.run", "wandb.sdk.launch")
_ROOT = str(Path(__file__).resolve().parents[2])
#: Seconds that an interrupted cell gets to write its checkpoint.
GRACE_SECONDS = 120


class End(StrEnum):
    """How a process ended: by returning, by an exception, by a signal, or beyond its time."""

    done = enum.auto()
    raised = enum.auto()
    killed = enum.auto()
    too_long = enum.auto()


@dataclass(frozen=True, slots=True)
class Ended:
    """signal: the number of the one that killed it."""

    end: End
    signal: int | None = None


def run_isolated(
    function: Callable[..., object],
    *arguments: Any,
    log: Path,
    environment: dict[str, str],
    seconds: float | None,
) -> Ended:
    """Call an importable ``function`` in a fork; its output goes to the end of ``log``.

    environment: variables to set in it. seconds: it is killed beyond them. It is killed too when
    this process dies. What a signal's handler raises here (KeyboardInterrupt, or what submitit ends
    a job by) is raised again when the child has written its checkpoint and ended as well.
    """
    # A worker of joblib has a start method of its own, which the fork would not know.
    multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, "__main__"])
    _start_server()
    child = context.Process(
        target=_child, args=(function, arguments, str(log.resolve()), environment)
    )
    child.start()
    try:
        child.join(seconds)
    except BaseException as error:
        # Of Ctrl-C the terminal has told the child as well.
        if isinstance(error, Terminated) or not isinstance(error, KeyboardInterrupt):
            child.terminate()
        child.join(GRACE_SECONDS)
        _kill(child)
        raise
    if child.exitcode is None:
        _kill(child)
        return Ended(End.too_long)
    if child.exitcode < 0:
        return Ended(End.killed, -child.exitcode)
    return Ended(End.done if child.exitcode == 0 else End.raised)


def _start_server() -> None:
    """Start the process that cells are forked from, with this very code, unless there is one.

    Before Python 3.12.8 and 3.13.1 it gets ``sys.path`` when it has imported already: the
    ``dollyllama`` that is installed, perhaps of another clone, or none.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([_ROOT, *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _kill(child: Any) -> None:
    if child.exitcode is None:
        child.kill()
    child.join()


def _child(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    log: str,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_on_sigterm()
    _die_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    mask_output(stdout=True)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)
    sys.stdout.flush()


def _die_with_parent() -> None:
    """Leave no orphan: whoever waits for this cell is gone, and will start it again."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
