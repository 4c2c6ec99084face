"""Builders of small sources, mixes and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dollyllama.config import (
    Data,
    Deduplicate,
    Grader,
    GroupBy,
    LossOn,
    Overlong,
    RowFormat,
    Source,
)
from dollyllama.data.example import Example

Rows = list[dict[str, Any]]


def make_source(path: Path | str, **changes: Any) -> Source:
    values: dict[str, Any] = {
        "path": str(path),
        "file": "rows",
        "revision": None,
        "split": "train",
        "format": RowFormat.prompt_response,
        "group_by": GroupBy.instruction,
        "rules": [],
        "grader": Grader.text,
        "licence": "MIT",
        "licence_stated_at": "its card",
        "weight": 1.0,
        "max_rows": None,
    }
    return Source(**(values | changes))


def make_data(sources: dict[str, Source], **changes: Any) -> Data:
    values: dict[str, Any] = {
        "sources": sources,
        "root": None,
        "deduplicate": Deduplicate.exact,
        "held_out": 0.2,
        "max_rows": None,
        "max_length": 512,
        "overlong": Overlong.truncate,
        "loss_on": LossOn.response,
    }
    return Data(**(values | changes))


def make_example(instruction: str = "Do it.", response: str = "Done.", **changes: Any) -> Example:
    values: dict[str, Any] = {"source": "a", "row": 0, "context": "", "group": instruction}
    return Example(instruction=instruction, response=response, **(values | changes))


def numbered_rows(count: int, start: int = 0) -> Rows:
    return [
        {"prompt": f"Say number {number}.", "response": f"It is {number}."}
        for number in range(start, start + count)
    ]
