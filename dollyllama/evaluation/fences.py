"""Code in an answer among words: what stands between Markdown's fences."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ITEM = r"[ \t]*+(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]++)?"  # what a fence in a list stands behind
_WORDS = r"(?:[^\n`]++|`{1,2}(?!`))*+"
# Backticks may follow words too, ~~~ is Python there; either may never be closed.
_FENCED = re.compile(
    rf"""
    ^ (?: (?P<item>{_ITEM}) (?P<fence> `{{3,}}+ | ~{{3,}}+ ) | {_WORDS} (?P<late> `{{3,}}+ ) )
    (?P<language> [^\n`~]*+ ) (?: \n | \Z )
    (?P<code> .*? )
    (?: (?P=fence) | (?P=late) | \Z )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """language: as the fence says it, in lower case, "" where it says none."""

    language: str
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of ``text``; lines lose what their fence is indented by."""
    found = []
    for match in _FENCED.finditer(text):
        indent = len(match["item"] or "")
        code = re.sub(rf"^[ \t]{{0,{indent}}}", "", match["code"], flags=re.MULTILINE)
        found.append(Block(match["language"].strip().lower(), code))
    return found


def fenced(text: str, languages: tuple[str, ...]) -> str:
    """The block of ``text`` that is for a grader of ``languages``, or all of it without a fence.

    The first that says one of them (``python3`` says ``python``), else the first that says none,
    else the first. Where the blocks are empty, as behind a fence that only closes (the prompt may
    have opened it), it is what stands before them.
    """
    found = [block for block in blocks(text) if block.code.strip()]
    said = [block for block in found if block.language.startswith(languages)]
    silent = [block for block in found if not block.language]
    chosen = [*said, *silent, *found]
    if chosen:
        return chosen[0].code
    first = _FENCED.search(text)
    return text[: first.start("fence" if first["fence"] else "late")] if first else text
