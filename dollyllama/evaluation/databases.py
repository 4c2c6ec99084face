"""Small databases whose rows are made to tell SQL queries apart."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random

from dollyllama.evaluation.hints import Hints, Place
from dollyllama.evaluation.invert import some_day
from dollyllama.evaluation.sqlite import Row, Value, close_for_writing, database

_MAX_ROWS = 300
_NAMED_AS_KEY = re.compile(r"(?:.*_)?id|.*[a-z]I[Dd]", re.DOTALL)
_SIMPLE_TABLE = re.compile(r"\s*CREATE TABLE (\w+) \(([\w ,]+)\)\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Table:
    """names: as they are written. columns: in lower case. numeric: declared for numbers."""

    name: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    unique: tuple[bool, ...]


Schema = Mapping[str, Table]  # by the table's name in lower case
Rows = Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one database is filled.

    rows: in a table. hit: the chance that a value meets a condition of the queries. near: that it
    stands beside a literal instead. values: how many others a column draws from, few for duplicates
    and ties. nulls: the chance of NULL. entities: whether what is joined is a key where it looks
    like one. dependent: whether rows of one group agree in all other texts. matched: the chance
    that a joined value has a partner. side: whether numbers that a query compares lie on one side
    of all its literals, -1 below and 1 above them.
    """

    rows: int
    hit: float
    near: float
    values: int
    nulls: float = 0
    entities: bool = True
    dependent: bool = False
    matched: float = 0.85
    side: int = 0


#: The first ones are for all queries, the cheapest first; see ``execution``.
PLANS = (
    Plan(8, hit=0.8, near=0.5, values=40),
    Plan(10, hit=0.6, near=0.6, values=4, nulls=0.1),
    Plan(6, hit=0.95, near=0.5, values=3, dependent=True),
    Plan(12, hit=0.5, near=0.8, values=40, entities=False),
    Plan(9, hit=0.9, near=0.3, values=2),
    Plan(12, hit=0.75, near=0.6, values=8, nulls=0.2, dependent=True),
    Plan(16, hit=0.7, near=0.5, values=60),
    Plan(5, hit=0.85, near=0.5, values=5, entities=False, matched=0.6),
    Plan(14, hit=0.4, near=0.7, values=3, dependent=True, entities=False),
    Plan(12, hit=1, near=0, values=40, dependent=True),
    Plan(3, hit=0.9, near=0.5, values=3, matched=1),
    Plan(20, hit=0.8, near=0.5, values=6, nulls=0.05),
    Plan(1, hit=1, near=0, values=1, matched=1),
    Plan(10, hit=0.3, near=0.9, values=40, nulls=0.1),
    Plan(24, hit=0.7, near=0.5, values=50),
    Plan(12, hit=0.6, near=0.6, values=3, dependent=True, matched=0.95),
)
#: A largest or first value meets a condition that some rows meet, unless none or all do.
ONE_SIDED = tuple(Plan(10, hit=0.9, near=0.5, values=40, side=side) for side in (-1, 1))


def read_schema(context: str) -> Schema:
    """The tables that CREATE TABLE statements make, ``mended``. Raises as ``sqlite.database``."""
    with database(mended(context)) as connection:
        connection.set_authorizer(None)
        tables = {}
        made = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for (name,) in connection.execute(made).fetchall():
            quoted = _quote(name)
            rows = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
            names = tuple(row[1] for row in rows)
            keys = sum(bool(row[5]) for row in rows)
            tables[name.lower()] = Table(
                name,
                names,
                tuple(column.lower() for column in names),
                tuple(_is_numeric(row[2]) for row in rows),
                tuple(bool(row[5]) and keys == 1 for row in rows),
            )
        return tables


