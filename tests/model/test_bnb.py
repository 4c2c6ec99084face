"""How bitsandbytes comes in: quiet, and not compiled."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import dollyllama.model  # noqa: F401  (imports it)

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import sys
import torch
compile_ = torch.compile
import dollyllama.run
import bitsandbytes
assert torch.compile is compile_
weight = torch.nn.Parameter(torch.ones(8))  # small enough for a state in 32 bits
optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1)
weight.grad = torch.ones(8)
optimizer.step()
print(weight.tolist() != [1.0] * 8, "torch._inductor.compile_fx" in sys.modules)
"""


def test_no_compiler_starts_in_training() -> None:
    """Its kernels would be others where a C++ compiler is installed than where none is."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_what_a_user_can_act_on_still_shows(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "none")
    logger.warning("Your processor is on fire")
    assert [record.getMessage() for record in caplog.records] == ["Your processor is on fire"]
