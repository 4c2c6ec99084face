"""What is spread over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import count

import pytest

from dollyllama.data import cores
from dollyllama.data.cores import on_all_cores


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)


def test_results_come_in_the_order_of_the_tasks_from_other_processes() -> None:
    inherited = object()

    def work(task: int) -> tuple[int, int, int]:
        return task, os.getpid(), id(inherited)

    found = list(on_all_cores(work, range(40)))
    assert [task for task, _, _ in found] == list(range(40))
    assert os.getpid() not in {process for _, process, _ in found}
    assert {same for _, _, same in found} == {id(inherited)}


@pytest.mark.parametrize("tasks", [[], [1]])
def test_a_single_task_is_done_here(tasks: list[int]) -> None:
    assert list(on_all_cores(lambda _: os.getpid(), tasks)) == [os.getpid()] * len(tasks)


def test_tasks_are_taken_as_results_are() -> None:
    tasks = count()
    results = on_all_cores(abs, tasks)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert next(tasks) < 20


def test_what_the_work_raises_comes_through() -> None:
    def work(task: int) -> int:
        if task == 3:
            raise ValueError("row 3 is odd")
        return task

    with pytest.raises(ValueError, match="row 3 is odd"):
        list(on_all_cores(work, range(8)))


def test_a_process_that_was_killed_is_told_of() -> None:
    def work(task: int) -> int:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(ValueError, match="was killed, perhaps for want of memory"):
        list(on_all_cores(work, range(8)))


SCRIPT = """
import os, signal, sys, time
from dollyllama.data import cores
from dollyllama.interrupt import end_on_sigterm

signal.signal(signal.SIGINT, signal.default_int_handler)
cores.usable_cores = lambda: 2

def work(task):
    time.sleep(task)  # the process with the first has nothing to do by then
    if task and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return task

if sys.argv[1] == "interrupt at once":
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))

end_on_sigterm()
try:
    for result in cores.on_all_cores(work, range(2)):
        print(result, flush=True)
except (ValueError, KeyboardInterrupt) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("how", "last"),
    [("kill", "ValueError"), ("interrupt", "KeyboardInterrupt"), ("interrupt at once", "1")],
)
def test_processes_that_are_ended_say_nothing_themselves(how: str, last: str) -> None:
    """The one that started them tells what happened."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    output, errors = process.communicate(timeout=60)
    assert output.splitlines()[-1] == last
    assert errors == ""
