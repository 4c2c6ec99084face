"""Whether a query returns what the reference returns, on databases made to tell the two apart.

After the test suites of Zhong, Yu and Klein, "Semantic Evaluation for Text-to-SQL with Distilled
Test Suites" (2020): one database lets many wrong queries pass, so several are filled with values
around the literals of both queries. Keys are not assumed, since the schemas declare none: a
DISTINCT that only a key would make redundant is a difference.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from random import Random

from sqlglot import exp

from dollyllama.evaluation.databases import (
    PLANS,
    Rows,
    Synthesiser,
    filled,
    mended,
    read_schema,
)
from dollyllama.evaluation.hints import parse, read_hints
from dollyllama.evaluation.sqlite import FAILURES, Row, TooMuchError, Value, executes, select

#: Databases that must tell something about the reference before a query may pass, and how many are
#: made at most in search of them.
_INFORMATIVE = 16
_INFORMATIVE_A_PART = 4
_MOST = 6 * len(PLANS)
_SHUFFLES = 6


class Reason(StrEnum):
    equal = auto()
    differs = auto()
    invalid = auto()  # not one query that SQLite runs on the schema
    too_much = auto()  # too slow or too many rows, where the reference is not
    gold_fails = auto()
    gold_empty = auto()  # nothing but no rows, NULL and 0, or an arbitrary result, everywhere


@dataclass(frozen=True, slots=True)
class SqlScore:
    """match: None where the reference cannot be held against anything, which is to be counted and
    not scored. valid: the query runs on the schema. gold_rows: the most rows that the reference
    returned."""

    match: bool | None
    valid: bool
    gold_rows: int
    reason: Reason


def execution_match(context: str, gold: str, predicted: str) -> SqlScore:
    """Hold ``predicted`` against ``gold`` on the schema ``context`` (CREATE TABLE statements).

    Results are equal when they are one bag of rows, and come in an order (under a LIMIT: are rows)
    that ``gold``'s ORDER BY allows: rows that tie in it may come in any order and stand for one
    another at the cut. The order of columns counts and their names do not; numbers are compared to
    9 digits, 1 and 1.0 are equal, 1 and '1' are not. A database on which ``gold`` itself depends on
    the order in which rows are stored (a bare column beside GROUP BY) decides nothing.
    """
    context = mended(context)
    valid = executes(predicted, context)
    if not executes(gold, context):
        return SqlScore(None, valid, 0, Reason.gold_fails)
    schema = read_schema(context)
    columns = {name: table.columns for name, table in schema.items()}
    hints = read_hints((gold, predicted) if valid else (gold,), columns)
    needed = min(_INFORMATIVE + _INFORMATIVE_A_PART * hints.parts, _MOST // 2)
    same = predicted.strip() == gold.strip()
    if same:
        needed = 1  # only whether there is anything to match is to be found out
    synthesiser = Synthesiser(schema, hints)
    wanted = _Wanted.read(gold)
    informative, most, verdict = 0, 0, None
    databases = _Databases(synthesiser, further=not same)
    for rows in databases:
        stored = [rows, {name: lines[::-1] for name, lines in rows.items()}]
        seen, differs = [], None
        for order in stored:
            try:
                with filled(synthesiser.ddl, schema, order) as connection:
                    result = wanted.run(connection)
                    if verdict is None and differs is None:
                        differs = _difference(connection, predicted, result)
            except FAILURES:
                break
            seen.append(result)
        # A difference counts once the reference is known to say one thing here.
        if len(seen) < 2 or seen[0].bag != seen[1].bag or seen[0].is_arbitrary:
            continue
        if (
            verdict is None
            and differs is not None
            and _is_settled(synthesiser, wanted, rows, seen[0])
        ):
            verdict = differs
        most = max(most, seen[0].count)
        informative += seen[0].says_something
        databases.enough = informative >= needed
        if verdict is not None and informative:
            return SqlScore(False, valid, most, verdict)
    if not informative:
        return SqlScore(None, valid, most, Reason.gold_empty)
    return SqlScore(True, valid, most, Reason.equal)


@dataclass(slots=True)
class _Databases:
    """The rows of one database after the other until there are ``enough``; then one-sided ones."""

    synthesiser: Synthesiser
    further: bool
    enough: bool = False

    def __iter__(self) -> Iterator[Rows]:
        for number in range(_MOST):
            if self.enough:
                break
            yield self.synthesiser.rows(number)
        if self.further:
            yield from self.synthesiser.one_sided()


def _is_settled(synthesiser: Synthesiser, wanted: _Wanted, rows: Rows, first: _Result) -> bool:
    """Whether the reference returns the same however the rows are stored."""
    random = Random(repr(rows))
    for _ in range(_SHUFFLES):
        order = {name: random.sample(lines, len(lines)) for name, lines in rows.items()}
        try:
            with filled(synthesiser.ddl, synthesiser.schema, order) as connection:
                if wanted.run(connection).bag != first.bag:
                    return False
        except FAILURES:
            return False
    return True


def _difference(connection: sqlite3.Connection, predicted: str, result: _Result) -> Reason | None:
    try:
        rows = select(connection, predicted)
    except FAILURES as error:
        slow = isinstance(error, TooMuchError) or "interrupted" in str(error)
        return Reason.too_much if slow else Reason.invalid
    return None if result.allows([_comparable(row) for row in rows]) else Reason.differs


@dataclass(frozen=True, slots=True)
class _Result:
    """What a query may return: ``blocks`` of rows that tie, one after another, and the window of
    LIMIT and OFFSET over them, start <= row < stop."""

    blocks: Sequence[Sequence[Row]]
    start: int
    stop: int
    width: int
    is_arbitrary: bool = False  # a bare column beside GROUP BY has several values to choose from

    @property
    def bag(self) -> Counter[Row]:
        return Counter(row for block in self.blocks for row in block)

    @property
    def count(self) -> int:
        return max(0, self.stop - self.start)

    @property
    def says_something(self) -> bool:
        return self.count > 0 and any(
            value is not None and value != 0
            for block in self.blocks
            for row in block
            for value in row
        )

    def allows(self, rows: Sequence[Row]) -> bool:
        if len(rows) != self.count or any(len(row) != self.width for row in rows):
            return False
        begin = taken = 0
        for block in self.blocks:
            end = begin + len(block)
            share = max(0, min(end, self.stop) - max(begin, self.start))
            if Counter(rows[taken : taken + share]) - Counter(block):
                return False
            taken, begin = taken + share, end
        return True


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The reference, and where it can be had the same query without LIMIT and with what it is
    ordered by: as further columns at the end, or as ``keys``, columns that are there anyway."""

    query: str
    keyed: str | None
    added: int
    keys: tuple[int, ...]
    limit: int | None
    offset: int
    extremes: tuple[str, ...]

    @classmethod
    def read(cls, query: str) -> _Wanted:
        tree = parse(query)
        extremes = () if tree is None else _extremes(tree)
        plain = cls(query, None, 0, (), None, 0, extremes)
        if tree is None or not (tree.args.get("order") or tree.args.get("limit")):
            return plain
        limit, offset = _count(tree, "limit"), _count(tree, "offset")
        if limit == -1 or offset == -1:
            return plain
        tree = tree.copy()
        tree.set("limit", None)
        tree.set("offset", None)
        order = tree.args.get("order")
        ordered = [term.this for term in order.expressions] if order else []
        outputs = tree.selects
        is_plain = isinstance(tree, exp.Select) and not tree.args.get("distinct")
        keys, added = [], 0
        for term in ordered:
            place = _output(term, outputs)
            if place is not None:
                keys.append(place)
            elif is_plain and isinstance(tree, exp.Select):
                # Counted from the end: a star may stand for any number of columns.
                tree.select(exp.alias_(term.copy(), f"_key_{added}"), copy=False)
                added += 1
            else:
                return plain
        if any(isinstance(output, exp.Star) or output.is_star for output in outputs) and keys:
            return plain
        keyed = tree.sql(dialect="sqlite")
        return cls(query, keyed, added, tuple(keys), limit, offset or 0, extremes)

    def run(self, connection: sqlite3.Connection) -> _Result:
        rows = [_comparable(row) for row in select(connection, self.query)]
        width = len(rows[0]) if rows else 0
        plain = _Result([rows], 0, len(rows), width, self.is_arbitrary(connection))
        if self.keyed is None:
            return plain
        try:
            keyed = [_comparable(row) for row in select(connection, self.keyed)]
        except FAILURES:
            return plain
        blocks: list[list[Row]] = []
        last: Row | None = None
        for row in keyed:
            cut = len(row) - self.added
            key = (*row[cut:], *(row[place] for place in self.keys))
            if not blocks or key != last:
                blocks.append([])
            blocks[-1].append(row[:cut])
            last = key
        stop = len(keyed) if self.limit is None else min(len(keyed), self.offset + self.limit)
        result = _Result(blocks, self.offset, stop, width, plain.is_arbitrary)
        # What sqlglot wrote must say what the reference said.
        return result if result.allows(rows) else plain

    def is_arbitrary(self, connection: sqlite3.Connection) -> bool:
        try:
            found = [Counter(map(_comparable, select(connection, q))) for q in self.extremes]
        except FAILURES:
            return False
        return len(found) == 2 and found[0] != found[1]


