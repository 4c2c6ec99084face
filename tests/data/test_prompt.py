from dollyllama.data.prompt import (
    extract_instruction,
    format_prompt,
    format_response,
    strip_end_marker,
)


def test_prompt_is_the_alpaca_wording() -> None:
    assert format_prompt("Add 1 and 1.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 1 and 1.\n\n### Response:\n"
    )


def test_what_the_model_is_to_write_strips_back_to_the_response() -> None:
    assert strip_end_marker(format_response("two\nlines")) == ("two\nlines", True)


def test_text_without_marker_says_so() -> None:
    assert strip_end_marker(" SELECT 1\n") == ("SELECT 1", False)


def test_a_heading_that_begins_like_the_marker_is_none() -> None:
    assert strip_end_marker("### Endpoints\n/a") == ("### Endpoints\n/a", False)


def test_nothing_after_the_marker_survives() -> None:
    assert strip_end_marker("2\n### End\n### Instruction:\nmore") == ("2", True)


def test_instruction_comes_out_of_a_formatted_prompt() -> None:
    assert extract_instruction(format_prompt("a\nb")) == "a\nb"
    assert extract_instruction(format_prompt("a").strip()) == "a"


def test_a_prompt_without_template_is_left_alone() -> None:
    for prompt in ("Hello.", "### Instruction:\nHello.\n\n### Response:\n", ""):
        assert extract_instruction(prompt) == prompt


def test_an_instruction_with_braces_is_not_formatted() -> None:
    assert "{instruction}" in format_prompt("{instruction}")
