from __future__ import annotations

from typing import Any

import pytest

from dollyllama.config import GroupBy, Rule
from dollyllama.data.clean import RULES, apply_rules, clean, clean_text, cut_repetition
from dollyllama.data.example import Example, Rejected
from tests.data.build import make_example

PROBLEM = "Ann has 3 boxes with 4 apples each.  How many apples does she have: all told?"
DOUBLED = (
    f"Can you provide an in-depth solution for: {PROBLEM}"
    f"Hey there, could you help me solve this math problem: {PROBLEM}"
)


def cleaned(
    instruction: str, response: str = "r", **changes: Any
) -> tuple[Example, tuple[str, ...]]:
    outcome = clean(
        make_example(instruction, response, **changes), (), group_by=GroupBy.instruction
    )
    assert not isinstance(outcome, Rejected), outcome
    return outcome


def reason(instruction: str, response: str, group_by: GroupBy = GroupBy.instruction) -> str:
    outcome = clean(make_example(instruction, response), (), group_by=group_by)
    assert isinstance(outcome, Rejected)
    return outcome.reason


def test_every_rule_has_a_function() -> None:
    assert set(RULES) == set(Rule)


@pytest.mark.parametrize(
    ("text", "clean_one"),
    [
        (" a \n", "a"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ufeff \u200b a", "a"),
        ("\u2028a\u2028b", "a\u2028b"),
    ],
)
def test_ends_and_line_ends_are_normalised_and_the_middle_is_kept(
    text: str, clean_one: str
) -> None:
    assert clean_text(text) == clean_one


def test_indented_code_keeps_its_inner_white_space() -> None:
    code = "def f():\n\n    return  1"
    assert cleaned("i", f"\n{code}\n")[0].response == code


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u200b", "\ufeff"])
def test_empty_fields_are_rejected_by_name(empty: str) -> None:
    assert reason(empty, "r") == "empty_instruction"
    assert reason("i", empty) == "empty_response"


def test_a_response_that_says_the_end_marker_is_rejected() -> None:
    assert reason("i", "text\n### End\nmore") == "end_marker_in_response"


def test_a_lone_surrogate_is_rejected() -> None:
    assert reason("i", "half a pair: \ud83d") == "broken_unicode"


def test_grouping_by_context_wants_a_context() -> None:
    assert reason("i", "r", GroupBy.context) == "empty_context"


def test_two_wordings_around_one_problem_become_one() -> None:
    example, repairs = cleaned(DOUBLED)
    assert example.instruction == f"Can you provide an in-depth solution for: {PROBLEM}"
    assert repairs == ("repeated_instruction",)


@pytest.mark.parametrize("between", ["", " ", "\n", "\n\n"])
def test_a_plain_doubling_becomes_one(between: str) -> None:
    assert cut_repetition(f"{PROBLEM}{between}{PROBLEM}").rstrip() == PROBLEM


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha",
        PROBLEM,
        f"{PROBLEM} And how many pears?",
        "Ah, look at all the lonely people\nAh, look at all the lonely people\nEleanor Rigby",
        "Translate this sentence to French: I eat. Translate that sentence to German: I eat.",
        f"Compare the first text, which is: {PROBLEM} with {PROBLEM}",
        f"Count the ones: {'1' * 60}",
        f"Say it: {'1 ' * 60}",
        "Find the pattern: red green blue grey red green blue grey",
    ],
)
def test_other_texts_are_not_cut(text: str) -> None:
    assert cut_repetition(text) == text


def test_a_response_of_26000_characters_is_kept_whole() -> None:
    response = "word " * 5_200
    assert cleaned("i", response)[0].response == response.strip()


def test_repairs_of_the_reader_are_carried_on() -> None:
    outcome = clean(
        make_example(" i", "r\r\n"), ("template_removed",), group_by=GroupBy.instruction
    )
    assert not isinstance(outcome, Rejected)
    assert outcome[1] == ("template_removed", "line_ends")


def test_real_table_names_rejects_numbered_tables_alone() -> None:
    answers = {
        "SELECT a FROM table_name_12 WHERE b = 1": False,
        "SELECT a FROM table_1_2": False,
        "SELECT a FROM head": True,
        'SELECT week FROM games WHERE "week" = "week"': True,
    }
    examples = [make_example("i", answer, row=row) for row, answer in enumerate(answers)]
    kept, rejected = apply_rules(examples, [Rule.real_table_names])
    assert [example.response for example in kept] == [a for a, stays in answers.items() if stays]
    assert {each.reason for each in rejected} == {"real_table_names"}


def test_without_rules_all_stay() -> None:
    examples = [make_example("i", "SELECT a FROM table_1")]
    assert apply_rules(examples, []) == (examples, [])
