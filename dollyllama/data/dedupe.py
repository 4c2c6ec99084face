"""Copies, within a source and across them: exact ones here, near ones found by ``near``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dollyllama.data.example import Example
from dollyllama.data.split import normalise

Places = npt.NDArray[np.int64]


def exact_key(example: Example) -> int:
    """64 bits that rows share which agree in question and response, case and white space aside.

    Among 10 million different rows two share one by chance once in 370,000 mixes.
    """
    text = f"{normalise(example.question)}\x00{normalise(example.response)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def first_copies(keys: npt.NDArray[np.uint64]) -> Places:
    """Of each row the first row that has its key, itself where there is none before it."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Rows that are copies of each other. kept: the one that stays; dropped: the others."""

    kept: int
    dropped: list[int]


def why_kept(cluster: Cluster, truncated: npt.NDArray[np.bool_], lengths: Places) -> str:
    """Why the row stays that stays, by the order of ``near.kept_of``, in words after its name."""
    cut = truncated[cluster.kept]
    rivals = [row for row in cluster.dropped if truncated[row] == cut]
    if not rivals:
        return "is not cut"
    if lengths[cluster.kept] > lengths[rivals].max():
        return "has the longest response"
    return "comes first"


def clusters_of(kept: Places) -> list[Cluster]:
    """The clusters of more than one row, by their first row.

    kept: of each row the row that stays of its cluster; rows that stay name themselves.
    """
    dropped = np.flatnonzero(kept != np.arange(len(kept)))
    found: dict[int, list[int]] = {}
    for row in dropped.tolist():
        found.setdefault(int(kept[row]), []).append(row)
    clusters = [Cluster(stays, others) for stays, others in found.items()]
    return sorted(clusters, key=lambda each: min(each.kept, each.dropped[0]))
