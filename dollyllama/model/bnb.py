"""bitsandbytes as it is wanted here: quiet, and not compiled."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import torch

#: Loggers of bitsandbytes and the beginnings of what they say that no user can act on: that an
#: extra package with other CPU kernels is missing (said on import), that int8 computes in float16.
_NOTICES = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


def import_it() -> None:
    """Import bitsandbytes, before anything else does, as PEFT would.

    On import it hands functions to ``torch.compile`` that only a device without kernels of its own
    needs (not CUDA). That loads Inductor, which takes seconds, and on a CPU lets its optimizers
    start a C++ compiler in the midst of training, where there is one: their results would depend on
    whether there is. So ``torch.compile`` hands them back as they are for as long as that takes.
    What imports bitsandbytes before this package gets the compiled ones. A merged model answers
    without it, so where it is missing, who needs it says so.
    """
    for name in _NOTICES:
        logging.getLogger(name).addFilter(_is_news)
    original = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        with suppress(ModuleNotFoundError):
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = original


def _uncompiled(function: Any = None, **_: Any) -> Any:
    return (lambda each: each) if function is None else function


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NOTICES[record.name])
