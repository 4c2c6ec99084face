"""The words around an instruction and a response: the only home of the prompt template.

Alpaca's wording for an instruction without input (Taori et al. 2023, tatsu-lab/stanford_alpaca),
and the end marker of databricks' dolly, by which the model says that it is done.
"""

from __future__ import annotations

import re

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n"
    "### Response:\n"
)
END_MARKER = "### End"

_BEFORE, _AFTER = PROMPT.split("{instruction}")


def format_prompt(instruction: str) -> str:
    """The text that the model continues: everything up to the first character of the response."""
    return f"{_BEFORE}{instruction}{_AFTER}"


def format_response(response: str) -> str:
    """The text that the model is to write: the response, a newline, the end marker."""
    return f"{response}\n{END_MARKER}"


_MARKER = re.compile(re.escape(END_MARKER) + r"(?!\w)")


def strip_end_marker(completion: str) -> tuple[str, bool]:
    """Return the text before the end marker, stripped, and whether the marker was there.

    A heading that only begins like it ("### Endpoints") is no marker.
    """
    found = _MARKER.search(completion)
    text = completion[: found.start()] if found else completion
    return text.strip(), found is not None


def extract_instruction(prompt: str) -> str:
    """Return the instruction of a prompt that carries the template, or any other text unchanged.

    White space at both ends of the prompt does not matter; half a template is no template.
    """
    text = prompt.strip()
    before, after = _BEFORE.strip(), _AFTER.strip()
    if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)].strip()
    return prompt
