"""What the model sees and in which order: weights, temperature, caps, token budgets and one seed.

Every row has a random generator of its own, seeded by the seed and the row's id. Its first output
ranks the row in its source, the next ones place the row's copies in the mix. So nothing depends on
the order of sources or rows, and a smaller share of a source is a subset of a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """A source's N training rows and how much of them the mix asks for.

    ids: uint64 [N], by content and source; equal ones are copies of one row. tokens, supervised:
    int32 [N], a row's tokens and those among them with a loss.
    weight: passes over the source in an epoch of the mix. max_rows, max_tokens: caps on what the
    mix takes, repeats counted.
    """

    ids: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    supervised: NDArray[np.int32]
    weight: float
    max_rows: int | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Share:
    """A source's part in the mix, in training rows.

    available: what cleaning and the split left. chosen: different rows among them that are used.
    drawn: rows in the mix. tokens, supervised: tokens of those, and the ones with a loss. Repeats
    count in the last three.
    """

    available: int
    chosen: int
    drawn: int
    tokens: int
    supervised: int

    @property
    def repeats(self) -> float:
        """How often a chosen row is in the mix, on average; 0 when none is."""
        return self.drawn / self.chosen if self.chosen else 0.0


@dataclass(frozen=True, slots=True)
class MixReport:
    """The shares by source, names sorted."""

    shares: dict[str, Share]

    @property
    def total(self) -> Share:
        """The sums over the sources."""
        parts = self.shares.values()
        return Share(*(sum(getattr(part, each.name) for part in parts) for each in fields(Share)))


def build_mix(
    pools: Mapping[str, Pool],
    *,
    temperature: float,
    max_rows: int | None,
    max_tokens: int | None,
    seed: int,
) -> tuple[NDArray[np.int64], MixReport]:
    """Choose, repeat and order the training rows; return int64 places in the training order.

    A place counts through the sources' rows in the order of their names. The steps:

    1. A source's ``weight``: below 1 a share of its rows, above 1 whole passes and a share.
    2. ``temperature`` T: sources' rows in proportion to rows^(1/T), their sum unchanged, so that
       small sources repeat and large ones shrink. 1 changes nothing; the larger, the more equal.
       Raffel et al. 2020, arXiv:1910.10683, section 3.5.2; 1/T is the alpha of mT5, Xue et al.
       2021, arXiv:2010.11934, section 3.2.
    3. A source's ``max_rows`` and ``max_tokens``, hard caps. What they cut goes to no other source:
       they are not the limit K of Raffel et al., which only bounds what step 2 takes for a size.
    4. ``max_rows``, then ``max_tokens``, of the whole mix, shared in proportion to what is left of
       each source. Tokens fall short of their cap by less than a row a source.

    Repeats are cut before rows. Row counts and tokens are those before packing or padding.
    """
    pools = dict(sorted(pools.items()))
    states = {name: _states(pool.ids, seed) for name, pool in pools.items()}
    ranked = {name: np.argsort(_splitmix64(each, _FIRST)) for name, each in states.items()}
    drawn = _count_drawn(
        pools,
        sums={name: _running_sum(pool.tokens[ranked[name]]) for name, pool in pools.items()},
        temperature=temperature,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )
    shares, places, keys, start = {}, [], [], 0
    for name, pool in pools.items():
        available, count = len(pool.ids), drawn[name]
        rows = np.resize(ranked.pop(name), count)  # pass after pass
        shares[name] = Share(
            available=available,
            chosen=min(count, available),
            drawn=count,
            tokens=int(pool.tokens[rows].sum(dtype=np.int64)),
            supervised=int(pool.supervised[rows].sum(dtype=np.int64)),
        )
        copies = np.arange(count, dtype=np.uint64) // np.uint64(max(available, 1))
        places.append(start + rows)
        keys.append(_splitmix64(states.pop(name)[rows], copies + np.uint64(1)))
        start += available
    order = np.argsort(np.concatenate(keys), kind="stable")
    return np.concatenate(places)[order], MixReport(shares)


# --- how many -----------------------------------------------------------------------------------


def _count_drawn(
    pools: Mapping[str, Pool],
    *,
    sums: Mapping[str, NDArray[np.int64]],
    temperature: float,
    max_rows: int | None,
    max_tokens: int | None,
) -> dict[str, int]:
    """Rows of the mix by source, repeats counted; ``build_mix`` tells the steps.

    sums: by source, running sums of its rows' tokens in the order in which rows are taken.
    """
    drawn = {name: math.floor(pool.weight * len(pool.ids) + 0.5) for name, pool in pools.items()}
    sizes = {name: count ** (1 / temperature) for name, count in drawn.items()}
    drawn = _quotas(sizes, sum(drawn.values()))
    for name, pool in pools.items():
        if pool.max_rows is not None:
            drawn[name] = min(drawn[name], pool.max_rows)
        if pool.max_tokens is not None:
            drawn[name] = min(drawn[name], _fitting(sums[name], pool.max_tokens))
    if max_rows is not None and max_rows < sum(drawn.values()):
        drawn = _quotas(drawn, max_rows)
    tokens = {name: _sum_of(sums[name], count) for name, count in drawn.items()}
    if max_tokens is not None and max_tokens < sum(tokens.values()):
        budgets = _quotas(tokens, max_tokens)
        drawn = {name: _fitting(sums[name], budget) for name, budget in budgets.items()}
    return drawn


def _quotas(sizes: Mapping[str, float], total: int) -> dict[str, int]:
    """Share ``total`` among sources in proportion to their sizes, by largest remainder.

    Of equal remainders those of the first names are served. Exact: tokens of large mixes would
    overflow a float's digits.
    """
    whole = sum(map(Fraction, sizes.values()))
    if not whole:
        return dict.fromkeys(sizes, 0)
    exact = {name: Fraction(size) * total / whole for name, size in sizes.items()}
    quotas = {name: math.floor(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in rest[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _running_sum(values: NDArray[np.int32]) -> NDArray[np.int64]:
    """The sums of the first 0, 1, ..., N values, int64 [N + 1]."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def _sum_of(sums: NDArray[np.int64], count: int) -> int:
    """The sum of the first ``count`` values of endless passes, by one pass's running sums."""
    passes, rest = divmod(count, max(len(sums) - 1, 1))
    return passes * int(sums[-1]) + int(sums[rest])


def _fitting(sums: NDArray[np.int64], budget: int) -> int:
    """How many of the first values of endless passes sum to at most ``budget``; all are >= 1."""
    if len(sums) == 1:
        return 0
    passes, rest = divmod(budget, int(sums[-1]))
    return passes * (len(sums) - 1) + int(np.searchsorted(sums, rest, side="right")) - 1


# --- a generator for each row -------------------------------------------------------------------

_FIRST = np.zeros(1, np.uint64)


def _states(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The state of each row's generator, uint64 [N]; rows with equal ids get different ones."""
    key = _splitmix64(np.array([seed], np.uint64), _FIRST)
    return _splitmix64(ids ^ key, _occurrences(ids))


def _occurrences(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many equal ids stand before each, uint64 [N]."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    occurrences = np.empty(len(ids), np.uint64)
    lengths = np.diff(starts, append=len(ids))
    occurrences[order] = np.arange(len(ids)) - np.repeat(starts, lengths)
    return occurrences


def _splitmix64(states: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output ``numbers`` (from 0) of the SplitMix64 generators with these states.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA, with the
    constants of Vigna's splitmix64.c. Distinct states give distinct outputs of one number.
    """
    z: NDArray[np.uint64] = states + (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
