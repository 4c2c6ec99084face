"""The files by which a run tells what it did, and whether they are still as it wrote them."""

from __future__ import annotations

import enum
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Any

from dollyllama.explain import one_line
from dollyllama.files import damaged, digest, parse_json, read_signed_json

#: Beside ``result.json``, which holds their digests once the run has ended, in whatever way.
FILES = (
    "budget.json",
    "clusters.jsonl",
    "config.yaml",
    "contamination.jsonl",
    "data.json",
    "losses.jsonl",
    "metrics.jsonl",
    "provenance.json",
    "rejected.jsonl",
    "samples.jsonl",
)


class Status(StrEnum):
    running = enum.auto()
    finished = enum.auto()
    interrupted = enum.auto()
    diverged = enum.auto()
    pruned = enum.auto()
    failed = enum.auto()


def describe(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the record that is there."""
    return {name: digest(folder / name) for name in FILES if (folder / name).is_file()}


def check(folder: Path) -> None:
    """ValueError when a file of the record is not as the run in ``folder`` left it.

    While a run goes on, and after it was killed, there is nothing to tell by, and all passes.
    """
    path = folder / "result.json"
    if not path.exists():
        return
    if changed := damaged(folder, read_signed_json(path).get("files") or {}):
        file = folder / changed[0]
        what = "is not as the run wrote it" if file.exists() else "is missing"
        raise ValueError(
            f"{file} {what}: put it back; if that is meant, take files and sha256 out of {path}"
        )


def read(folder: Path, name: str, key: str) -> dict[str, Any]:
    """What a file of a run holds: ``key`` at least. ValueError when it is missing or damaged."""
    path = folder / name
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        record[key]
    except FileNotFoundError:
        raise ValueError(f"{folder} is damaged: it has no {name}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))}") from None
    return dict(record)


def resume_command(folder: Path, mirror: str | None) -> str:
    """The command that goes on with a run; ``tracking.mirror`` has to be typed again each time."""
    words = ["python", "train.py", f"resume={folder}"]
    return shlex.join(words if mirror is None else [*words, f"tracking.mirror={mirror}"])
