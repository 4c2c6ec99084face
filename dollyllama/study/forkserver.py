"""Preloaded into the server that cells are forked from: SIGTERM is for the cells, not for it.

A scheduler that ends a study signals all of its processes. A server that died of it would look, to
the launching process, as if its cells had, and they would be killed instead of saving.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
