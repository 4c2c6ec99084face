"""What makes a row readable: repairs that are counted, rejections that have a reason.

Whether it is worth learning from is asked in ``quality``.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dollyllama.config import GroupBy
from dollyllama.data.example import Example, Rejected, join_input
from dollyllama.data.prompt import END_MARKER, strip_end_marker
from dollyllama.data.split import group_key

#: Characters that are invisible and mean nothing at the ends of a text.
_INVISIBLE = "\ufeff\u200b\u2060"


def clean_text(text: str) -> str:
    """Normalise line ends to line feeds and strip white space and invisible marks at both ends."""
    text = _line_ends(text)
    while text != (stripped := text.strip().strip(_INVISIBLE)):
        text = stripped
    return text


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


_SHORTEST_QUESTION = 20  # characters
_FEWEST_WORDS = 4  # different ones: "1 1 1 1" repeats nothing
_LONGEST_WORDING = 100


def cut_repetition(text: str) -> str:
    """Cut the second copy from a text that says the same thing twice, else return it as it is.

    Either the whole text is doubled, or a question stands twice with a wording before each:
    grade-school-math-instructions has "Can you provide an in-depth solution for: QHey there, could
    you help me solve this math problem: Q" for want of a comma, and CodeAlpaca has inputs that the
    instruction ends with. The first wording and the first question stay.
    """
    tail = text[-_SHORTEST_QUESTION:]
    if text.find(tail) == len(text) - len(tail):
        return text  # what ends only once stands only once
    half = len(text) // 2
    window = re.finditer(r"\s+", text[max(half - 1, 0) : half + _LONGEST_WORDING])
    for start in [half, *(max(half - 1, 0) + match.end() for match in window)]:
        question = text[start:]
        if len(question) < _SHORTEST_QUESTION or len(set(question.split())) < _FEWEST_WORDS:
            break
        first = text.find(question)
        end = first + len(question)
        if end > start:
            continue
        doubled = first == 0 and not text[end:start].strip()
        if doubled or ((first == 0 or _leads_to(text[:first])) and _leads_to(text[end:start])):
            return text[:end]
    return text


def _leads_to(wording: str) -> bool:
    """Whether this may stand before a question: a short text that ends in a colon or a line end."""
    bare = wording.rstrip()
    ends = wording.endswith("\n") or bare.endswith(":")
    return ends and len(wording) <= _LONGEST_WORDING


def clean(
    example: Example, repairs: tuple[str, ...], *, group_by: GroupBy
) -> tuple[Example, tuple[str, ...]] | Rejected:
    """Clean one example and give it its group key: the example and its repairs, or a rejection.

    The rejection's ``raw`` is left empty: whoever read the row has it.
    """
    instruction = clean_text(example.instruction)
    given = _line_ends(example.input).rstrip()  # its first line may be indented
    history = tuple((role, clean_text(content)) for role, content in example.history)
    response = clean_text(example.response)
    if "\r" in example.question or "\r" in example.response:
        repairs = (*repairs, "line_ends")
    asked = join_input(instruction, given)
    once = clean_text(cut_repetition(asked))
    if once != clean_text(asked):
        repairs = (*repairs, "repeated_instruction")
        head = f"{instruction}\n"
        instruction, given = (
            (instruction, once[len(head) :]) if once.startswith(head) else (once, "")
        )

    def reject(reason: str, detail: str) -> Rejected:
        return Rejected(example.source, example.row, reason, detail, {})

    if not instruction:  # what is asked stands in the input alone
        instruction, given = clean_text(given), ""
    if not instruction:
        return reject("empty_instruction", "nothing but white space")
    if not response:
        return reject("empty_response", "nothing but white space")
    if not all(content for _, content in history):
        return reject("empty_turn", "an earlier turn says nothing but white space")
    if not _is_unicode(example.question + response + example.context):
        return reject("broken_unicode", "half of a surrogate pair, which no encoding can write")
    answers = [*(content for role, content in history if role == "assistant"), response]
    if any(strip_end_marker(answer)[1] for answer in answers):
        return reject("end_marker_in_response", f"the response says {END_MARKER!r} itself")
    if group_by is GroupBy.context and not example.context:
        return reject("empty_context", "rows are grouped by context and this one has none")
    cleaned = replace(
        example, instruction=instruction, input=given, history=history, response=response
    )
    return replace(cleaned, group=group_key(cleaned, group_by)), repairs


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
