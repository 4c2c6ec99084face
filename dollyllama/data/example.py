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


#: Turns that stand before an instruction, as (role, content): system words first, then the user and
#: the assistant in turn, each user's turn answered.
History = tuple[tuple[str, str], ...]


def join_input(instruction: str, given: str) -> str:
    """Put an optional input below its instruction."""
    return f"{instruction}\n{given}" if given else instruction


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, without a template; the fields are those of ``Example``."""

    instruction: str
    input: str = ""
    history: History = ()


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction and its response, without template and end marker.

    source: the data set's name in the mix. row: its row upstream, from 0.
    context: what a grader needs beside the text (SQL: the schema as upstream has it), else "".
    group: rows with an equal group never straddle the split.
    input: what the instruction is about, where upstream keeps it apart, else "".
    history: what was said before the instruction.
    """

    source: str
    row: int
    instruction: str
    response: str
    context: str
    group: str
    input: str = ""
    history: History = ()

    @property
    def question(self) -> str:
        """All that the response answers, line by line: history, instruction, input."""
        said = [content for _, content in self.history]
        return "\n".join([*said, join_input(self.instruction, self.input)])

    @property
    def id(self) -> str:
        """16 hex digits that depend on the content alone, not on the row's place in its file."""
        content = "\x00".join((self.source, self.question, self.response, self.context))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An upstream row that is not used, and why: ``reason`` in snake_case, ``detail`` in words."""

    source: str
    row: int
    reason: str
    detail: str
    raw: dict[str, Any]
