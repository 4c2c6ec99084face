"""How good a SQL answer is: does it say the same as the reference, and does it run at all?"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

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


def grade(completion: str, reference: str, context: str) -> dict[str, float]:
    """Score a query: ``exact``, and ``executes`` where the reference itself runs on the schema.

    exact: written the same as the reference, see ``normalise``. executes: SQLite accepts it and
    runs it on empty tables made from ``context`` (CREATE TABLE statements), so names and syntax are
    right; it says nothing about the result. Some upstream schemas and references do not run, and
    there an answer is not held to it.
    """
    wanted = normalise(reference)
    scores = {"exact": float(bool(wanted) and normalise(completion) == wanted)}
    if context and executes(reference, context):
        scores["executes"] = float(executes(completion, context))
    return scores


# A query may read the tables and nothing else; a schema may also make them. SQLite asks for each
# action, so ATTACH, PRAGMA, transactions, triggers, virtual tables and all writing are refused.
_READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_MAKING = _READING | {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
}

#: Steps of SQLite's virtual machine. A query on empty tables takes some hundreds; counting them and
#: not seconds makes the score the same on a slow machine.
_MAX_STEPS = 100_000
_STEPS_A_CALL = 1_000
_MAX_TEXT_BYTES = 10_000
_MAX_QUERY_BYTES = 100_000


def executes(query: str, context: str) -> bool:
    """Whether ``query`` is one statement that returns rows (or none) on the schema ``context``.

    In memory, read-only, without files, extensions or long work: a hostile query is one that fails.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_TEXT_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_QUERY_BYTES)
        # SQLite cannot be interrupted inside a pattern match, which can take for ever; no row is
        # there whose match would matter.
        for name, arguments in (("like", 2), ("like", 3), ("glob", 2)):
            connection.create_function(name, arguments, lambda *_: 0, deterministic=True)
        _restrict(connection, _MAKING)
        connection.executescript(context)
        _restrict(connection, _READING)
        cursor = connection.execute(query)
        for _ in cursor:
            pass
        return cursor.description is not None
    # ValueError: a null character or half a surrogate pair.
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError):
        return False
    finally:
        connection.close()


def _restrict(connection: sqlite3.Connection, allowed: Iterable[int]) -> None:
    """Let ``connection`` do what is in ``allowed``, for ``_MAX_STEPS`` steps from now."""
    actions = frozenset(allowed)
    calls = 0

    def authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        loads = action == sqlite3.SQLITE_FUNCTION and second == "load_extension"
        return sqlite3.SQLITE_OK if action in actions and not loads else sqlite3.SQLITE_DENY

    def count() -> bool:
        nonlocal calls
        calls += 1
        return calls > _MAX_STEPS // _STEPS_A_CALL

    connection.set_authorizer(authorise)
    connection.set_progress_handler(count, _STEPS_A_CALL)
