"""Checkpoints: all that a run needs to go on as if nothing had happened, whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dollyllama.files import damaged, digest, parse_json, write_json

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE_FILE = "state.pt"
_DIGESTS_FILE = "digests.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write ``state`` to ``folder/checkpoint-<step>`` and remove all but the newest ``keep``.

    The folder appears under its name when it is complete and on disk, and not before; what could
    not be written whole takes no room. state: dicts, lists, strings, numbers and tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".checkpoint-*"):
        shutil.rmtree(left_over)
    temporary = folder / f".checkpoint-{step}.tmp"
    temporary.mkdir()
    try:
        with (temporary / _STATE_FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        write_json(temporary / _DIGESTS_FILE, {_STATE_FILE: digest(temporary / _STATE_FILE)})
        _sync(temporary)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, RuntimeError) and error.__context__ is not None:
            # torch's writer fails once more when it closes the file that it could not write.
            raise error.__context__ from None
        raise
    path = folder / f"checkpoint-{step}"
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)
    _sync(folder)
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


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` whose bytes are those that were written, and its state.

    Damaged ones on the way are set aside under another name, with a line on stderr for each. Where
    none is whole the line says so, and None is returned, as for a folder without any. Tensors are
    on the CPU. ValueError for one without digests, OSError for one that cannot be read: either may
    be whole, and is left as it is.
    """
    found = list_checkpoints(folder)
    while found:
        path = found.pop()
        if not (reason := _damage(path)):
            try:
                state: dict[str, Any] = torch.load(
                    path / _STATE_FILE, map_location="cpu", weights_only=True
                )
            except UnpicklingError:
                reason = f"{_STATE_FILE} holds more than tensors and numbers, and is not loaded"
            else:
                return path, state
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        instead = (
            f"going on from {found[-1].name}"
            if found
            else "there is none before it, so training begins anew"
        )
        print(f"{path} is damaged ({reason}), and is now {aside.name}: {instead}", file=sys.stderr)
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when nothing is."""
    try:
        digests = parse_json((path / _DIGESTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} has no {_DIGESTS_FILE}: an earlier version wrote it, or it is damaged; "
            f"go on with that version, or remove it to go on without it"
        ) from None
    except ValueError:
        return f"{_DIGESTS_FILE} cannot be read"
    if not isinstance(digests, dict) or _STATE_FILE not in digests:
        return f"{_DIGESTS_FILE} has no digest of {_STATE_FILE}"
    changed = damaged(path, digests)
    return f"{', '.join(changed)} differs from its digest" if changed else None


def _sync(folder: Path) -> None:
    """Have a folder's names on disk, as ``fsync`` has a file's bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
