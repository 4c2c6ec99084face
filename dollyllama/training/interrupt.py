"""Ctrl-C once asks training to stop at a good moment; Ctrl-C twice stops it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NOTICE = (
    "\nStopping after this step, with a checkpoint to resume from. Ctrl-C again stops at once.\n"
)


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
        if not requested:
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
