"""Whether CUDA answers, found out without importing torch (which takes seconds)."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import version


@cache
def cuda_is_available() -> bool:
    """True when torch has CUDA and the driver shows at least one device to this process.

    ``CUDA_VISIBLE_DEVICES`` is honoured by the driver itself.
    """
    if version("torch").endswith("+cpu"):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )
