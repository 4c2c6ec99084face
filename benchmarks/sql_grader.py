"""Does execution match tell queries apart, and let equivalent ones pass?

    python -m benchmarks.sql_grader --rows 1000 [--data PATH] [--databases 300] [--missed FILE]

Half of the rows are on tables with names (Spider), half on numbered ones (WikiSQL), drawn by their
digest. Each reference is changed in each way that it offers. A change is real when the two queries
differ on one of several hundred random databases, filled by code that shares nothing with the
grader's. An order counts, and a database on which the reference depends on how its rows are
stored does not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError
from tqdm import tqdm

from dollyllama.evaluation.databases import mended
from dollyllama.evaluation.execution import Reason, execution_match

DATA = Path(__file__).parents[2] / "shared" / "data" / "sql_create_context.jsonl.gz"
Variant = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    context: str
    answer: str


@dataclass(slots=True)
class Tally:
    changes: Counter[str] = field(default_factory=Counter)
    real: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    stricter: Counter[str] = field(default_factory=Counter)
    rewrites: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    graded: int = 0
    seconds: float = 0
    missed: list[dict[str, str]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--databases", type=int, default=300, help="random ones for each reference")
    parser.add_argument("--missed", type=Path, help="where to write what the grader got wrong")
    options = parser.parse_args()
    if not options.data.is_file():
        parser.error(f"there is no {options.data}; name sql_create_context.jsonl.gz with --data")
    tally = Tally()
    for row in tqdm(sample(options.data, options.rows), desc="references", disable=None):
        try_row(row, tally, options.databases)
    show(tally)
    if options.missed:
        lines = (json.dumps(each) + "\n" for each in tally.missed)
        options.missed.write_text("".join(lines), encoding="utf-8")


def sample(path: Path, count: int) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [Row(row["context"], row["answer"]) for row in map(json.loads, file)]
    rows = sorted(set(rows), key=lambda row: sha256(repr(row).encode()).digest())
    numbered = re.compile(r"\bFROM table_", re.IGNORECASE)
    of_wikisql = [row for row in rows if numbered.search(row.answer)]
    of_spider = [row for row in rows if not numbered.search(row.answer)]
    half = min(count // 2, len(of_spider))
    return of_spider[:half] + of_wikisql[: count - half]


def try_row(row: Row, tally: Tally, databases: int) -> None:
    itself = grade(row, row.answer, tally)
    tally.reasons[itself.reason] += 1
    if itself.match is None:
        return
    row = Row(mended(row.context), row.answer)
    if not itself.match:
        tally.missed.append(asdict(row, "itself", row.answer))
    try:
        tree = parse_one(row.answer, read="sqlite")
    except SqlglotError:
        return
    random = Random(row.answer)
    changed = [(kind, query) for kind, query in changes(tree, row, random) if query != row.answer]
    different = Oracle(row, random).differing([query for _, query in changed], databases)
    for kind, query in changed:
        score = grade(row, query, tally)
        tally.changes[kind] += 1
        if query in different:
            tally.real[kind] += 1
            tally.found[kind] += score.match is False
            if score.match is not False:
                tally.missed.append(asdict(row, f"change: {kind}", query))
        elif score.match is False:
            tally.stricter[kind] += 1
            tally.missed.append(asdict(row, f"stricter: {kind}", query))
    for kind, query in rewrites(tree, row):
        score = grade(row, query, tally)
        tally.rewrites[kind] += 1
        tally.passed[kind] += score.match is True
        if score.match is not True:
            tally.missed.append(asdict(row, f"rewrite: {kind} ({score.reason})", query))


def grade(row: Row, query: str, tally: Tally) -> Any:
    begun = time.process_time()
    score = execution_match(row.context, row.answer, query)
    tally.seconds += time.process_time() - begun
    tally.graded += 1
    return score


def asdict(row: Row, kind: str, query: str) -> dict[str, str]:
    return {"kind": kind, "context": row.context, "gold": row.answer, "query": query}


def show(tally: Tally) -> None:
    def table(title: str, total: Counter[str], good: Counter[str], *, more: bool) -> None:
        print(f"\n{title}")
        for kind in [*sorted(total), "all"]:
            n = total.total() if kind == "all" else total[kind]
            k = good.total() if kind == "all" else good[kind]
            line = f"  {kind:<24}{n:>7}{k:>7}{k / max(n, 1):>9.1%}"
            if more:
                made = tally.changes.total() if kind == "all" else tally.changes[kind]
                extra = tally.stricter.total() if kind == "all" else tally.stricter[kind]
                line += f"{made:>9}{extra:>9}"
            print(line)

    head = "real, found, share | changes made, told apart by the grader alone"
    table(f"changes: {head}", tally.real, tally.found, more=True)
    table("rewrites: made, passed, share", tally.rewrites, tally.passed, more=False)
    rows = tally.reasons.total()
    print("\nreferences against themselves")
    for reason in Reason:
        count = tally.reasons[reason]
        print(f"  {reason:<24}{count:>7}{count / max(rows, 1):>9.1%}")
    spent = 1000 * tally.seconds / max(tally.graded, 1)
    print(f"\n{tally.graded} gradings, {spent:.1f} ms each on one core")


# --- changes --------------------------------------------------------------------------------------

_OPERATORS: dict[type[exp.Expression], tuple[type[exp.Expression], ...]] = {
    exp.EQ: (exp.NEQ, exp.GT),
    exp.NEQ: (exp.EQ,),
    exp.GT: (exp.GTE, exp.LT),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LT: (exp.LTE, exp.GT),
    exp.LTE: (exp.LT, exp.GTE),
}
_AGGREGATES = (exp.Min, exp.Max, exp.Sum, exp.Avg)


def changes(tree: exp.Expr, row: Row, random: Random) -> Iterator[Variant]:
    """One change of each kind that the query offers."""
    kinds: list[tuple[str, Callable[[exp.Expr, Random, Row], list[exp.Expr]]]] = [
        ("operator", change_operator),
        ("operator border", change_border),
        ("column", change_column),
        ("output column", change_output),
        ("aggregate", change_aggregate),
        ("literal", change_literal),
        ("literal case", change_case),
        ("join", change_join),
        ("join kind", change_join_kind),
        ("distinct", change_distinct),
        ("limit", change_limit),
        ("order", change_order),
        ("order dropped", drop_order),
        ("and/or", change_connective),
        ("condition dropped", drop_condition),
        ("condition added", add_condition),
        ("not", change_not),
        ("set operation", change_set),
        ("group by", change_group),
        ("having dropped", drop_having),
    ]
    for kind, change in kinds:
        made = change(tree, random, row)
        if made:
            yield kind, random.choice(made).sql(dialect="sqlite")


def edited(tree: exp.Expr, kinds: Any, edit: Callable[[Any], exp.Expr | None]) -> list[exp.Expr]:
    """Copies of ``tree``, each with one node of ``kinds`` edited."""
    made = []
    for place, _ in enumerate(tree.find_all(*kinds)):
        copy = tree.copy()
        node = list(copy.find_all(*kinds))[place]
        new = edit(node)
        if new is not None:
            if new is not node:
                if node is copy:
                    copy = new
                else:
                    node.replace(new)
            made.append(copy)
    return made


def change_operator(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    return edited(
        tree,
        (exp.EQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NEQ),
        lambda node: (
            None
            if node.find_ancestor(exp.Join)
            else _OPERATORS[type(node)][-1](this=node.left.copy(), expression=node.right.copy())
        ),
    )


def change_border(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    return edited(
        tree,
        (exp.GT, exp.GTE, exp.LT, exp.LTE),
        lambda node: _OPERATORS[type(node)][0](this=node.left.copy(), expression=node.right.copy()),
    )


def change_column(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    columns = tree.find_all(exp.Column)
    names = sorted({column.name for column in columns if not column_is_text(column, row)})

    def edit(node: exp.Column) -> exp.Expr | None:
        others = [n for n in names if n.lower() != node.name.lower()]
        if not others or column_is_text(node, row):
            return None
        return exp.column(random.choice(others), table=node.table or None)

    return [copy for copy in edited(tree, (exp.Column,), edit) if runs(copy, row)]


def column_is_text(node: exp.Column, row: Row) -> bool:
    return bool(node.this.args.get("quoted")) and node.name.lower() not in row.context.lower()


def change_output(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    made: list[exp.Expr] = []
    if isinstance(tree, exp.Select) and len(tree.expressions) > 1:
        copy = tree.copy()
        copy.set("expressions", copy.expressions[::-1])
        made.append(copy)
        copy = tree.copy()
        copy.set("expressions", copy.expressions[:-1])
        made.append(copy)
    return made


def change_aggregate(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Expr) -> exp.Expr | None:
        if isinstance(node, exp.Count):
            distinct = isinstance(node.this, exp.Distinct)
            if isinstance(node.this, exp.Star):
                return None
            inner = node.this.expressions[0] if distinct else node.this
            return exp.Count(
                this=inner.copy() if distinct else exp.Distinct(expressions=[inner.copy()])
            )
        other = random.choice([a for a in _AGGREGATES if not isinstance(node, a)])
        return other(this=node.this.copy())

    return edited(tree, (*_AGGREGATES, exp.Count), edit)


def change_literal(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Expr) -> exp.Expr | None:
        if node.find_ancestor(exp.Limit, exp.Offset):
            return None
        if isinstance(node, exp.Literal) and not node.is_string:
            return exp.Literal.number(
                str(float(node.name) + 1) if "." in node.name else str(int(node.name) + 1)
            )
        if isinstance(node, exp.Literal):
            return exp.Literal.string(node.name + "s")
        if isinstance(node, exp.Column) and column_is_text(node, row):
            return exp.Literal.string(node.name + "s")
        return None

    return edited(tree, (exp.Literal, exp.Column), edit)


def change_case(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Expr) -> exp.Expr | None:
        text = isinstance(node, exp.Column) and column_is_text(node, row)
        text = text or (isinstance(node, exp.Literal) and node.is_string)
        if not text or node.name.swapcase() == node.name:
            return None
        return exp.Literal.string(node.name.swapcase())

    return edited(tree, (exp.Literal, exp.Column), edit)


def change_join(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Join) -> exp.Expr | None:
        on = node.args.get("on")
        if not isinstance(on, exp.EQ):
            return None
        node.set("on", exp.NEQ(this=on.left.copy(), expression=on.right.copy()))
        return node

    return edited(tree, (exp.Join,), edit)


def change_join_kind(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Join) -> exp.Expr | None:
        node.set("side", None if node.side else "LEFT")
        return node

    return edited(tree, (exp.Join,), edit)


def change_distinct(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    if not isinstance(tree, exp.Select):
        return []
    copy = tree.copy()
    copy.set("distinct", None if copy.args.get("distinct") else exp.Distinct())
    return [copy]


def change_limit(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Limit) -> exp.Expr | None:
        node.set("expression", exp.Literal.number(int(node.expression.name) + 1))
        return node

    return edited(tree, (exp.Limit,), edit)


def change_order(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    def edit(node: exp.Ordered) -> exp.Expr | None:
        node.set("desc", not node.args.get("desc"))
        node.set("nulls_first", None)
        return node

    return edited(tree, (exp.Ordered,), edit)


def drop_order(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    copy = tree.copy()
    if not copy.args.get("order"):
        return []
    copy.set("order", None)
    return [copy]


def change_connective(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    return edited(
        tree,
        (exp.And, exp.Or),
        lambda node: (exp.Or if isinstance(node, exp.And) else exp.And)(
            this=node.left.copy(), expression=node.right.copy()
        ),
    )


def drop_condition(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    made = edited(
        tree, (exp.And, exp.Or), lambda node: random.choice([node.left, node.right]).copy()
    )
    for place, _ in enumerate(tree.find_all(exp.Where)):
        copy = tree.copy()
        list(copy.find_all(exp.Where))[place].pop()
        made.append(copy)
    return made


def add_condition(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    """A number that one of the query's columns must be above or below, beside what it asks for."""
    found = []
    for column in tree.find_all(exp.Column):
        if re.search(rf"\b{re.escape(column.name)}\s+(?:INT|REAL|NUM)", row.context, re.IGNORECASE):
            compare = random.choice((exp.GT, exp.LT))
            number = exp.Literal.number(random.choice((0, 5, 100)))
            copy = tree.copy()
            select = copy.find(exp.Select)
            if select is not None and column.find_ancestor(exp.Select) is tree.find(exp.Select):
                select.where(compare(this=column.copy(), expression=number), copy=False)
                found.append(copy)
    return found


