"""What other systems than Linux are told (docs/platforms.md)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dollyllama.device import usable_cores


def test_windows_is_refused_by_name() -> None:
    program = "import sys; sys.platform = 'win32'; import dollyllama"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: DollyLlama needs Linux or macOS: on Windows run it in WSL 2"
    )


def test_cores_are_those_of_the_process_or_where_that_is_not_told_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4})
    assert usable_cores() == 3
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == (os.cpu_count() or 1)
