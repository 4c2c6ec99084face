"""One training example, one rejected row, and which side of the split a row is on."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Split(StrEnum):
    train = enum.auto()
    held_out = enum.auto()


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction and its response as they stand in the prompt, without template and end marker.

    source: the data set's name in the mix. row: its row upstream, from 0.
    context: what a grader needs beside the text (SQL: the schema as upstream has it), else "".
    group: rows with an equal group never straddle the split.
    """

    source: str
    row: int
    instruction: str
    response: str
    context: str
    group: str

    @property
    def id(self) -> str:
        """16 hex digits that depend on the content alone, not on the row's place in its file."""
        content = "\x00".join((self.source, self.instruction, self.response, self.context))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An upstream row that is not used, and why: ``reason`` in snake_case, ``detail`` in words."""

    source: str
    row: int
    reason: str
    detail: str
    raw: dict[str, Any]
