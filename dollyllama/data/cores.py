"""Work on all cores, by processes that inherit what they work on."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from dollyllama.device import usable_cores
from dollyllama.orphans import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

_MOST = 8


def on_all_cores(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Yield what ``work`` makes of each task, in their order.

    Up to eight processes are forked with all that ``work`` refers to, so that only tasks and
    results are sent; tasks are taken as results are. A single task is done here, and all are in a
    process that may have no children. What ``work`` raises comes through; ValueError where a
    process was killed.
    """
    ahead = iter(tasks)
    first = list(islice(ahead, 2))
    ahead = chain(first, ahead)
    # A process of a sweep's or of torch's data loader may have no children of its own.
    count = 1 if multiprocessing.current_process().daemon else min(_MOST, usable_cores())
    if len(first) < 2 or count == 1:
        yield from map(work, ahead)
        return
    # Forked, so that nothing is imported, loaded or sent a second time.
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, fork, initializer=_start, initargs=(work,))
    open_tasks: deque[Future[Result]] = deque()
    try:
        with _held_back():  # the first task starts the processes
            open_tasks.append(pool.submit(_do, next(ahead)))
        for task in ahead:
            open_tasks.append(pool.submit(_do, task))
            if len(open_tasks) > 2 * count:
                yield open_tasks.popleft().result()
        while open_tasks:
            yield open_tasks.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that prepares data was killed, perhaps for want of memory; the same command "
            "goes on from the rows that were read"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


#: What a process was started for.
_OWN: list[Callable[[Any], Any]] = []


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _held_back() -> Iterator[None]:
    """Let signals wait, here and in what is forked: none meets a handler of the parent there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(work: Callable[[Any], Any]) -> None:
    # The parent tells of either, and shuts the pool down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    die_with_parent()
    _OWN[:] = [work]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # what was inherited is no garbage, and collecting it would copy its pages
    gc.set_threshold(100_000)


def _do(task: Any) -> Any:
    return _OWN[0](task)
