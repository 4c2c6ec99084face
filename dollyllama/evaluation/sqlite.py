"""Running SQL that nobody has read: in memory, read-only, bounded in work, rows and bytes."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import translate
from functools import lru_cache

Value = None | int | float | str | bytes
Row = tuple[Value, ...]

#: What a statement that cannot be run raises. ValueError: a null character or half a surrogate
#: pair.
FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError)

#: Steps of SQLite's virtual machine. A query on some tens of rows takes some thousands; counting
#: them and not seconds makes a score the same on a slow machine.
MAX_STEPS = 400_000
MAX_ROWS = 5_000
_STEPS_A_CALL = 1_000
_MAX_TEXT_BYTES = 5_000  # of one value, and of one row
_MAX_QUERY_BYTES = 100_000
_MAX_PATTERN = 200
_MAX_MATCHING = 20_000_000  # characters of text times characters of pattern, over a query

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

# Known to be cheap on short values and to depend on nothing but their arguments. Missing on
# purpose: what is random or tells the time, makes long values (zeroblob, printf, hex), or reads
# files.
_FUNCTIONS = frozenset(
    """
    abs avg ceil ceiling char coalesce count cume_dist date datetime dense_rank first_value floor
    glob group_concat ifnull iif instr julianday lag last_value lead length like likelihood likely
    lower ltrim max min mod nth_value ntile nullif percent_rank pow power quote rank replace round
    row_number rtrim sign sqrt strftime string_agg substr substring sum time total trim trunc typeof
    unicode unixepoch unlikely upper
    """.split()
)
_TELLS_THE_TIME = re.compile(
    r"""['"]\s*now\s*['"] | \b(?:date|datetime|julianday|time|unixepoch)\s*\(\s*\)
    | \bstrftime\s*\(\s*(?:'[^']*'|"[^"]*")\s*\)""",
    re.IGNORECASE | re.VERBOSE,
)


class TooMuchError(sqlite3.Error):
    """More rows than a query on small tables has any reason to give."""


@contextmanager
def database(schema: str) -> Iterator[sqlite3.Connection]:
    """An empty database made from ``schema``, CREATE TABLE statements that may be anybody's.

    Raises one of ``FAILURES`` where they cannot be run or do something else. ``select`` queries it.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_TEXT_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_QUERY_BYTES)
        _replace_matching(connection)
        _restrict(connection, _MAKING, MAX_STEPS)
        connection.executescript(schema)
        yield connection
    finally:
        connection.close()


def close_for_writing(connection: sqlite3.Connection) -> None:
    """From now on ``connection`` only reads."""
    _restrict(connection, _READING, MAX_STEPS)


def select(connection: sqlite3.Connection, query: str) -> list[Row]:
    """The rows of ``query`` on a database that is closed for writing.

    Raises one of ``FAILURES``, also where it is not one statement that returns rows.
    """
    if _TELLS_THE_TIME.search(query):
        raise ValueError("what it returns depends on when it runs")
    _count_steps(connection, MAX_STEPS)
    cursor = connection.execute(query)
    if cursor.description is None:
        raise ValueError("it is no query")
    rows = cursor.fetchmany(MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise TooMuchError(f"more than {MAX_ROWS} rows")
    return rows


def executes(query: str, context: str) -> bool:
    """Whether ``query`` is one statement that returns rows (or none) on the schema ``context``.

    In memory, read-only, without files, extensions or long work: a hostile query is one that fails.
    """
    try:
        with database(context) as connection:
            close_for_writing(connection)
            select(connection, query)
    except FAILURES:
        return False
    return True


def _restrict(connection: sqlite3.Connection, actions: frozenset[int], steps: int) -> None:
    def authorise(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        unknown = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _FUNCTIONS
        return sqlite3.SQLITE_OK if action in actions and not unknown else sqlite3.SQLITE_DENY

    connection.set_authorizer(authorise)
    _count_steps(connection, steps)


def _count_steps(connection: sqlite3.Connection, steps: int) -> None:
    calls = 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        return calls > steps // _STEPS_A_CALL

    connection.set_progress_handler(count, _STEPS_A_CALL)


def _replace_matching(connection: sqlite3.Connection) -> None:
    """LIKE and GLOB without SQLite's, which cannot be interrupted and may backtrack for ever."""
    work = 0

    def matches(
        compiled: Callable[..., re.Pattern[str]],
    ) -> Callable[..., int | None]:
        def match(pattern: Value, text: Value, escape: str = "") -> int | None:
            nonlocal work
            if pattern is None or text is None or escape is None:
                return None
            pattern, text = _as_text(pattern), _as_text(text)
            work += len(pattern) * len(text)
            if len(pattern) > _MAX_PATTERN or work > _MAX_MATCHING:
                raise ValueError("a pattern that takes too long")
            return int(compiled(pattern, escape).match(text) is not None)

        return match

    for arguments in (2, 3):
        connection.create_function("like", arguments, matches(_like), deterministic=True)
    connection.create_function("glob", 2, matches(_glob), deterministic=True)


def _as_text(value: int | float | str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@lru_cache(maxsize=256)
def _like(pattern: str, escape: str) -> re.Pattern[str]:
    """SQL's LIKE as an expression whose time is bounded: what is between two % is found where it
    first is, in an atomic group, and never looked for again."""
    pieces = [""]
    characters = iter(pattern)
    for character in characters:
        if escape and character == escape:
            pieces[-1] += re.escape(next(characters, escape))
        elif character == "%":
            pieces.append("")
        else:
            pieces[-1] += "." if character == "_" else re.escape(character)
    first, *others = pieces
    if others:
        *middle, last = others
        first += "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
    # ASCII letters alone have two cases in SQLite.
    return re.compile(first + r"\Z", re.DOTALL | re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=256)
def _glob(pattern: str, _: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[^", "[!")))