def mended(context: str) -> str:
    """``context`` with one table of a name and one column of a name in it.

    Upstream made schemas from the columns that a query uses and wrote a table twice where the
    query writes its name in two ways. Other statements stay as they are.
    """
    tables: dict[str, tuple[str, dict[str, str]]] = {}
    others = []
    for statement in context.split(";"):
        made = _SIMPLE_TABLE.match(statement)
        if made is None:
            others.append(statement)
            continue
        _, columns = tables.setdefault(made[1].lower(), (made[1], {}))
        for column in made[2].split(","):
            name = column.split()[0] if column.split() else ""
            columns.setdefault(name.lower(), column.strip())
    if not tables or any(other.strip() for other in others):
        return context
    return ";".join(
        f"CREATE TABLE {name} ({', '.join(columns.values())})" for name, columns in tables.values()
    )


def _is_numeric(declared: str) -> bool:
    return any(word in declared.upper() for word in "INT REAL FLOA DOUB NUM DEC BOOL".split())


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Synthesiser:
    """Fills ``schema`` with rows that ``hints`` ask for, the same ones for the same number.

    The types that a context declares are guesses: a column is made numeric where a query reckons
    with it, and columns that are compared are made alike. Columns that are joined or called an id
    hold no NULL, as keys do. Numbers are whole unless a literal is not.
    """

    def __init__(self, schema: Schema, hints: Hints) -> None:
        self.schema, self.hints = schema, hints
        self.places = [(name, c) for name, table in schema.items() for c in table.columns]
        self.root = _roots(self.places, hints)
        members: dict[Place, list[Place]] = {}
        for place in self.places:
            members.setdefault(self.root[place], []).append(place)
        self.joined = {p for pair in hints.alike if pair[0] != pair[1] for p in pair}
        self.without_null = self.joined | {
            (key, name.lower())
            for key, table in schema.items()
            for name in table.names
            if _NAMED_AS_KEY.fullmatch(name) or _NAMED_AS_KEY.fullmatch(name.lower())
        }
        declared = {
            (name, column)
            for name, table in schema.items()
            for column, numeric in zip(table.columns, table.numeric, strict=True)
            if numeric
        }
        self.numeric = {
            place
            for group in members.values()
            if any(p in hints.numeric or p in declared for p in group)
            for place in group
        }
        self.dated = {self.root[place] for place in hints.dated if place in self.root}
        self.hits = {
            r: [v for p in group for v in hints.hits.get(p, ())] for r, group in members.items()
        }
        self.near = {
            r: [v for p in group for v in hints.near.get(p, ())] for r, group in members.items()
        }

    @property
    def ddl(self) -> str:
        """CREATE TABLE statements with the types that the rows were made for."""
        return ";".join(
            f"CREATE TABLE {_quote(table.name)} ("
            + ", ".join(
                f"{_quote(name)} {'NUMERIC' if (key, name.lower()) in self.numeric else 'TEXT'}"
                for name in table.names
            )
            + ")"
            for key, table in self.schema.items()
        )

    def rows(self, number: int) -> Rows:
        """The rows of database ``number``; after those of ``PLANS`` come more of their kinds in
        which conditions hold ever more often."""
        random = Random(f"{number} {self.ddl}")
        plan = PLANS[number % len(PLANS)]
        again = number // len(PLANS)
        if again:
            plan = Plan(
                plan.rows,
                hit=1 if again % 2 else 0.95,
                near=plan.near,
                values=plan.values,
                entities=plan.entities,
                dependent=plan.dependent,
                matched=1,
            )
        return self.rows_of(plan, random)

    def one_sided(self) -> Iterator[Rows]:
        """The rows of ``ONE_SIDED``; none where no number is compared."""
        if any(self.literals(root) for root in self.numeric):
            for plan in ONE_SIDED:
                yield self.rows_of(plan, Random(f"{plan.side} {self.ddl}"))

    def literals(self, root: Place) -> list[int | float]:
        """The numbers that queries hold against a numeric column, and those beside them."""
        given = [*self.hits[root], *self.near[root]] if root in self.hits else []
        return [v for v in given if isinstance(v, int | float)]

    def rows_of(self, plan: Plan, random: Random) -> Rows:
        pools = {root: self.pool(root, plan, random) for root in sorted(set(self.root.values()))}
        many = self.many_side(random)
        return {
            name: self.table(name, plan, pools, random, many=name == many) for name in self.schema
        }

    def many_side(self, random: Random) -> str | None:
        """Where each table looks like one of entities: the one that has many rows to a key,
        preferably none whose key is grouped by."""
        lone = [name for name, table in self.schema.items() if _is_lone(table, self.joined)]
        if len(lone) < len(self.schema) or not lone:
            return None
        grouped = {table for table, column in self.hints.grouped}
        others = [name for name in lone if name not in grouped]
        return random.choice(others if others and random.random() < 0.8 else lone)

    def pool(self, root: Place, plan: Plan, random: Random) -> list[Value]:
        """What a column (or those joined with it) holds where no condition is on it."""
        if plan.side and root in self.numeric and (given := self.literals(root)):
            end = int(max(given) if plan.side > 0 else min(given))
            return [end + plan.side * (2 + 3 * step) for step in range(plan.values)]
        if root in self.numeric:
            given = [v for v in self.near[root] if isinstance(v, int | float)]
            low = int(min(given, default=1)) - (3 if given else 0)
            high = max(low + plan.values, int(max(given, default=0)) + 3)
            # Not in steps of one, lest a sum or a count be equal to one by chance.
            span = range(low, high + 1) if given else range(1, 7 * plan.values + 1)
            return list(random.sample(span, min(plan.values, len(span))))
        if root in self.dated:
            return [some_day(random) for _ in range(plan.values)]
        words = [f"{root[1]} {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        words += [f"{word}{number}" for number in range(3) for word in words[:26]]
        return list(random.sample(words, min(plan.values, len(words))))

    def table(
        self,
        name: str,
        plan: Plan,
        pools: Mapping[Place, list[Value]],
        random: Random,
        *,
        many: bool,
    ) -> list[Row]:
        table = self.schema[name]
        shaped = [c for c in table.columns if (name, c) in self.joined | self.hints.grouped]
        is_entity = _is_lone(table, self.joined) and not many
        if not plan.entities:
            is_entity = is_entity and random.random() < 0.3
        sizes = sorted(s for s in self.hints.sizes if 0 <= s <= 120)
        count = plan.rows
        if shaped and not is_entity and sizes:
            count = max(count, sum(s + 1 for s in sizes) + 2 * max(sizes) + 2)
        if self.hints.limit:
            count = max(
                count, min(self.hints.limit + 3, 45) * (2 if shaped and not is_entity else 1)
            )
        count = min(count, _MAX_ROWS)
        columns: dict[str, list[Value]] = {}
        for column, unique in zip(table.columns, table.unique, strict=True):
            place = (name, column)
            if column in shaped:
                columns[column] = self.shaped(
                    place, plan, count, is_entity and place in self.joined, sizes, random
                )
            else:
                columns[column] = [self.value(place, plan, pools, random) for _ in range(count)]
            if unique:
                columns[column] = list(range(1, count + 1))
        rows = list(zip(*(columns[c] for c in table.columns), strict=True))
        if plan.dependent and shaped:
            rows = self.made_dependent(name, shaped, rows)
        # A row that stands there twice.
        if not is_entity and not sizes and not any(table.unique) and len(rows) > 4:
            rows[-1] = rows[0]
        return rows

    def shaped(
        self,
        place: Place,
        plan: Plan,
        count: int,
        is_key: bool,
        sizes: Sequence[int],
        random: Random,
    ) -> list[Value]:
        """A column that is joined or grouped by: each value once, or groups of different sizes."""
        root = self.root[place]
        hits = [v for v in dict.fromkeys(self.hits[root]) if v is not None]
        near = [v for v in dict.fromkeys(self.near[root]) if v is not None and v not in hits]
        others: list[Value]
        if root in self.numeric:
            others = [v for v in range(1, count + 40) if v not in hits]
        elif root in self.dated:
            # The same in all tables too, and no day twice.
            days = Random(repr(root))
            drawn = dict.fromkeys(some_day(days) for _ in range(2 * count + 100))
            others = [*islice((day for day in drawn if day not in hits), count + 40)]
        else:
            others = [f"{root[1]} {number}" for number in range(1, count + 40)]
        # The order is the same in all tables of a database, so that joined values meet.
        values = [*hits[:6], *near[: int(4 * plan.near)], *others]
        if is_key:
            keys = values[:count] if plan.matched == 1 else values[1 if not hits else 0 :][:count]
            return random.sample(keys, len(keys))
        wanted = min(max(2, plan.values if plan.values < 10 else count // 2), 12)
        wanted = max(wanted, min(self.hints.limit + 2, 20), 2 * len(sizes) + 2)
        values = values[: wanted + (0 if plan.matched == 1 else 1)]
        column: list[Value] = []
        order = random.sample(values, len(values))
        wide = random.random() < 0.3
        for size, value in zip(sizes, order[: len(sizes)], strict=False):
            column += [value] * size
        for size, value in zip(sizes, order[len(sizes) :], strict=False):
            column += [value] * (size + 1)
        if 2 * len(sizes) < len(order):
            order = order[2 * len(sizes) :]
        weights = [1 if wide else 1 / (1 + i) for i in range(len(order))]
        while len(column) < count:
            dangling = random.random() > plan.matched
            column.append(others[count + 5] if dangling else random.choices(order, weights)[0])
        column = column[:_MAX_ROWS][:count]
        random.shuffle(column)
        if plan.nulls and place not in self.without_null:
            column = [None if random.random() < plan.nulls / 2 else v for v in column]
        return column

    def value(
        self, place: Place, plan: Plan, pools: Mapping[Place, list[Value]], random: Random
    ) -> Value:
        root = self.root[place]
        hits, near = self.hits[root], self.near[root]
        if plan.side and root in self.numeric and self.literals(root):
            return random.choice(pools[root])
        if hits and random.random() < plan.hit:
            return random.choice(hits)
        if near and random.random() < plan.near:
            return random.choice(near)
        if place not in self.without_null and random.random() < plan.nulls:
            return None
        return random.choice(pools[root])

    def made_dependent(self, name: str, shaped: Sequence[str], rows: Sequence[Row]) -> list[Row]:
        """Rows of one group get the texts of its first."""
        table = self.schema[name]
        grouped = [c for c in shaped if (name, c) in self.hints.grouped] or list(shaped)
        by = table.columns.index(grouped[0])
        kept = [
            c in shaped or (name, c) in self.hints.numeric or (name, c) in self.hints.hits
            for c in table.columns
        ]
        first: dict[Value, Row] = {}
        return [
            tuple(
                own if keep else other
                for own, other, keep in zip(row, first.setdefault(row[by], row), kept, strict=True)
            )
            for row in rows
        ]


def _is_lone(table: Table, joined: set[Place]) -> bool:
    keys = sum((table.name.lower(), c) in joined for c in table.columns)
    return keys == 1 and len(table.columns) > 1


def _roots(places: Sequence[Place], hints: Hints) -> dict[Place, Place]:
    """Each place's representative among those that are compared with one another."""
    root = {place: place for place in places}

    def find(place: Place) -> Place:
        while root[place] != place:
            place = root[place]
        return place

    for one, other in hints.alike:
        low, high = sorted((find(one), find(other)))
        root[high] = low
    return {place: find(place) for place in places}


@contextmanager
def filled(ddl: str, schema: Schema, rows: Rows) -> Iterator[sqlite3.Connection]:
    """A database with ``rows``, closed for writing."""
    with database(ddl) as connection:
        for name, table in schema.items():
            marks = ", ".join("?" * len(table.names))
            connection.executemany(f"INSERT INTO {_quote(table.name)} VALUES ({marks})", rows[name])
        close_for_writing(connection)
        yield connection
