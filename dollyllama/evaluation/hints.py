"""What SQL queries say about the rows that would tell them apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from dollyllama.evaluation.invert import Undo, is_dating, reckoned, undo_function, undo_sum
from dollyllama.evaluation.sqlite import Value

_MIRRORED: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
}

#: A table and a column of it, in lower case.
Place = tuple[str, str]

#: What columns are taken for where another is to be found beside them.
_ASSUMED = (2, 3)

_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
_OF_TEXT = (exp.Length, exp.Substring, exp.StrPosition, exp.DPipe, exp.Lower, exp.Upper)

_MAX_PARSED = 5_000  # characters: parsing is no part of what SQLite bounds
# Literals beyond these are left out: rows and sums of them would not fit.
_MAX_NUMBER = 1e15
_MAX_TEXT = 300
_TOKEN = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"|(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)\Z")


@dataclass(slots=True)
class Hints:
    """Read from the queries by ``read_hints``.

    hits: values that meet a condition on a column. near: values beside its literals. alike: columns
    compared with one another. numeric: columns that are reckoned with. dated: columns that
    functions of dates read. grouped: columns of GROUP BY. sizes: numbers that a count is compared
    with. limit: the largest LIMIT. parts: how much there is to tell apart: SELECTs, joins, groups
    and conditions on groups.
    """

    hits: dict[Place, list[Value]] = field(default_factory=lambda: defaultdict(list))
    near: dict[Place, list[Value]] = field(default_factory=lambda: defaultdict(list))
    alike: list[tuple[Place, Place]] = field(default_factory=list)
    numeric: set[Place] = field(default_factory=set)
    dated: set[Place] = field(default_factory=set)
    grouped: set[Place] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    limit: int = 0
    parts: int = 0


def parse(query: str) -> exp.Query | None:
    """The query as a tree, or None where it is none that can be read."""
    if len(query) > _MAX_PARSED or not re.match(r"[\s(]*(?:select|with)\b", query, re.IGNORECASE):
        return None
    try:
        tree = parse_one(query, read="sqlite")
    except (SqlglotError, RecursionError):
        return None
    return tree if isinstance(tree, exp.Query) else None


def read_hints(queries: Iterable[str], columns: Mapping[str, Sequence[str]]) -> Hints:
    """Read ``queries`` on tables with these ``columns`` (names in lower case)."""
    hints = Hints()
    for query in queries:
        tree = parse(query)
        if tree is None:
            _read_tokens(query, columns, hints)
        else:
            _Reader(tree, columns, hints).read()
    return hints


def neighbours(value: Value) -> list[Value]:
    """Values that are taken for ``value`` by a condition that is nearly right."""
    if value is None or isinstance(value, bytes):
        return [value]
    if isinstance(value, int | float):
        return [value, value - 1, value + 1]
    others: list[Value] = [value, value.swapcase(), value + "x", "x" + value]
    if _NUMBER.match(value):
        number = float(value) if "." in value else int(value)
        width = len(value) if value.startswith("0") else 0  # "05", a month say
        others += [str(number - 1).zfill(width), str(number + 1).zfill(width)]
    return others


def _read_tokens(query: str, columns: Mapping[str, Sequence[str]], hints: Hints) -> None:
    """Without a tree: each literal may be meant for each column."""
    for single, double, number in _TOKEN.findall(query[:_MAX_PARSED]):
        value = _number(number) if number else _text(single or double)
        if value is None:
            continue
        for table, names in columns.items():
            for name in names:
                hints.hits[table, name].append(value)
                hints.near[table, name] += neighbours(value)


def _number(text: str) -> int | float | None:
    try:
        value: int | float = int(text)
    except ValueError:
        value = float(text)
    return value if abs(value) < _MAX_NUMBER else None


def _text(text: str) -> str | None:
    return text if len(text) <= _MAX_TEXT else None


class _Reader:
    """One query's tree, with what its names stand for."""

    def __init__(self, tree: exp.Query, columns: Mapping[str, Sequence[str]], hints: Hints) -> None:
        self.tree, self.columns, self.hints = tree, columns, hints
        self.tables: dict[str, set[str]] = defaultdict(set)
        for table in tree.find_all(exp.Table):
            if table.name.lower() in columns:
                self.tables[table.alias_or_name.lower()].add(table.name.lower())
                self.tables[table.name.lower()].add(table.name.lower())

    def read(self) -> None:
        for node in self.tree.walk():
            self.hints.parts += isinstance(node, exp.Select | exp.Join | exp.Group | exp.Having)
            if isinstance(node, exp.EQ | exp.NEQ | exp.GT | exp.GTE | exp.LT | exp.LTE):
                self.read_comparison(type(node), node.left, node.right)
            elif isinstance(node, exp.Between):
                self.read_comparison(exp.GTE, node.this, node.args["low"])
                self.read_comparison(exp.LTE, node.this, node.args["high"])
            elif isinstance(node, exp.In):
                for option in node.expressions:
                    self.read_comparison(exp.EQ, node.this, option)
                if node.args.get("query") is not None:
                    self.read_comparison(exp.EQ, node.this, node.args["query"])
            elif isinstance(node, exp.Like | exp.ILike | exp.Glob):
                self.read_pattern(node.this, node.expression)
            elif isinstance(node, exp.Is):
                for place in self.places(node.this):
                    self.hints.hits[place].append(None)
                    self.hints.near[place].append(None)
            elif isinstance(node, exp.Sum | exp.Avg):
                self.hints.numeric.update(self.reckoned_with(node.this))
            elif isinstance(node, _ARITHMETIC):
                self.hints.numeric.update(self.reckoned_with(node.left, node.right))
            elif isinstance(node, exp.Abs):
                for place in self.reckoned_with(node.this):
                    self.hints.numeric.add(place)
                    self.hints.near[place] += [-3, 3, -8]
            elif isinstance(node, exp.Length):
                for place in self.places(node.this):
                    self.hints.near[place] += ["ab", "abcde", "abcdefghi"]
            elif is_dating(node):
                self.hints.dated.update(
                    place for column in node.find_all(exp.Column) for place in self.places(column)
                )
            elif isinstance(node, exp.SetOperation):
                for one, other in zip(node.left.selects, node.right.selects, strict=False):
                    self.join(one, other)
            elif isinstance(node, exp.Group):
                for key in node.expressions:
                    self.hints.grouped.update(self.places(key))
            elif isinstance(node, exp.Limit | exp.Offset):
                count = self.literal(node.expression)
                if isinstance(count, int):
                    self.hints.limit = max(self.hints.limit, min(count, 40))

    def read_comparison(self, kind: type[exp.Expr], one: exp.Expr, other: exp.Expr) -> None:
        left, right = self.literal(one), self.literal(other)
        if left is not None and right is None:
            self.read_comparison(_MIRRORED.get(kind, kind), other, one)
        elif right is None:
            self.join(one, other)
            if isinstance(one.unnest(), _ARITHMETIC) or isinstance(other.unnest(), _ARITHMETIC):
                for value in self.assumed(other):
                    self.read_comparison(exp.EQ, one, exp.Literal.number(value))
        elif left is None:
            inner, hits = self.undone(one, _meeting(kind, right))
            _, near = self.undone(one, neighbours(right))
            if inner.find(exp.Count) and isinstance(right, int | float):
                self.hints.sizes.update(int(v) for v in near[:1] if isinstance(v, int | float))
                return
            for place in self.places(inner):
                self.hints.near[place] += near
                if isinstance(right, int) and inner.find(exp.Sum, exp.Avg):
                    # Values that are on the other side than what they come to together.
                    whole = int(near[0]) if near and isinstance(near[0], int | float) else right
                    self.hints.hits[place] += [whole // 2, whole - whole // 2, 1, whole + 9]
                self.hints.hits[place] += hits or near
                if isinstance(right, int | float):
                    self.hints.numeric.update(self.reckoned_with(one))

    def undone(self, node: exp.Expr, values: list[Value]) -> tuple[exp.Expr, list[Value]]:
        """What ``node`` is reckoned from, and what that must be for it to come to ``values``."""
        while (step := self.step(node)) is not None:
            node, undo = step
            values = [each for value in values for each in undo(value)]
        return node, values

    def step(self, node: exp.Expr) -> tuple[exp.Expr, Undo] | None:
        if not isinstance(node, _ARITHMETIC):
            return undo_function(node, self.literal)
        kind, left, right = type(node), node.left, node.right
        for inner, other, is_left in ((left, right, True), (right, left, False)):
            value = self.literal(other)
            if isinstance(value, int | float):
                return inner, undo_sum(kind, [value], is_left=is_left)
        names = [{c.sql().lower() for c in side.find_all(exp.Column)} for side in (left, right)]
        if names[0] & names[1] or not (assumed := self.assumed(right)):
            return None
        return left, undo_sum(kind, assumed, is_left=True)

    def assumed(self, node: exp.Expr) -> list[int | float]:
        """What ``node`` comes to with its columns at ``_ASSUMED``, which they then may be; [] where
        there is more to it than columns, numbers and signs."""
        values = []
        for number in _ASSUMED:
            copy = node.copy()
            for column in list(copy.find_all(exp.Column)):
                literal = exp.Literal.number(number)
                if column is copy:
                    copy = literal
                else:
                    column.replace(literal)
            value = self.literal(copy)
            if not isinstance(value, int | float):
                return []
            values.append(value)
        for column in node.find_all(exp.Column):
            for place in self.places(column):
                self.hints.hits[place] += _ASSUMED
                self.hints.near[place] += _ASSUMED
        return values

    def reckoned_with(self, *nodes: exp.Expr) -> list[Place]:
        """The columns of ``nodes`` that are numbers there, not texts of which one is made."""
        return [
            place
            for node in nodes
            if not any(isinstance(each, _OF_TEXT) or is_dating(each) for each in node.walk())
            for place in self.places(node)
        ]

    def read_pattern(self, one: exp.Expr, other: exp.Expr) -> None:
        pattern = self.literal(other)
        if isinstance(pattern, str):
            core = pattern.strip("%*").replace("_", "a").replace("?", "a")
            core = core.replace("%", " b ").replace("*", " b ")
            meeting = pattern.replace("_", "a").replace("?", "a")
            for place in self.places(one):
                self.hints.hits[place] += [
                    re.sub("[%*]", inside, meeting) for inside in ("", " c ", "zz")
                ]
                near = [core, core.swapcase(), "d" + core, core + "d", "d" + core + "d"]
                self.hints.near[place] += [*near, core[:-1], core[1:]]

    def join(self, one: exp.Expr, other: exp.Expr) -> None:
        self.hints.alike += [(a, b) for a in self.places(one) for b in self.places(other)]

    def literal(self, node: exp.Expr | None) -> Value:
        """The value that a node writes; None where it writes none (or NULL)."""
        if isinstance(node, exp.Paren):
            return self.literal(node.this)
        if isinstance(node, exp.Neg):
            value = self.literal(node.this)
            return -value if isinstance(value, int | float) else None
        if isinstance(node, exp.Literal):
            return _text(node.this) if node.is_string else _number(node.this)
        if isinstance(node, exp.Date) and not node.args.get("expressions"):
            return self.literal(node.this)
        if isinstance(node, _ARITHMETIC):
            return reckoned(type(node), self.literal(node.left), self.literal(node.right))
        # SQLite takes a quoted name that is no column for text.
        if isinstance(node, exp.Column) and node.this.args.get("quoted") and not self.places(node):
            return _text(node.name)
        return None

    def places(self, node: exp.Expr) -> list[Place]:
        """The columns that a side of a comparison takes its values from."""
        if isinstance(node, exp.Subquery | exp.Paren | exp.Alias):
            return self.places(node.this)
        if isinstance(node, exp.Query):
            return self.places(node.selects[0]) if node.selects else []
        if isinstance(node, exp.Count):
            return []
        if not isinstance(node, exp.Column):
            inner = list(node.find_all(exp.Column))
            return self.places(inner[0]) if len(inner) == 1 and inner[0] is not node else []
        name = node.name.lower()
        if node.table:
            tables: Iterable[str] = sorted(self.tables.get(node.table.lower(), ()))
        else:
            tables = self.around(node, name)
        return [(table, name) for table in tables if name in self.columns[table]]

    def around(self, node: exp.Expr, name: str) -> list[str]:
        """The tables of the nearest SELECT around a bare name that have such a column."""
        select = node.find_ancestor(exp.Select)
        while select is not None:
            found = [table for table in _tables(select) if name in self.columns.get(table, ())]
            if found:
                return found
            select = select.find_ancestor(exp.Select)
        return sorted({t for names in self.tables.values() for t in names})


def _tables(select: exp.Select) -> Iterator[str]:
    joined = [join.this for join in select.args.get("joins") or []]
    first = select.args.get("from_") or select.args.get("from")
    for source in [first.this if first else None, *joined]:
        if isinstance(source, exp.Table):
            yield source.name.lower()


def _meeting(kind: type[exp.Expr], value: Value) -> list[Value]:
    if not isinstance(value, int | float | str):
        return [value]
    if isinstance(value, str):
        above: list[Value] = [value + "5", value + "z"]
        below: list[Value] = [value[:-1], "!" + value]
    else:
        above, below = [value + 1, value + 2, value + 7], [value - 1, value - 2, value - 7]
    meeting: dict[type[exp.Expr], list[Value]] = {
        exp.GT: above,
        exp.GTE: [value, *above],
        exp.LT: below,
        exp.LTE: [value, *below],
        exp.NEQ: [*above[:2], *below[:2]],
    }
    return meeting.get(kind, [value])
