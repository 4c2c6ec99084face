"""What makes a row fit to learn from: repairs that are counted, rejections that have a reason.

Kept as upstream has them, by decision: SQL whose schema does not execute, answers that use a column
the schema lacks, damaged conditions like ``WHERE "week" = "week"``. The recipe trained on them, and
quality rules are a step of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from dollyllama.config import GroupBy, Rule
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import END_MARKER, strip_end_marker
from dollyllama.data.split import group_key

#: Characters that are invisible and mean nothing at the ends of a text.
_INVISIBLE = "\ufeff\u200b\u2060"


def clean_text(text: str) -> str:
    """Normalise line ends to line feeds and strip white space and invisible marks at both ends."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while text != (stripped := text.strip().strip(_INVISIBLE)):
        text = stripped
    return text


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


# --- rules: None when the row may stay, else why not --------------------------------------------


def real_table_names(example: Example) -> str | None:
    """The recipe's rule: no queries on WikiSQL's numbered tables, which teach no table name."""
    if "FROM table_" in example.response:
        return "the answer asks a table without a real name (FROM table_…)"
    return None


RULES: dict[Rule, Callable[[Example], str | None]] = {Rule.real_table_names: real_table_names}


def clean(
    example: Example, repairs: tuple[str, ...], *, group_by: GroupBy
) -> tuple[Example, tuple[str, ...]] | Rejected:
    """Clean one example and give it its group key: the example and its repairs, or a rejection.

    The rejection's ``raw`` is left empty: whoever read the row has it.
    """
    instruction = clean_text(example.instruction)
    response = clean_text(example.response)
    if "\r" in example.instruction or "\r" in example.response:
        repairs = (*repairs, "line_ends")
    once = clean_text(cut_repetition(instruction))
    if once != instruction:
        instruction, repairs = once, (*repairs, "repeated_instruction")

    def reject(reason: str, detail: str) -> Rejected:
        return Rejected(example.source, example.row, reason, detail, {})

    if not instruction:
        return reject("empty_instruction", "nothing but white space")
    if not response:
        return reject("empty_response", "nothing but white space")
    if not _is_unicode(instruction + response + example.context):
        return reject("broken_unicode", "half of a surrogate pair, which no encoding can write")
    if strip_end_marker(response)[1]:
        return reject("end_marker_in_response", f"the response says {END_MARKER!r} itself")
    if group_by is GroupBy.context and not example.context:
        return reject("empty_context", "rows are grouped by context and this one has none")
    cleaned = replace(example, instruction=instruction, response=response)
    return replace(cleaned, group=group_key(cleaned, group_by)), repairs


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def apply_rules(
    examples: Iterable[Example], rules: Iterable[Rule]
) -> tuple[list[Example], list[Rejected]]:
    """Keep what every rule lets pass; the reason of a rejection is the rule's name."""
    kept: list[Example] = []
    rejected: list[Rejected] = []
    ordered = sorted(rules)
    for example in examples:
        for rule in ordered:
            if (detail := RULES[rule](example)) is not None:
                rejected.append(Rejected(example.source, example.row, rule.value, detail, {}))
                break
        else:
            kept.append(example)
    return kept, rejected
