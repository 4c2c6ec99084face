"""The words around a conversation: the only home of the prompt templates.

Alpaca's wordings (Taori et al. 2023, tatsu-lab/stanford_alpaca) with the end marker of databricks'
dolly, by which the model says that it is done; or the tokenizer's own chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from dollyllama.config import PromptFormat, Role
from dollyllama.data.example import Example, Question, join_input

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Response:\n"
)
END_MARKER = "### End"

_BEFORE, _AFTER = PROMPT.split("{instruction}")

#: Taori et al.'s second template, for an instruction with an input, up to the instruction.
_BEFORE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
_INPUT = "\n\n### Input:\n"
_NEXT = "\n\n### Instruction:\n"


class Stretch(NamedTuple):
    """Some text of a conversation. role: who says it, None for the template's own words.

    control: whether the tokenizer's special tokens count as such in it; where not, "</s>" is four
    characters.
    """

    text: str
    role: Role | None = None
    control: bool = False


#: What a model continues or is to write, stretch by stretch.
Stretches = tuple[Stretch, ...]


def text_of(stretches: Sequence[Stretch]) -> str:
    """The stretches put together."""
    return "".join([stretch.text for stretch in stretches])


def build_prompt(
    question: Question | Example, prompt_format: PromptFormat, tokenizer: Any
) -> Stretches:
    """All that the model continues: everything up to the first character of the response.

    In Alpaca's formats earlier turns are further blocks of instruction and response, each response
    with its end marker, and system words stand above the first instruction. The preamble and the
    block for an input are those of the last instruction. ValueError in one line where
    ``prompt_format`` is the chat template and the tokenizer has none or it refuses the turns.
    """
    if prompt_format is PromptFormat.chat:
        return _build_chat(question, None, tokenizer)[0]
    return tuple(_alpaca(question, input_apart=prompt_format is PromptFormat.alpaca_input))


def build_conversation(
    example: Example, prompt_format: PromptFormat, tokenizer: Any
) -> tuple[Stretches, Stretches]:
    """The prompt as ``build_prompt`` has it and what the model is to write, all but its last token.

    Errors are those of ``build_prompt``.
    """
    if prompt_format is PromptFormat.chat:
        return _build_chat(example, example.response, tokenizer)
    response = Stretch(format_response(example.response), Role.assistant)
    return build_prompt(example, prompt_format, tokenizer), (response,)


# --- Alpaca -------------------------------------------------------------------------------------


def format_prompt(instruction: str) -> str:
    """Alpaca's prompt for an instruction alone."""
    return f"{_BEFORE}{instruction}{_AFTER}"


def format_response(response: str) -> str:
    """The text that the model is to write: the response, a newline, the end marker."""
    return f"{response}\n{END_MARKER}"


def _alpaca(question: Question | Example, *, input_apart: bool) -> Iterator[Stretch]:
    apart = input_apart and question.input != ""
    yield Stretch(_BEFORE_WITH_INPUT if apart else _BEFORE)
    for role, content in question.history:
        if role == Role.system:
            yield Stretch(content, Role.system)
            yield Stretch("\n")
        elif role == Role.user:
            yield Stretch(content, Role.user)
        else:
            yield Stretch(_AFTER)
            yield Stretch(format_response(content), Role.assistant)
            yield Stretch(_NEXT)
    if apart:
        yield Stretch(question.instruction, Role.user)
        yield Stretch(_INPUT)
        yield Stretch(question.input, Role.user)
    else:
        yield Stretch(join_input(question.instruction, question.input), Role.user)
    yield Stretch(_AFTER)


_MARKER = re.compile(re.escape(END_MARKER) + r"(?!\w)")


def strip_end_marker(completion: str) -> tuple[str, bool]:
    """Return the text before the end marker, less white space there, and whether it was there.

    A heading that only begins like it ("### Endpoints") is no marker.
    """
    found = _MARKER.search(completion)
    text = completion[: found.start()] if found else completion
    return text.rstrip(), found is not None


def extract_instruction(prompt: str) -> str:
    """Return the instruction of a prompt that carries the template, or any other text unchanged.

    White space at both ends of the prompt does not matter; half a template is no template.
    """
    text = prompt.strip()
    before, after = _BEFORE.strip(), _AFTER.strip()
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)].strip()
    return prompt


# --- the tokenizer's chat template --------------------------------------------------------------

