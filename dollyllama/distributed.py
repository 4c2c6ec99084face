"""One run in several processes, as ``torchrun`` and ``accelerate launch`` start them.

The first process tells the story and keeps the record; the others train, and answer questions, with
it. What only the first knows it tells them, and all agree before any of them does what the others
must do too. In a process of its own every function here answers at once, and torch is not imported.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

#: How long the others wait for the first to prepare data or for one another. A process that is gone
#: is noticed at once: its connections close, and its launcher ends the others.
_PATIENCE = timedelta(hours=12)

#: What torch's messages have in common when a process does not answer any more.
_GONE = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe")

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def processes() -> int:
    """How many processes share the run, by what their launcher left in the environment."""
    return _given("WORLD_SIZE", 1, least=1)


def number() -> int:
    """Which of them this is, from 0."""
    return _given("RANK", 0) if processes() > 1 else 0


def number_here() -> int:
    """Which of those on this machine this is, from 0: that of its GPU."""
    return _given("LOCAL_RANK", 0) if processes() > 1 else 0


def _given(name: str, otherwise: int, *, least: int = 0) -> int:
    value = os.environ.get(name) or str(otherwise)
    if not value.isdecimal() or int(value) < least:
        # Asked before anything that could tell of an error.
        print(
            f"error: {name}={value} in the environment is no number of processes: unset it",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return int(value)


def is_first() -> bool:
    return number() == 0


def end_at_once() -> None:
    """Let signals end a process other than the first, which has nothing to put in order, at once.

    Also while it waits for the others; training asks otherwise.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)


@contextmanager
def group() -> Iterator[None]:
    """Join the other processes, and leave them at the end.

    ValueError when their launcher named no place to meet, ConnectionError when none is there.
    """
    if processes() == 1:
        yield
        return
    if not all(os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")):
        raise ValueError(
            "WORLD_SIZE is set as of several processes, but not where they meet: start them by "
            "torchrun or accelerate launch (docs/distributed.md), or unset WORLD_SIZE"
        )
    if number() >= processes():
        raise ValueError(f"RANK={number()} is none of WORLD_SIZE={processes()} processes from 0")
    import torch
    from torch import distributed

    # Gloo tells what lies in main memory, under NCCL too: no GPU waits for it.
    cuda = torch.cuda.is_available()
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    except distributed.DistError as error:
        raise ConnectionError(
            "the first process of this run cannot be reached; its last lines may say why"
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def told_of_the_dead() -> Iterator[None]:
    """ConnectionError in one line in place of what torch raises when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if processes() == 1 or not _GONE.search(str(error)):
            raise
        raise ConnectionError(
            "another process of this run is gone; its last lines say why"
        ) from error


def from_first(value: Any = None) -> Any:
    """What the first process calls this with, in all of them: the others wait for it."""
    if processes() == 1:
        return value
    from torch import distributed

    told = [value]
    with told_of_the_dead():
        distributed.broadcast_object_list(told, src=0)
    return told[0]


def meet() -> None:
    """Wait until all processes are here."""
    from_all(None)


def from_all(value: Any) -> list[Any]:
    """What each process calls this with, in their order."""
    if processes() == 1:
        return [value]
    from torch import distributed

    told: list[Any] = [None] * processes()
    with told_of_the_dead():
        distributed.all_gather_object(told, value)
    return told


def shared_out(
    items: Sequence[_Item],
    work: Callable[[Sequence[_Item]], Sequence[_Made]],
    *,
    in_step: bool = False,
) -> list[_Made]:
    """Let each process do ``work`` on its share of ``items``; all get what all made, in order.

    work: makes one thing of each item. in_step: each does all of it, because what ``work`` calls
    needs all processes at once.
    """
    if processes() == 1 or in_step:
        return list(work(items))
    made: list[Any] = [None] * len(items)
    for first, share in enumerate(from_all(work(items[number() :: processes()]))):
        made[first :: processes()] = share
    return made
