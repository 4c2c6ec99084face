"""Ctrl-C once asks training to stop at a good moment; Ctrl-C twice stops it. SIGTERM asks too."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dollyllama import distributed

_NOTICE = (
    "\nStopping after this step, with a checkpoint to resume from. Ctrl-C again stops at once.\n"
)


#: Seconds.
_PATIENCE = 10.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers ask a process to end."""


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: with what it leaves in order.

    What follows within ``_PATIENCE`` seconds does not disturb it in putting that in order; later
    ones count again, as the first may have come where an exception gets lost.
    """
    last = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > _PATIENCE:
            last = time.monotonic()
            raise Terminated

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has asked to stop.

    A further SIGINT raises KeyboardInterrupt. Outside the main thread, where Python takes no
    signals, nothing ever asks.
    """
    requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not requested and distributed.is_first():
            # The signal may have come in the midst of a print, which cannot be entered twice.
            os.write(2, _NOTICE.encode())
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
