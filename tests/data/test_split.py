from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dollyllama.config import GroupBy
from dollyllama.data.split import group_key, is_held_out, side_hash
from tests.data.build import make_example

NO_PAIRS = np.empty((0, 2), np.int64)


def held(groups: list[str], share: float, pairs: object = NO_PAIRS) -> list[bool]:
    sides = np.array([side_hash(group) for group in groups], np.uint64)
    return list(is_held_out(sides, np.array(pairs, np.int64).reshape(-1, 2), share).tolist())


def test_the_share_held_out_is_the_share_asked_for() -> None:
    count = sum(held([f"question {number}" for number in range(20_000)], 0.05))
    assert count == pytest.approx(1_000, abs=4 * (20_000 * 0.05 * 0.95) ** 0.5)


def test_a_larger_share_holds_out_a_superset() -> None:
    groups = [f"question {number}" for number in range(2_000)]
    pairs = [(number, number + 7) for number in range(0, 600, 10)]
    small, large = held(groups, 0.1, pairs), held(groups, 0.3, pairs)
    assert sum(small) < sum(large)
    assert all(more for less, more in zip(small, large, strict=True) if less)


def test_a_group_stays_on_one_side() -> None:
    groups = [f"q{number % 50}" for number in range(400)]
    sides = held(groups, 0.3)
    assert len({(group, side) for group, side in zip(groups, sides, strict=True)}) == 50
    assert set(sides) == {True, False}


def test_pairs_are_kept_together_with_their_groups_and_the_share_stays() -> None:
    # Chains of three groups of two rows: rows 2g and 2g + 1 are group g.
    groups = [f"question {row // 2}" for row in range(60_000)]
    pairs = [(row + 1, row + 2 + 2 * step) for row in range(0, 60_000 - 6, 6) for step in range(2)]
    sides = np.array(held(groups, 0.1, pairs)).reshape(-1, 6)[:-1]
    assert (sides == sides[:, :1]).all()
    chains = len(sides)
    assert sides[:, 0].sum() == pytest.approx(0.1 * chains, abs=4 * (chains * 0.1 * 0.9) ** 0.5)


def test_rows_without_a_pair_are_where_they_were() -> None:
    groups = [f"question {number}" for number in range(300)]
    assert held(groups, 0.2)[100:] == held(groups, 0.2, [(0, 50), (50, 99)])[100:]


def test_keys_ignore_case_and_white_space() -> None:
    assert group_key(make_example("Say  HI\n"), GroupBy.instruction) == "say hi"


def test_conversations_that_begin_alike_share_a_key_with_the_question_alone() -> None:
    asked, system = "What is a fjord?", ("system", "Be brief.")
    answered = (("user", asked), ("assistant", "An inlet."))
    alike = [
        make_example(asked),
        make_example(asked, history=(system,)),
        make_example("And a loch?", history=answered),
        make_example(
            "Are they deep?", history=(system, ("user", "what is a  fjord?"), answered[1])
        ),
    ]
    other = make_example(asked, history=(("user", "And a loch?"), ("assistant", "A lake.")))
    for group_by in (GroupBy.instruction, GroupBy.longest_line):
        assert len({group_key(each, group_by) for each in alike}) == 1
        assert group_key(other, group_by) != group_key(alike[0], group_by)


def test_an_opening_turn_is_an_instruction_with_its_input() -> None:
    asked = make_example("Sum it up.", input="A long text.")
    history = (("user", "Sum it up.\nA long text."), ("assistant", "Text."))
    opened = make_example("Shorter.", history=history)
    assert group_key(asked, GroupBy.instruction) == group_key(opened, GroupBy.instruction)


def test_sql_rows_over_one_schema_share_a_key() -> None:
    pair = [make_example(text, context="CREATE TABLE t (a VARCHAR)") for text in ("one", "two")]
    assert len({group_key(each, GroupBy.context) for each in pair}) == 1


PROBLEM = (
    "Mr. Fox had 12 hens, and each of them: red or white, laid two eggs. How many eggs in all?"
)


@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "{}\nGive me a solution to this problem",
        "Can you give me some step-by-step instructions for this math problem: {}",
        "I need help with this problem:\n{}",
        "I'm completely lost with this math problem: {}\nCan you give me a hand?",
    ],
)
def test_wordings_around_a_problem_do_not_change_its_key(frame: str) -> None:
    keys = {
        group_key(make_example(text), GroupBy.longest_line)
        for text in (PROBLEM, frame.format(PROBLEM))
    }
    assert len(keys) == 1


def test_no_wording_moves_a_real_problem_to_another_key(shared: Path) -> None:
    def key(text: str) -> str:
        return group_key(make_example(text.strip()), GroupBy.longest_line)

    lines = gzip.decompress((shared / "data" / "gsm8k_train.jsonl.gz").read_bytes()).split(b"\n")
    questions = [json.loads(line)["question"] for line in lines if line]
    for frame in (
        "{}\nGive me a clear explanation. ",
        "Find the answer to this math problem: {}",
        "I need help with this problem:\n{}",
    ):
        assert [key(frame.format(each)) for each in questions] == [key(each) for each in questions]
    assert len({key(each) for each in questions}) > 0.99 * len(questions)
