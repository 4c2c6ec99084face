"""How good a SQL answer is: does it say the same as the reference, and does it run at all?"""

from __future__ import annotations

import re

from dollyllama.evaluation.execution import Reason, execution_match
from dollyllama.evaluation.fences import fenced

_TOKEN = re.compile(
    r"""
      (?P<blank> \s+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<text> '(?:[^']|'')*' | "(?:[^"]|"")*" )   # a quote inside is written twice
    | (?P<name> `(?:[^`]|``)*` | \[[^\]]*\] )
    | (?P<damaged> ['"`].* )                         # a quote that is never closed
    | (?P<word> [0-9]+\.[0-9]+ | \w+ )
    | (?P<sign> <= | >= | <> | != | == | \|\| | . )
    """,
    re.VERBOSE | re.DOTALL,
)


#: What a fence around SQL says.
_LANGUAGES = ("sql", "postgres", "mysql")


def normalise(query: str) -> list[str]:
    """Cut a query into tokens that are equal exactly when two queries are written the same.

    Not told apart: white space and comments between tokens, the case of keywords and of unquoted
    names, 'single' and "double" quotes, semicolons at the end. Told apart, since they may change
    the result or are another way to write it: everything inside quotes (case and spaces too), a
    quoted name and a bare one, the order of columns and conditions, aliases, ``<>`` and ``!=``,
    ``1`` and ``1.0``.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(query):
        token = match.group()
        if match.lastgroup == "text":
            quote, inside = token[0], token[1:-1]
            tokens.append("'" + inside.replace(quote * 2, quote) + "'")
        elif match.lastgroup in ("name", "damaged"):
            tokens.append(token.rstrip() if match.lastgroup == "damaged" else token)
        elif match.lastgroup != "blank":
            tokens.append(token.lower())
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return tokens


_IN_LINE = re.compile(r"(?P<ticks>`{1,3})(?:sql\s)?(?P<query>[^`]+)(?P=ticks)", re.IGNORECASE)
_LABEL = re.compile(r"\s*(?:sql|query|sql query|answer)\s*:\s+", re.IGNORECASE)
# The words behind a query that has ended; a line that begins like a statement is none.
_WORDS = re.compile(
    r";[ \t]*\n\s*(?!(?:SELECT|WITH|INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|ATTACH|PRAGMA|"
    r"BEGIN|EXPLAIN|VALUES|VACUUM)\b)[A-Za-z]",
    re.IGNORECASE,
)


def find_query(answer: str) -> str:
    """The query of an answer: what stands in a Markdown fence or in backticks, or all of it.

    Without a label before it ("SQL:") and without a paragraph of words behind its semicolon.
    """
    query = fenced(answer, _LANGUAGES)
    if in_line := _IN_LINE.fullmatch(query.strip()):
        query = in_line["query"]
    query = query[label.end() :] if (label := _LABEL.match(query)) else query
    words = _WORDS.search(query)
    return query[: words.start()] if words and query[: words.start()].count("'") % 2 == 0 else query


def grade(completion: str, reference: str, context: str) -> dict[str, float]:
    """Score a query: ``exact``, and ``executes`` and ``execution`` where they can be given.

    exact: written the same as the reference, see ``normalise``. executes: SQLite accepts it and
    runs it on empty tables made from ``context`` (CREATE TABLE statements), so names and syntax are
    right; it says nothing about the result. execution: it returns what the reference returns, see
    ``execution_match``. Some upstream schemas and references do not run, and there an answer is
    held to neither; nor to the latter where the reference always returns nothing. The query is what
    ``find_query`` finds.
    """
    completion, reference = find_query(completion), find_query(reference)
    wanted = normalise(reference)
    scores = {"exact": float(bool(wanted) and normalise(completion) == wanted)}
    if context:
        score = execution_match(context, reference, completion)
        if score.reason is not Reason.gold_fails:
            scores["executes"] = float(score.valid)
        if score.match is not None:
            scores["execution"] = float(score.match)
    return scores
