"""Which rows are held out: decided by a hash of what copies of a question share, before mixing.

The hash knows no seed, no source and no order, so runs with other seeds, other mixes and other
YAML hold out the same questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from dollyllama.config import GroupBy
from dollyllama.data.example import Example, Split

#: So many words at the end of their longest line tell GSM8K's questions apart (8,321 keys for 8,352
#: questions) and are never a wording's: its shortest question, with a wording before it, has 9.
_KEY_WORDS = 8


def normalise(text: str) -> str:
    """Fold case and collapse white space."""
    return " ".join(text.casefold().split())


def group_key(example: Example, group_by: GroupBy) -> str:
    """What rows share that must not cross the split.

    ``longest_line``: the last words of the instruction's longest line. The 37 wordings around a
    grade-school-math problem stand on other lines or before it on its own line, so the end of the
    line is the problem's in each of them, and bare GSM8K's too.
    """
    if group_by is GroupBy.context:
        return normalise(example.context)
    if group_by is GroupBy.longest_line:
        words = normalise(max(example.instruction.split("\n"), key=len)).split(" ")
        return " ".join(words[-_KEY_WORDS:])
    return normalise(example.instruction)


def split_of(group: str, held_out: float) -> Split:
    """The side of a group: a larger ``held_out`` (a share, 0 to 1) holds out a superset."""
    place = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8])
    return Split.held_out if place < held_out * 2**64 else Split.train


def assign_split(
    examples: Iterable[Example], held_out: float
) -> tuple[list[Example], list[Example]]:
    """Return (train, held-out), each in the order given."""
    sides: dict[Split, list[Example]] = {Split.train: [], Split.held_out: []}
    for example in examples:
        sides[split_of(example.group, held_out)].append(example)
    return sides[Split.train], sides[Split.held_out]
