"""Worker processes that do not outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from functools import cache

_SECONDS = 0.5


@cache
def die_with_parent() -> None:
    """End this worker of ``multiprocessing`` or joblib soon after its parent, killed or not.

    Otherwise it waits for ever for work, and holds what it inherited: locks are files, and a lock
    is free when the last process that has its file open is gone. Nothing happens in a process that
    was not started so.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    started_by = parent.pid

    def watch() -> None:
        while os.getppid() == started_by:
            time.sleep(_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# A thread is not inherited.
os.register_at_fork(after_in_child=die_with_parent.cache_clear)