def change_not(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    return edited(
        tree,
        (exp.In, exp.Like, exp.Between),
        lambda node: None if isinstance(node.parent, exp.Not) else exp.Not(this=node.copy()),
    ) + edited(
        tree,
        (exp.Not,),
        lambda node: node.this.copy() if isinstance(node.this, exp.In | exp.Like) else None,
    )


def change_set(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    if not isinstance(tree, exp.SetOperation):
        return []
    return [
        kind(this=tree.left.copy(), expression=tree.right.copy(), distinct=True)
        for kind in (exp.Union, exp.Except, exp.Intersect)
        if not isinstance(tree, kind)
    ]


def change_group(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    made: list[exp.Expr] = []
    for place, _ in enumerate(tree.find_all(exp.Group)):
        copy = tree.copy()
        group = list(copy.find_all(exp.Group))[place]
        select = group.parent
        group.pop()
        if select is not None and not select.args.get("having") and runs(copy, row):
            made.append(copy)
    if isinstance(tree, exp.Select) and not tree.args.get("group") and tree.find(exp.AggFunc):
        made += [
            tree.copy().group_by(column.copy())
            for column in tree.find_all(exp.Column)
            if not column_is_text(column, row) and column.find_ancestor(exp.Select) is tree
        ]
    return [copy for copy in made if runs(copy, row)]


def drop_having(tree: exp.Expr, random: Random, row: Row) -> list[exp.Expr]:
    made = []
    for place, _ in enumerate(tree.find_all(exp.Having)):
        copy = tree.copy()
        list(copy.find_all(exp.Having))[place].pop()
        made.append(copy)
    return made


def runs(tree: exp.Expr, row: Row) -> bool:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(row.context)
        connection.execute(tree.sql(dialect="sqlite"))
    except sqlite3.Error:
        return False
    finally:
        connection.close()
    return True


# --- rewrites -------------------------------------------------------------------------------------


def rewrites(tree: exp.Expr, row: Row) -> Iterator[Variant]:
    """The query written in other ways that mean the same."""
    sql = tree.sql(dialect="sqlite")
    made: dict[str, list[exp.Expr]] = defaultdict(list)
    yield "case", re.sub(r"""("[^"]*"|'[^']*')|(\w+)""", lambda m: m[1] or m[2].lower(), row.answer)
    quoted = '"' in row.answer or "'" in row.answer
    yield "white space", row.answer + " ;" if quoted else row.answer.replace(" ", "\n ")
    copy = tree.copy()
    for table in copy.find_all(exp.Table):
        if re.fullmatch(r"[Tt]\d", table.alias):
            name = exp.to_identifier("other_" + table.alias)
            table.set("alias", exp.TableAlias(this=name))
    for column in copy.find_all(exp.Column):
        if re.fullmatch(r"[Tt]\d", column.table):
            column.set("table", exp.to_identifier("other_" + column.table))
    made["aliases"].append(copy)
    swap = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE}
    made["a < b to b > a"] += edited(
        tree,
        tuple(swap),
        lambda n: swap[type(n)](this=n.right.copy(), expression=n.left.copy()),
    )
    made["a = b to b = a"] += edited(
        tree, (exp.EQ,), lambda n: exp.EQ(this=n.right.copy(), expression=n.left.copy())
    )
    made["conditions swapped"] += edited(
        tree,
        (exp.And, exp.Or),
        lambda n: type(n)(this=exp.paren(n.right.copy()), expression=exp.paren(n.left.copy())),
    )
    made["between"] += edited(
        tree,
        (exp.Between,),
        lambda n: exp.paren(
            exp.and_(
                exp.GTE(this=n.this.copy(), expression=n.args["low"].copy()),
                exp.LTE(this=n.this.copy(), expression=n.args["high"].copy()),
            )
        ),
    )
    made["in to or"] += edited(
        tree,
        (exp.In,),
        lambda n: (
            exp.paren(
                exp.or_(*(exp.EQ(this=n.this.copy(), expression=e.copy()) for e in n.expressions))
            )
            if n.expressions
            else None
        ),
    )
    made["= to in"] += edited(
        tree,
        (exp.EQ,),
        lambda n: (
            exp.In(this=n.left.copy(), expressions=[n.right.copy()])
            if isinstance(n.right, exp.Literal)
            else None
        ),
    )
    made["not not"] += edited(
        tree,
        (exp.EQ,),
        lambda n: (
            exp.Not(this=exp.paren(exp.NEQ(this=n.left.copy(), expression=n.right.copy())))
            if n.find_ancestor(exp.Where)
            else None
        ),
    )
    made["count(*) to count(1)"] += edited(
        tree,
        (exp.Count,),
        lambda n: exp.Count(this=exp.Literal.number(1)) if isinstance(n.this, exp.Star) else None,
    )
    if isinstance(tree, exp.Select) and not any(e.is_star for e in tree.expressions):
        joins = tree.args.get("joins") or []
        source = tree.args.get("from_") or tree.args.get("from")
        if len(joins) == 1 and joins[0].args.get("on") and not joins[0].side:
            copy = tree.copy()
            first, join = copy.find(exp.From), copy.args["joins"][0]
            if first is not None:
                one, other = first.this.copy(), join.this.copy()
                first.set("this", other)
                join.set("this", one)
            made["join order"].append(copy)
            copy = tree.copy()
            condition = copy.args["joins"][0].args["on"].copy()
            copy.args["joins"][0].set("on", None)
            copy.args["joins"][0].set("kind", "CROSS")
            made["on to where"].append(copy.where(condition))
        if not joins and source and isinstance(source.this, exp.Table) and not source.this.alias:
            copy = tree.copy()
            from_name = source.this.name
            if not copy.find(exp.Subquery, exp.In, exp.Exists):
                for column in copy.find_all(exp.Column):
                    if not column.table and not column_is_text(column, row):
                        column.set("table", exp.to_identifier(from_name))
                if runs(copy, row):
                    made["qualified"].append(copy)
        if not tree.args.get("order"):
            names = [f"c{place}" for place, _ in enumerate(tree.expressions)]
            copy = tree.copy()
            copy.set(
                "expressions",
                [exp.alias_(e.unalias(), n) for e, n in zip(copy.expressions, names, strict=True)],
            )
            made["output names"].append(copy)
            made["wrapped"].append(exp.select(*names).from_(copy.subquery("inner_query")))
    for kind, trees in sorted(made.items()):
        for query in dict.fromkeys(t.sql(dialect="sqlite") for t in trees[:2]):
            if query != sql:
                yield kind, query
    if "!=" in row.answer or "<>" in row.answer:
        signs = ("<>", "!=") if "<>" in row.answer else ("!=", "<>")
        yield "<> to !=", row.answer.replace(*signs)
    if '"' in row.answer and "'" not in row.answer:
        yield "quotes", row.answer.replace('"', "'")


# --- the oracle -----------------------------------------------------------------------------------


class Oracle:
    """Random databases for one reference."""

    def __init__(self, row: Row, random: Random) -> None:
        self.row, self.random = row, random
        with sqlite3.connect(":memory:") as connection:
            connection.executescript(row.context)
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            self.tables = {
                name: connection.execute(f'PRAGMA table_info("{name}")').fetchall()
                for (name,) in names.fetchall()
            }

    def differing(self, queries: Sequence[str], databases: int) -> set[str]:
        """Those of ``queries`` that return something else than the reference somewhere."""
        found: set[str] = set()
        ordered = bool(re.search(r"ORDER BY(?![^(]*\))", self.row.answer, re.IGNORECASE))
        literals = self.literals([self.row.answer, *queries])
        for number in range(databases):
            left = [query for query in queries if query not in found]
            if not left:
                break
            rows = {name: self.rows(info, literals, number) for name, info in self.tables.items()}
            one = self.results([self.row.answer, *left], rows, ordered)
            if one[0] is None:
                continue
            other = self.results(
                [self.row.answer, *left], {n: lines[::-1] for n, lines in rows.items()}, ordered
            )
            if one[0] != other[0]:
                continue
            found.update(
                query
                for query, a, b in zip(left, one[1:], other[1:], strict=True)
                if a != one[0] and b != one[0]
            )
        return found

    def literals(self, queries: Sequence[str]) -> list[Any]:
        values: list[Any] = []
        for query in queries:
            for text in re.findall(r"'([^']*)'|\"([^\"]*)\"", query):
                value = (text[0] or text[1]).replace("%", self.random.choice(["", "q"]))
                values += [value] if value else []
            for number in re.findall(r"(?<![\w.'\"])(\d+)(?![\w.'\"])", query):
                values += [int(number), int(number) + 1, int(number) - 1]
        return sorted(set(values), key=repr)

    def rows(self, info: Sequence[Any], literals: Sequence[Any], number: int) -> list[Any]:
        random = self.random
        count = random.choice([1, 2, 3, 5, 8, 12])
        span = random.choice([2, 3, 6, 30])
        share = random.choice([0.2, 0.5, 0.8]) if literals else 0
        empty = random.choice([0, 0, 0.1])
        texts = [value for value in literals if isinstance(value, str)]
        numbers = [value for value in literals if not isinstance(value, str)]
        columns = []
        for column in info:
            is_key = column[1].lower().endswith("id")
            pool = numbers if "INT" in column[2].upper() else literals
            used = self.near_literals(column[1], texts if texts else literals)
            column_values: list[Any] = []
            for _ in range(count):
                if random.random() < empty and not is_key:
                    column_values.append(None)
                elif pool and random.random() < share:
                    column_values.append(random.choice(used or pool))
                else:
                    column_values.append(random.randrange(1, span + 1))
            if is_key and random.random() < 0.4:
                column_values = random.sample(range(1, count + 3), count)
            columns.append(column_values)
        return list(zip(*columns, strict=True))

    def near_literals(self, column: str, texts: Sequence[Any]) -> list[Any]:
        """The literals that stand right behind the column's name."""
        pattern = rf"\b{re.escape(column)}\b\s*(?:=|<|>|<=|>=|<>|LIKE)\s*[\"']?([^\"'()]+)"
        found = re.findall(pattern, self.row.answer, re.IGNORECASE)
        return [t for t in texts if any(str(t) == f.replace("%", "") for f in found)]

    def results(
        self, queries: Sequence[str], rows: dict[str, list[Any]], ordered: bool
    ) -> list[Any]:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.executescript(self.row.context)
        for name, lines in rows.items():
            marks = ", ".join("?" * len(lines[0]))
            connection.executemany(f'INSERT INTO "{name}" VALUES ({marks})', lines)
        connection.set_progress_handler(lambda: True, 300_000)
        made: list[Any] = []
        for query in queries:
            result = None
            with suppress(sqlite3.Error):
                lines = [
                    tuple(f"{v:.7g}" if isinstance(v, int | float) else v for v in line)
                    for line in connection.execute(query)
                ]
                result = lines if ordered else sorted(lines, key=repr)
            made.append(result)
        connection.close()
        return made


if __name__ == "__main__":
    main()
