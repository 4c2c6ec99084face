from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dollyllama.data.mix import MixReport, Pool, Share, _quotas, _splitmix64, build_mix
from dollyllama.data.show import mix_table
from tests.data.build import make_data, make_source

SIZES = {"a": 40, "b": 20}


def make_pool(size: int, *, start: int = 0, tokens: list[int] | None = None, **asked: Any) -> Pool:
    """Rows with ids from ``start``, of 10 tokens each unless told, two fifths with a loss."""
    lengths = np.array([10] * size if tokens is None else tokens, np.int32)
    defaults: dict[str, Any] = {"weight": 1.0, "max_rows": None, "max_tokens": None}
    return Pool(
        ids=np.arange(start, start + size, dtype=np.uint64),
        tokens=lengths,
        supervised=lengths * 2 // 5,
        **(defaults | asked),
    )


def mix(
    asked: Mapping[str, dict[str, Any]] | None = None,
    *,
    temperature: float = 1.0,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> tuple[list[tuple[str, int]], MixReport]:
    """Mix 40 rows of a with 20 of b; return the rows in training order as (source, row)."""
    pools = {
        name: make_pool(size, start=100 * place, **(asked or {}).get(name, {}))
        for place, (name, size) in enumerate(SIZES.items())
    }
    places, report = build_mix(
        pools, temperature=temperature, max_rows=max_rows, max_tokens=max_tokens, seed=seed
    )
    return [("a", place) if place < 40 else ("b", place - 40) for place in places.tolist()], report


def per_source(mixed: list[tuple[str, int]]) -> Counter[str]:
    return Counter(name for name, _ in mixed)


# --- weights and caps ---------------------------------------------------------------------------


def test_weight_one_is_every_row_once_in_a_mixed_order() -> None:
    mixed, report = mix()
    rows = [(name, row) for name, size in SIZES.items() for row in range(size)]
    assert sorted(mixed) == rows
    assert mixed != rows
    assert per_source(mixed[:30])["b"] > 0
    assert report.shares == {"a": Share(40, 40, 40, 400, 160), "b": Share(20, 20, 20, 200, 80)}


def test_a_share_is_a_subset_of_a_larger_share_in_the_same_order() -> None:
    half, _ = mix({"a": {"weight": 0.5}})
    most, _ = mix({"a": {"weight": 0.8}})
    assert per_source(half) == {"a": 20, "b": 20}
    assert half == [row for row in most if row in set(half)]


def test_two_and_a_half_is_two_of_each_and_a_third_of_half() -> None:
    mixed, report = mix({"b": {"weight": 2.5}})
    assert Counter(Counter(row for row in mixed if row[0] == "b").values()) == {2: 10, 3: 10}
    assert report.shares["b"] == Share(20, 20, 50, tokens=500, supervised=200)
    assert report.shares["b"].repeats == 2.5


def test_weight_zero_leaves_a_source_out() -> None:
    mixed, report = mix({"a": {"weight": 0.0}})
    assert per_source(mixed) == {"b": 20}
    assert report.shares["a"] == Share(40, 0, 0, 0, 0)
    assert report.shares["a"].repeats == 0


def test_a_source_can_be_capped() -> None:
    mixed, report = mix({"a": {"max_rows": 5}})
    assert per_source(mixed) == {"a": 5, "b": 20}
    assert report.shares["a"] == Share(available=40, chosen=5, drawn=5, tokens=50, supervised=20)


@pytest.mark.parametrize("cap", [1, 7, 30, 59])
def test_the_cap_of_all_is_met_in_proportion(cap: int) -> None:
    mixed, _ = mix(max_rows=cap)
    assert len(mixed) == cap
    assert per_source(mixed)["a"] == pytest.approx(cap * 2 / 3, abs=1)


def test_caps_beyond_the_rows_change_nothing() -> None:
    beyond = {"max_rows": 81, "max_tokens": 801}
    assert mix({"a": beyond, "b": beyond}, **beyond) == mix()


def test_repeats_go_before_rows_when_a_cap_bites() -> None:
    mixed, _ = mix({"b": {"weight": 2.0, "max_rows": 20}})
    assert len({row for row in mixed if row[0] == "b"}) == 20


def test_an_empty_source_is_mixed_as_nothing() -> None:
    places, report = build_mix(
        {"a": make_pool(0, max_tokens=5), "b": make_pool(3, start=9)},
        temperature=2.0,
        max_rows=None,
        max_tokens=1000,
        seed=0,
    )
    assert sorted(places.tolist()) == [0, 1, 2]
    assert report.shares["a"] == Share(0, 0, 0, 0, 0)


# --- token budgets ------------------------------------------------------------------------------


def test_a_token_budget_takes_as_many_rows_as_fit() -> None:
    mixed, report = mix({"a": {"max_tokens": 119}})
    assert per_source(mixed)["a"] == 11
    assert report.shares["a"].tokens == 110


def test_a_token_budget_repeats_only_as_far_as_the_weight_says() -> None:
    budget = {"max_tokens": 10**6}
    assert per_source(mix({"a": budget})[0])["a"] == 40
    assert per_source(mix({"a": budget | {"weight": 3.0}})[0])["a"] == 120
    assert per_source(mix({"a": {"weight": 3.0, "max_tokens": 500}})[0])["a"] == 50


def test_the_token_budget_of_all_is_shared_by_tokens_and_not_by_rows() -> None:
    # a has 20 x 30 tokens, b 60 x 10: as many. So 300 tokens are 5 rows of a and 15 of b.
    pools = {"a": make_pool(20, tokens=[30] * 20), "b": make_pool(60, start=100)}
    _, report = build_mix(pools, temperature=1.0, max_rows=None, max_tokens=300, seed=0)
    assert {name: share.drawn for name, share in report.shares.items()} == {"a": 5, "b": 15}


def test_both_caps_of_all_hold() -> None:
    assert len(mix(max_rows=30, max_tokens=10**6)[0]) == 30
    assert mix(max_rows=30, max_tokens=150)[1].total.tokens == 150


# --- temperature --------------------------------------------------------------------------------


def test_temperature_two_shares_rows_by_square_roots() -> None:
    # sqrt(900) : sqrt(100) = 3 : 1 of 1,000 rows.
    pools = {"big": make_pool(900), "small": make_pool(100, start=1000)}
    _, report = build_mix(pools, temperature=2.0, max_rows=None, max_tokens=None, seed=0)
    big, small = report.shares["big"], report.shares["small"]
    assert (big.drawn, big.chosen, big.repeats) == (750, 750, 1.0)
    assert (small.drawn, small.chosen, small.repeats) == (250, 100, 2.5)


def test_temperature_starts_from_what_the_weights_ask_for() -> None:
    # 40 x 0.4 = 16 and 20 x 0.2 = 4 of 20: 4 : 2 of 20 is 13.3 : 6.7.
    mixed, _ = mix({"a": {"weight": 0.4}, "b": {"weight": 0.2}}, temperature=2.0)
    assert per_source(mixed) == {"a": 13, "b": 7}


def test_a_high_temperature_makes_sources_equal_and_keeps_an_unwanted_one_out() -> None:
    assert per_source(mix(temperature=1e9)[0]) == {"a": 30, "b": 30}
    assert per_source(mix({"b": {"weight": 0.0}}, temperature=1e9)[0]) == {"a": 40}


def test_a_cap_of_a_source_holds_at_any_temperature() -> None:
    mixed, _ = mix({"b": {"max_rows": 22}}, temperature=1e9)
    assert per_source(mixed) == {"a": 30, "b": 22}


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_the_nearest_whole_numbers_to_the_proportions(seed: int) -> None:
    draw = random.Random(seed)
    sizes = {name: draw.choice([0, 1, 3, 10, 40]) for name in "abcd"} | {"e": 1}
    total = draw.randint(0, sum(sizes.values()))
    exact = np.array(list(sizes.values())) * total / sum(sizes.values())
    candidates = (
        (np.floor(exact) + extra).astype(int)
        for extra in itertools.product([1, 0], repeat=5)
        if (np.floor(exact) + extra).sum() == total
    )
    # Of equally near ones the first has more for the first names.
    nearest = min(candidates, key=lambda quotas: round(float(((quotas - exact) ** 2).sum()), 9))
    assert list(_quotas(sizes, total).values()) == nearest.tolist()


def test_quotas_of_a_trillion_tokens_add_up() -> None:
    sizes = {f"{number}": 10**12 + number for number in range(7)}
    assert sum(_quotas(sizes, 10**12 - 1).values()) == 10**12 - 1


# --- what contradicts itself --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "data", "message"),
    [
        ({"max_tokens": 0}, {}, "data.sources.sql.max_tokens must be >= 1, not 0"),
        ({}, {"max_tokens": 0}, "data.max_tokens must be >= 1, not 0"),
        ({}, {"temperature": 0.5}, "data.temperature must be >= 1, not 0.5"),
        ({"weight": 0.0, "max_tokens": 5}, {}, "data.sources.sql.max_tokens=5 has no effect with"),
        ({"weight": 0.0, "max_rows": 5}, {}, "data.sources.sql.max_rows=5 has no effect with"),
    ],
)
def test_an_impossible_mix_is_refused(
    source: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_data({"sql": make_source("rows.jsonl", **source)}, **data)


# --- order and ranks ----------------------------------------------------------------------------


def ids_in_order(pools: Mapping[str, Pool], seed: int = 0, **caps: Any) -> list[int]:
    asked: dict[str, Any] = {"temperature": 1.0, "max_rows": None, "max_tokens": None} | caps
    places, _ = build_mix(pools, seed=seed, **asked)
    ids: list[int] = np.concatenate([pools[name].ids for name in sorted(pools)])[places].tolist()
    return ids


def turned(pool: Pool, order: NDArray[np.int64]) -> Pool:
    return Pool(
        ids=pool.ids[order],
        tokens=pool.tokens[order],
        supervised=pool.supervised[order],
        weight=pool.weight,
        max_rows=pool.max_rows,
        max_tokens=pool.max_tokens,
    )


def test_the_order_of_sources_and_rows_changes_nothing() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    pools = {
        "a": make_pool(50, tokens=lengths.tolist(), weight=1.7),
        "b": make_pool(30, start=50, max_tokens=111),
    }
    shuffled = {
        name: turned(pool, np.random.default_rng(1).permutation(len(pool.ids)))
        for name, pool in reversed(pools.items())
    }
    assert ids_in_order(shuffled, max_rows=60) == ids_in_order(pools, max_rows=60)


def test_order_and_choice_depend_on_the_seed() -> None:
    assert mix(seed=1)[0] != mix()[0]
    assert set(mix(max_rows=20, seed=1)[0]) != set(mix(max_rows=20)[0])


def test_rows_with_equal_ids_are_drawn_and_placed_apart() -> None:
    pool = make_pool(1000)
    pool.ids[:] = 7
    places, _ = build_mix({"a": pool}, temperature=1.0, max_rows=None, max_tokens=None, seed=0)
    assert sorted(places.tolist()) == list(range(1000))
    steps = np.diff(places)
    assert 400 < (steps > 0).sum() < 600


def test_splitmix64_gives_the_published_outputs() -> None:
    # The first five for the seed 1234567: https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    outputs = _splitmix64(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    assert outputs.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def ranks_of_a_draw_and_of_an_order(seed: int, size: int = 20_000) -> NDArray[np.float64]:
    """Where each row stands in its source's ranking (by halves) and in the training order."""
    pool = make_pool(size)
    everything, half = (
        build_mix({"a": pool}, temperature=1.0, max_rows=cap, max_tokens=None, seed=seed)[0]
        for cap in (None, size // 2)
    )
    order = np.empty(size)
    order[everything] = np.arange(size)
    chosen = np.zeros(size)
    chosen[half] = 1
    return np.stack([chosen, order])


def test_choice_order_and_seeds_are_independent_of_each_other_and_of_the_ids() -> None:
    """Ids that count up are the hardest. |r| < 4 / sqrt(N) for each pair of seven variables."""
    seeds = [ranks_of_a_draw_and_of_an_order(seed) for seed in (0, 1, 2)]
    variables = np.concatenate([*seeds, np.arange(20_000)[None]])
    correlations = np.corrcoef(variables)[np.triu_indices(7, k=1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(20_000)


def test_ranks_of_counting_ids_are_uniform() -> None:
    """Chi squared over 256 bins of the top and of the bottom byte: 255 +- 5 x sqrt(510)."""
    outputs = _splitmix64(np.arange(100_000, dtype=np.uint64), np.zeros(1, np.uint64))
    for byte in (outputs >> np.uint64(56), outputs & np.uint64(255)):
        counts = np.bincount(byte.astype(np.int64), minlength=256)
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi_squared == pytest.approx(255, abs=5 * np.sqrt(510))


# --- against plain Python -----------------------------------------------------------------------


def output(state: int, number: int) -> int:
    """SplitMix64 as Vigna's C has it, one step after the other."""
    mask = 2**64 - 1
    for _ in range(number + 1):
        state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def first(rows: list[tuple[int, int]], lengths: Mapping[int, int], budget: int | None) -> int:
    """How many rows come before the one that goes over the budget."""
    spent = list(itertools.accumulate(lengths[place] for place, _ in rows))
    return len(rows) if budget is None else sum(total <= budget for total in spent)


def slow_mix(
    pools: Mapping[str, Pool],
    *,
    temperature: float,
    max_rows: int | None,
    max_tokens: int | None,
    seed: int,
) -> list[int]:
    """The mix row by row, as lists of (place, copy). The ids of a source must differ."""
    key = output(seed, 0)
    every = [number for name in sorted(pools) for number in pools[name].ids.tolist()]
    lengths = dict(enumerate(n for name in sorted(pools) for n in pools[name].tokens.tolist()))
    states = [output(number ^ key, 0) for number in every]
    passes: dict[str, list[tuple[int, int]]] = {}
    start = 0
    for name in sorted(pools):
        end = start + len(pools[name].ids)
        ranked = sorted(range(start, end), key=lambda place: output(states[place], 0))
        passes[name] = [(place, copy) for copy in range(300) for place in ranked]
        start = end

    weighed = {name: int(pool.weight * len(pool.ids) + 0.5) for name, pool in pools.items()}
    powers = {name: rows ** (1 / temperature) for name, rows in sorted(weighed.items())}
    quotas = _quotas(powers, sum(weighed.values()))
    drawn = {name: rows[: quotas[name]][: pools[name].max_rows] for name, rows in passes.items()}
    for name, rows in drawn.items():
        del rows[first(rows, lengths, pools[name].max_tokens) :]
    if max_rows is not None and max_rows < sum(map(len, drawn.values())):
        quotas = _quotas({name: len(rows) for name, rows in drawn.items()}, max_rows)
        drawn = {name: rows[: quotas[name]] for name, rows in drawn.items()}
    sizes = {name: sum(lengths[place] for place, _ in rows) for name, rows in drawn.items()}
    if max_tokens is not None and max_tokens < sum(sizes.values()):
        quotas = _quotas(sizes, max_tokens)
        drawn = {name: rows[: first(rows, lengths, quotas[name])] for name, rows in drawn.items()}
    mixed = [pair for rows in drawn.values() for pair in rows]
    return [place for place, _ in sorted(mixed, key=lambda at: output(states[at[0]], at[1] + 1))]


@pytest.mark.parametrize("case", range(60))
def test_a_mix_is_that_of_plain_python(case: int) -> None:
    draw = random.Random(case)
    numbers = np.random.default_rng(case)

    def maybe(low: int, high: int) -> int | None:
        return draw.choice([None, draw.randint(low, high)])

    pools = {
        name: Pool(
            ids=numbers.integers(0, 2**64, size, dtype=np.uint64),
            tokens=numbers.integers(1, 60, size, dtype=np.int32),
            supervised=numbers.integers(0, 2, size, dtype=np.int32),
            weight=draw.choice([0.0, 0.3, 1.0, 1.0, 2.0, 3.7]),
            max_rows=maybe(1, 60),
            max_tokens=maybe(1, 2000),
        )
        for name in draw.sample("pqrs", draw.randint(1, 4))
        for size in [draw.choice([0, 1, 2, 10, 40])]
    }
    settings: dict[str, Any] = {
        "temperature": draw.choice([1.0, 1.0, 1.5, 4.0, 100.0]),
        "max_rows": maybe(1, 150),
        "max_tokens": maybe(1, 4000),
        "seed": draw.randint(0, 2**32 - 1),
    }
    places, report = build_mix(pools, **settings)
    assert places.tolist() == slow_mix(pools, **settings)

    # The report, counted from the places.
    source = [name for name in sorted(pools) for _ in pools[name].ids]
    tokens = np.concatenate([pools[name].tokens for name in sorted(pools)])
    supervised = np.concatenate([pools[name].supervised for name in sorted(pools)])
    for name, share in report.shares.items():
        own = [place for place in places.tolist() if source[place] == name]
        assert share == Share(
            available=source.count(name),
            chosen=len(set(own)),
            drawn=len(own),
            tokens=int(tokens[own].sum()),
            supervised=int(supervised[own].sum()),
        )
        # Whole passes before a part of one.
        copies = [own.count(place) for place in range(len(source)) if source[place] == name]
        assert not own or max(copies) - min(copies) <= 1


# --- the table ----------------------------------------------------------------------------------


def test_the_table_shows_counts_and_shares_of_what_the_model_sees() -> None:
    shares = {"maths": Share(1000, 500, 1500, 3000, 900), "sql": Share(600, 500, 500, 1000, 100)}
    assert mix_table(MixReport(shares)).splitlines() == [
        "         rows    used   in mix   repeats    share   tokens    share   supervised    share",
        "maths   1,000     500    1,500      3.00    75.0%    3,000    75.0%          900    90.0%",
        "sql       600     500      500      1.00    25.0%    1,000    25.0%          100    10.0%",
        "total   1,600   1,000    2,000      2.00   100.0%    4,000   100.0%        1,000   100.0%",
    ]


def test_a_mix_of_nothing_has_a_table() -> None:
    assert "0.0%" in mix_table(MixReport({"sql": Share(5, 0, 0, 0, 0)}))
