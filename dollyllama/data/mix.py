"""What the model sees and in which order: weights, caps and one seed.

Every choice ranks examples by a hash of the seed and the example, so none depends on the order of
sources or rows, and a smaller share of a source is a subset of a larger one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dollyllama.data.example import Example


@dataclass(frozen=True, slots=True)
class Share:
    """A source's part in the mix, in training rows.

    available: what cleaning and the split left. chosen: different rows among them that are used.
    drawn: rows in the mix, repeats counted.
    """

    available: int
    chosen: int
    drawn: int


@dataclass(frozen=True, slots=True)
class MixReport:
    """The shares by source, names sorted."""

    shares: dict[str, Share]


def _rank(seed: int, use: str, example: Example, copy: int = 0) -> bytes:
    text = f"{seed}\x00{use}\x00{example.row}\x00{copy}\x00{example.id}"
    return hashlib.sha256(text.encode()).digest()


def _draw(examples: Sequence[Example], *, weight: float, seed: int) -> list[tuple[Example, int]]:
    """Draw ``weight`` times the examples as (example, copy number), the least needed last."""
    ranked = sorted(examples, key=lambda example: _rank(seed, "draw", example))
    total = math.floor(weight * len(ranked) + 0.5)
    return [(ranked[place % len(ranked)], place // len(ranked)) for place in range(total)]


def _quotas(sizes: Mapping[str, int], cap: int) -> dict[str, int]:
    """Share ``cap`` rows among sources in proportion to their sizes, by largest remainder."""
    total = sum(sizes.values())
    exact = {name: size * cap / total for name, size in sizes.items()}
    quotas = {name: math.floor(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in rest[: cap - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def build_mix(
    train: Sequence[Example],
    *,
    weights: Mapping[str, float],
    caps: Mapping[str, int | None],
    max_rows: int | None,
    seed: int,
) -> tuple[list[Example], MixReport]:
    """Choose, repeat and order the training examples; held-out ones are never mixed.

    weights: by source; below 1 a share of its rows, above 1 whole repeats and a share.
    caps: by source, rows after weighing. max_rows: of the whole mix, shared in proportion.
    """
    by_source: dict[str, list[Example]] = {name: [] for name in sorted(weights)}
    for example in train:
        by_source[example.source].append(example)
    drawn = {
        name: _draw(examples, weight=weights[name], seed=seed)[: caps[name]]
        for name, examples in by_source.items()
    }
    sizes = {name: len(rows) for name, rows in drawn.items()}
    if max_rows is not None and max_rows < sum(sizes.values()):
        quotas = _quotas(sizes, max_rows)
        drawn = {name: rows[: quotas[name]] for name, rows in drawn.items()}
    shares = {
        name: Share(
            available=len(by_source[name]),
            chosen=sum(copy == 0 for _, copy in rows),
            drawn=len(rows),
        )
        for name, rows in drawn.items()
    }
    mixed = [pair for rows in drawn.values() for pair in rows]
    mixed.sort(key=lambda pair: _rank(seed, "order", *pair))
    return [example for example, _ in mixed], MixReport(shares)
