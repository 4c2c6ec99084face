from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dollyllama.config import GroupBy
from dollyllama.data.example import Split
from dollyllama.data.split import assign_split, group_key, split_of
from tests.data.build import make_example


def test_the_share_held_out_is_the_share_asked_for() -> None:
    held = sum(split_of(f"question {number}", 0.05) is Split.held_out for number in range(20_000))
    assert held == pytest.approx(1_000, abs=4 * (20_000 * 0.05 * 0.95) ** 0.5)


def test_a_larger_share_holds_out_a_superset() -> None:
    keys = [f"question {number}" for number in range(2_000)]
    small, large = ({key for key in keys if split_of(key, s) is Split.held_out} for s in (0.1, 0.3))
    assert small < large


def test_a_group_stays_on_one_side_whatever_its_source() -> None:
    examples = [
        make_example(f"q{number}", source=source, row=row, group=f"q{number % 50}")
        for number in range(200)
        for row, source in enumerate("ab")
    ]
    train, held_out = assign_split(examples, 0.3)
    assert train
    assert held_out
    assert len(train) + len(held_out) == len(examples)
    assert not {each.group for each in train} & {each.group for each in held_out}


def test_keys_ignore_case_and_white_space() -> None:
    assert group_key(make_example("Say  HI\n"), GroupBy.instruction) == "say hi"


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
