"""Which rows are held out: decided by a hash of what copies of a question share, before mixing.

The hash knows no seed, no source and no order, so runs with other seeds, other mixes and other
YAML hold out the same questions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dollyllama.config import GroupBy
from dollyllama.data.example import Example, join_input

#: So many words at the end of their longest line tell GSM8K's questions apart (8,321 keys for 8,352
#: questions) and are never a wording's: its shortest question, with a wording before it, has 9.
_KEY_WORDS = 8

#: Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4): the multiplier.
_SECOND_HASH = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Fold case and collapse white space."""
    return " ".join(text.casefold().split())


def group_key(example: Example, group_by: GroupBy) -> str:
    """What rows share that must not cross the split.

    ``longest_line``: the last words of the instruction's longest line. The 37 wordings around a
    grade-school-math problem stand on other lines or before it on its own line, so the end of the
    line is the problem's in each of them, and bare GSM8K's too. Of a conversation it is the user's
    first turn that counts: the same chat is often there twice with other turns behind it.
    """
    if group_by is GroupBy.context:
        return normalise(example.context)
    asked = join_input(example.instruction, example.input)
    opening = next((said for role, said in example.history if role == "user"), asked)
    if group_by is GroupBy.longest_line:
        words = normalise(max(opening.split("\n"), key=len)).split(" ")
        return " ".join(words[-_KEY_WORDS:])
    return normalise(opening)


def side_hash(group: str) -> int:
    """64 bits that place a group in the split: equal for equal groups, evenly spread."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8])


def components(pairs: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    """Number what hangs together among ``count`` things: (count,), by (n, 2) pairs of them."""
    first, second = pairs.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def is_held_out(
    sides: npt.NDArray[np.uint64], together: npt.NDArray[np.int64], held_out: float
) -> npt.NDArray[np.bool_]:
    """Which rows are held out: a share ``held_out`` of the groups, of a larger share a superset.

    sides: each row's ``side_hash``. together: (pairs, 2), rows that must be on one side although
    their groups differ, near copies say. Groups joined by such pairs go where the one of them goes
    whose second hash is smallest, so that joining makes neither side larger.
    """
    groups, row_group = np.unique(sides, return_inverse=True)
    joined = components(row_group[together], len(groups))
    # Of each component the group with the smallest second hash speaks for all.
    order = np.lexsort((groups * _SECOND_HASH, joined))
    starts = np.flatnonzero(np.diff(joined[order], prepend=-1))
    speaker = np.empty(len(groups), np.uint64)
    speaker[order] = np.repeat(groups[order[starts]], np.diff([*starts, len(order)]))
    limit = np.uint64(held_out * 2**64)
    return np.asarray(speaker[row_group] < limit)
