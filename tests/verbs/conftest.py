from __future__ import annotations

from pathlib import Path

import pytest

from dollyllama import launch
from dollyllama.run import run

#: A run of one step on the embedded model.
SMALL = (
    *("tracking=files", "device=cpu", "data.max_rows=32", "data.held_out=0.02", "trainer=smoke"),
    *("trainer.max_steps=1", "evaluation=none", "decoding.max_new_tokens=8"),
)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(launch.compose_run(list(SMALL)), folder)
    return folder
