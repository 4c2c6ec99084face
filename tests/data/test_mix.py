from __future__ import annotations

from collections import Counter

import pytest

from dollyllama.data.example import Example
from dollyllama.data.mix import MixReport, Share, build_mix
from tests.data.build import make_example

SIZES = {"a": 40, "b": 20}
EXAMPLES = [
    make_example(f"{source} {row}", source=source, row=row)
    for source, size in SIZES.items()
    for row in range(size)
]


def mix(
    examples: list[Example] = EXAMPLES,
    weights: dict[str, float] | None = None,
    caps: dict[str, int | None] | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> tuple[list[Example], MixReport]:
    return build_mix(
        examples,
        weights={"a": 1.0, "b": 1.0} | (weights or {}),
        caps={"a": None, "b": None} | (caps or {}),
        max_rows=max_rows,
        seed=seed,
    )


def counted(mixed: list[Example]) -> Counter[str]:
    return Counter(example.source for example in mixed)


def test_weight_one_is_every_row_once_in_a_mixed_order() -> None:
    mixed, report = mix()
    assert sorted(mixed, key=EXAMPLES.index) == EXAMPLES
    assert mixed != EXAMPLES
    assert counted(mixed[:30])["b"] > 0
    assert report.shares == {"a": Share(40, 40, 40), "b": Share(20, 20, 20)}


def test_order_depends_on_the_seed_alone() -> None:
    assert mix(EXAMPLES[::-1])[0] == mix()[0]
    assert mix(seed=1)[0] != mix()[0]


def test_a_share_is_a_subset_of_a_larger_share() -> None:
    half, most = (set(mix(weights={"a": weight})[0]) for weight in (0.5, 0.8))
    assert half < most
    assert counted(list(half)) == {"a": 20, "b": 20}


def test_two_and_a_half_is_two_of_each_and_a_third_of_half() -> None:
    mixed, report = mix(weights={"b": 2.5})
    copies = Counter(Counter(each.id for each in mixed if each.source == "b").values())
    assert copies == {2: 10, 3: 10}
    assert report.shares["b"] == Share(available=20, chosen=20, drawn=50)


def test_a_source_can_be_capped() -> None:
    mixed, report = mix(caps={"a": 5})
    assert counted(mixed) == {"a": 5, "b": 20}
    assert report.shares["a"] == Share(available=40, chosen=5, drawn=5)


@pytest.mark.parametrize("cap", [1, 7, 30, 59])
def test_the_cap_of_all_is_met_in_proportion(cap: int) -> None:
    mixed, _ = mix(max_rows=cap)
    assert len(mixed) == cap
    assert counted(mixed)["a"] == pytest.approx(cap * 2 / 3, abs=1)


def test_a_cap_beyond_the_rows_changes_nothing() -> None:
    assert mix(max_rows=61) == mix()


def test_repeats_go_before_rows_when_a_cap_bites() -> None:
    mixed, _ = mix(weights={"b": 2.0}, caps={"b": 20})
    assert len({each.id for each in mixed if each.source == "b"}) == 20
