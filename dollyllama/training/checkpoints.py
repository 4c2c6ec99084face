"""Checkpoints: all that a run needs to go on as if nothing had happened, whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE_FILE = "state.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write ``state`` to ``folder/checkpoint-<step>`` and remove all but the newest ``keep``.

    The folder appears under its name when it is complete and on disk, and not before. state: dicts,
    lists, strings, numbers and tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".checkpoint-*"):
        shutil.rmtree(left_over)
    temporary = folder / f".checkpoint-{step}.tmp"
    temporary.mkdir()
    with (temporary / _STATE_FILE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"checkpoint-{step}"
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    for older in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(older)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in ``folder``, by ascending step."""
    if not folder.is_dir():
        return []
    steps = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    numbered = [(int(match[1]), path) for path, match in steps.items() if match]
    return [path for _, path in sorted(numbered)]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state, its tensors on the CPU."""
    state: dict[str, Any] = torch.load(path / _STATE_FILE, map_location="cpu", weights_only=True)
    return state


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's generators, on which dropout depends."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
