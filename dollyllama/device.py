"""The cores and GPUs at hand, found out without importing torch (which takes seconds)."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import version


def usable_cores() -> int:
    """Those that this process may run on, where the system tells, or else all."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cuda_is_available() -> bool:
    """Whether there is a device for torch to use."""
    return cuda_device_count() > 0


@cache
def cuda_device_count() -> int:
    """How many devices the driver shows to this process; 0 when torch has no CUDA.

    ``CUDA_VISIBLE_DEVICES`` is honoured by the driver itself.
    """
    if version("torch").endswith("+cpu"):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    answers = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if answers else 0