#: Stands for the n-th content in a rendering: private characters, which no template touches.
_CONTENT = re.compile("\ue000([0-9]+)\ue001")


def check_prompt_format(prompt_format: PromptFormat, tokenizer: Any) -> None:
    """ValueError in one line when the tokenizer cannot render conversations of two exchanges."""
    if prompt_format is PromptFormat.chat:
        _skeleton(tokenizer, (Role.user, Role.assistant) * 2)


def _build_chat(
    question: Question | Example, response: str | None, tokenizer: Any
) -> tuple[Stretches, Stretches]:
    """Prompt and response in the tokenizer's template, the same text as the template renders.

    response: None where there is none yet; what is returned for it is then of no use.
    """
    asked = (Role.user.value, join_input(question.instruction, question.input))
    turns = [*question.history, asked, (Role.assistant.value, response or "")]
    # Many templates strip what is said; training's rows are stripped already.
    turns = [(role, content.strip()) for role, content in turns]
    skeleton = _skeleton(tokenizer, tuple(Role(role) for role, _ in turns))
    prompt, answer = (_fill(part, [content for _, content in turns]) for part in skeleton)
    # The skeleton holds for any content, but a template may look at what the content is.
    whole = [(turns[:-1], text_of(prompt), True)]
    if response is not None:
        whole.append((turns, text_of(prompt) + text_of(answer), False))
    for said, text, generation in whole:
        if _render(tokenizer, said, generation=generation) != text:
            raise ValueError(
                "the tokenizer's chat template changes what is said, or treats some contents "
                "unlike others: use data.prompt=alpaca for such rows"
            )
    return prompt, answer


def _fill(stretches: Stretches, contents: Sequence[str]) -> Stretches:
    return tuple(
        stretch if stretch.control else stretch._replace(text=contents[int(stretch.text)])
        for stretch in stretches
    )


@lru_cache(maxsize=256)
def _skeleton(tokenizer: Any, roles: tuple[Role, ...]) -> tuple[Stretches, Stretches]:
    """Prompt and response of a conversation of these roles; contents are numbers of turns.

    roles: the last is the assistant. Turns are rendered one more at a time. ValueError when a
    rendering does not begin with the one before it, so that a turn has no place of its own, or
    when the generation prompt is no beginning of the assistant's turn. A template's marks for
    generated text are not looked at.
    """
    turns = [(role, f"\ue000{number}\ue001") for number, role in enumerate(roles)]
    prompt: list[Stretch] = []
    response: list[Stretch] = []
    done = ""
    for number, role in enumerate(roles):
        if role is Role.system:  # rendered with the turn behind it: many templates refuse it alone
            continue
        if role is Role.assistant:
            opening = _render(tokenizer, turns[:number], generation=True)
            prompt += _split(_added(done, opening, number), roles, None)
            done = opening
        whole = _render(tokenizer, turns[: number + 1], generation=False)
        part = response if number == len(roles) - 1 else prompt
        said_by = Role.assistant if role is Role.assistant else None
        part += _split(_added(done, whole, number), roles, said_by)
        done = whole
    places = [stretch.text for stretch in (*prompt, *response) if not stretch.control]
    if places != [str(number) for number in range(len(roles))]:
        raise ValueError(
            f"the tokenizer's chat template leaves out, repeats or reorders turns of "
            f"{', '.join(roles)}: use data.prompt=alpaca"
        )
    return tuple(prompt), tuple(response)


def _added(before: str, after: str, number: int) -> str:
    if not after.startswith(before):
        raise ValueError(
            f"the tokenizer's chat template renders the turns before turn {number + 1} in another "
            "way once it is there, so no place in the text is that turn's own: use "
            "data.prompt=alpaca, or mend the template"
        )
    return after[len(before) :]


def _split(text: str, roles: tuple[Role, ...], said_by: Role | None) -> Iterator[Stretch]:
    """Contents, said by their roles, and the template's words between them, by ``said_by``."""
    for place, part in enumerate(_CONTENT.split(text)):
        if place % 2:
            yield Stretch(part, roles[int(part)])
        elif part:
            yield Stretch(part, said_by, control=True)


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]], *, generation: bool) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            "data.prompt=chat asks for the tokenizer's chat template, and it has none: use "
            "data.prompt=alpaca, or a model whose tokenizer has one"
        )
    from jinja2 import TemplateError

    messages = [{"role": str(role), "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the turns: {error}") from error
    return str(text)