def _extremes(tree: exp.Query) -> tuple[str, ...]:
    """The query with MIN, and with MAX, around each column that stands bare beside GROUP BY or an
    aggregate: where the two agree, it does not matter which row SQLite takes it from."""
    queries = []
    for extreme in (exp.Min, exp.Max):
        copy, wrapped = tree.copy(), 0
        for select_ in copy.find_all(exp.Select):
            group = select_.args.get("group")
            aggregates = list(select_.find_all(exp.AggFunc))
            if not group and not any(a.find_ancestor(exp.Select) is select_ for a in aggregates):
                continue
            # Beside one MIN or MAX alone, SQLite takes it from the row that has it.
            if any(isinstance(output.unalias(), exp.Min | exp.Max) for output in select_.selects):
                continue
            keys = list(group.expressions) if group else []
            order = select_.args.get("order")
            terms = [*select_.selects, *(order.expressions if order else [])]
            for column in [c for term in terms for c in term.find_all(exp.Column)]:
                if column in keys or column.find_ancestor(exp.AggFunc, exp.Select) is not select_:
                    continue
                column.replace(extreme(this=column.copy()))
                wrapped += 1
        if wrapped:
            queries.append(copy.sql(dialect="sqlite"))
    return tuple(queries)


def _count(tree: exp.Query, name: str) -> int | None:
    """LIMIT or OFFSET: None where there is none, -1 where it is no plain number."""
    node = tree.args.get(name)
    if node is None:
        return None
    value = node.expression
    plain = isinstance(value, exp.Literal) and re.fullmatch("[0-9]{1,9}", value.name)
    return int(value.name) if plain else -1


def _output(term: exp.Expr, outputs: Sequence[exp.Expr]) -> int | None:
    """The column of the result that a term of ORDER BY is: by number, by name or as written."""
    if isinstance(term, exp.Literal) and term.name.isdigit():
        return int(term.name) - 1
    for place, output in enumerate(outputs):
        if isinstance(term, exp.Column) and not term.table:
            if output.alias_or_name.lower() == term.name.lower():
                return place
        elif output.unalias() == term:
            return place
    return None


def _comparable(row: Sequence[Value]) -> Row:
    return tuple(_number(value) if isinstance(value, float) else value for value in row)


def _number(value: float) -> float:
    return float(f"{value:.9g}")
