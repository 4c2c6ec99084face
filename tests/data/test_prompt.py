from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dollyllama.config import PromptFormat, Role
from dollyllama.data.example import Question
from dollyllama.data.prompt import (
    Stretch,
    build_conversation,
    build_prompt,
    check_prompt_format,
    extract_instruction,
    format_prompt,
    format_response,
    strip_end_marker,
    text_of,
)
from tests.data.build import CHATML, LLAMA_2, make_example, with_template

SYSTEM = ("system", "Be brief.")
EARLIER = (("user", "Hi"), ("assistant", "Ho"))


def prompt_text(prompt_format: PromptFormat, tokenizer: Any = None, **question: Any) -> str:
    return text_of(build_prompt(Question(**question), prompt_format, tokenizer))


def test_prompt_is_the_alpaca_wording() -> None:
    assert format_prompt("Add 1 and 1.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 1 and 1.\n\n### Response:\n"
    )


@pytest.mark.parametrize("prompt_format", [PromptFormat.alpaca, PromptFormat.alpaca_input])
def test_an_instruction_alone_has_one_wording(prompt_format: PromptFormat) -> None:
    assert prompt_text(prompt_format, instruction="Add 1.") == format_prompt("Add 1.")


def test_an_input_stands_below_its_instruction() -> None:
    text = prompt_text(PromptFormat.alpaca, instruction="Sort.", input="  2 1")
    assert text == format_prompt("Sort.\n  2 1")


def test_an_input_has_a_block_in_alpacas_second_wording() -> None:
    assert prompt_text(PromptFormat.alpaca_input, instruction="Sort.", input="2 1") == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSort.\n\n### Input:\n2 1\n\n### Response:\n"
    )


def test_earlier_turns_are_blocks_and_each_response_ends_with_the_marker() -> None:
    text = prompt_text(PromptFormat.alpaca, instruction="Bye", history=(SYSTEM, *EARLIER))
    assert text == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nBe brief.\nHi\n\n### Response:\nHo\n### End"
        "\n\n### Instruction:\nBye\n\n### Response:\n"
    )


def test_what_the_model_is_to_write_strips_back_to_the_response() -> None:
    assert strip_end_marker(format_response("two\nlines")) == ("two\nlines", True)


def test_text_without_marker_says_so() -> None:
    assert strip_end_marker(" SELECT 1\n") == (" SELECT 1", False)


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


# --- the tokenizer's chat template --------------------------------------------------------------


def test_stretches_of_a_chat_tell_words_from_template(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(byte_tokenizer, CHATML)
    example = make_example("Bye", "So", history=(SYSTEM, *EARLIER))

    def template(text: str, role: Role | None = None) -> Stretch:
        return Stretch(text, role, control=True)

    prompt, response = build_conversation(example, PromptFormat.chat, tokenizer)
    assert prompt == (
        template("<|im_start|>system\n"),
        Stretch("Be brief.", Role.system),
        template("<|im_end|>\n<|im_start|>user\n"),
        Stretch("Hi", Role.user),
        template("<|im_end|>\n"),
        template("<|im_start|>assistant\n"),
        Stretch("Ho", Role.assistant),
        template("<|im_end|>\n", Role.assistant),
        template("<|im_start|>user\n"),
        Stretch("Bye", Role.user),
        template("<|im_end|>\n"),
        template("<|im_start|>assistant\n"),
    )
    assert response == (Stretch("So", Role.assistant), template("<|im_end|>\n", Role.assistant))


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
def test_a_chat_is_what_the_template_renders(
    byte_tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer = with_template(byte_tokenizer, template)
    example = make_example("Sort.", "1 2", input="2 1", history=(SYSTEM, *EARLIER))
    turns = [*example.history, ("user", "Sort.\n2 1"), ("assistant", "1 2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt, response = build_conversation(example, PromptFormat.chat, tokenizer)
    assert build_prompt(example, PromptFormat.chat, tokenizer) == prompt
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert (text_of(prompt), text_of((*prompt, *response))) == (asked, whole)


def test_a_tokenizer_without_template_has_no_chat(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"data\.prompt=chat .* has none: use data\.prompt=alpaca"):
        check_prompt_format(PromptFormat.chat, byte_tokenizer)
    check_prompt_format(PromptFormat.alpaca, byte_tokenizer)


#: Leaves out what the assistant said but the last time, as templates for reasoning do.
_FORGETS = """{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role + ': ' +
m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def test_a_template_that_forgets_earlier_turns_is_refused(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(ValueError, match="renders the turns before turn 3 in another way"):
        check_prompt_format(PromptFormat.chat, with_template(byte_tokenizer, _FORGETS))


def test_a_template_that_looks_at_what_is_said_is_refused_for_that_row(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = CHATML.replace("m.content", "m.content.replace('secret', '***')")
    tokenizer = with_template(byte_tokenizer, template)
    build_prompt(Question("What is it?"), PromptFormat.chat, tokenizer)
    with pytest.raises(ValueError, match="changes what is said"):
        build_prompt(Question("What is the secret?"), PromptFormat.chat, tokenizer)


def test_what_the_template_raises_is_said_in_one_line(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = with_template(byte_tokenizer, "{{ raise_exception('no system words') }}")
    with pytest.raises(ValueError, match="chat template refuses the turns: no system words"):
        check_prompt_format(PromptFormat.chat, tokenizer)
