from __future__ import annotations

from typing import Any

import pytest

from dollyllama.config import GroupBy
from dollyllama.data.clean import clean, clean_text, cut_repetition
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


CODE = "  if a:\n    b()"


def test_an_input_keeps_its_indentation_and_loses_its_end() -> None:
    example, repairs = cleaned(" Mend it. ", input=CODE.replace("\n", "\r\n") + "\n\n")
    assert (example.instruction, example.input) == ("Mend it.", CODE)
    assert repairs == ("line_ends",)
    assert example.group == "mend it. if a: b()"


def test_an_input_that_the_instruction_says_already_goes() -> None:
    example, repairs = cleaned(f"Solve this problem: {PROBLEM}", input=PROBLEM)
    assert example.question == f"Solve this problem: {PROBLEM}"
    assert example.input == ""
    assert repairs == ("repeated_instruction",)


def test_a_doubling_within_an_input_is_cut_there() -> None:
    given = f"Problem: {PROBLEM}\nProblem: {PROBLEM}"
    example, repairs = cleaned("Solve:", input=given)
    assert (example.instruction, example.input) == ("Solve:", f"Problem: {PROBLEM}")
    assert repairs == ("repeated_instruction",)


def test_turns_before_the_instruction_are_cleaned_too() -> None:
    example, repairs = cleaned("And now?", history=(("user", " Hi.\r\n"), ("assistant", "Ho.\n")))
    assert example.history == (("user", "Hi."), ("assistant", "Ho."))
    assert repairs == ("line_ends",)


@pytest.mark.parametrize("place", ["input", "history"])
def test_half_a_pair_is_found_in_every_part(place: str) -> None:
    half = "\ud83d"
    value = half if place == "input" else (("user", half),)
    outcome = clean(make_example("i", "r", **{place: value}), (), group_by=GroupBy.instruction)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "broken_unicode"
