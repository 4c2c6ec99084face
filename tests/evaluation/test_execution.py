from __future__ import annotations

import gzip
import json
import sqlite3
import time
from pathlib import Path

import pytest

from dollyllama.evaluation.databases import PLANS, Synthesiser, filled, mended, read_schema
from dollyllama.evaluation.execution import Reason, execution_match
from dollyllama.evaluation.hints import read_hints
from dollyllama.evaluation.sqlite import close_for_writing, database, executes, select

HEAD = "CREATE TABLE head (name VARCHAR, born VARCHAR, age INTEGER, dept_id VARCHAR)"
DEPT = "CREATE TABLE dept (dept_id VARCHAR, title VARCHAR, budget INTEGER)"
CONTEXT = f"{HEAD}; {DEPT}"

JOIN = "FROM head AS T1 JOIN dept AS T2 ON T1.dept_id = T2.dept_id"
EQUAL = [
    ("SELECT name FROM head", "select Name as x from HEAD;"),
    ("SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE 56 < age"),
    ("SELECT name FROM head WHERE age > 56", "SELECT h.name FROM head h WHERE NOT h.age <= 56"),
    (
        "SELECT name FROM head WHERE age BETWEEN 3 AND 9",
        "SELECT name FROM head WHERE age >= 3 AND age <= 9",
    ),
    ('SELECT name FROM head WHERE born = "Ohio"', "SELECT name FROM head WHERE born IN ('Ohio')"),
    (
        "SELECT name FROM head WHERE born = 'a' OR born = 'b'",
        "SELECT name FROM head WHERE born IN ('b', 'a')",
    ),
    ("SELECT COUNT(*) FROM head", "SELECT COUNT(1) FROM head"),
    ("SELECT COUNT(*) FROM head", "SELECT SUM(1) FROM head"),
    # What is called an id is no NULL.
    ("SELECT COUNT(*) FROM head", "SELECT COUNT(dept_id) FROM head"),
    ("SELECT AVG(age) FROM head", "SELECT SUM(age) * 1.0 / COUNT(age) FROM head"),
    ("SELECT DISTINCT born FROM head", "SELECT born FROM head GROUP BY born"),
    (
        f"SELECT T1.name {JOIN} WHERE T2.title = 'x'",
        "SELECT h.name FROM dept d JOIN head h ON d.dept_id = h.dept_id WHERE d.title = 'x'",
    ),
    (
        f"SELECT T1.name {JOIN}",
        "SELECT name FROM head, dept WHERE head.dept_id = dept.dept_id",
    ),
    (
        "SELECT name FROM head WHERE dept_id IN (SELECT dept_id FROM dept)",
        "SELECT name FROM head h WHERE EXISTS (SELECT 1 FROM dept d WHERE d.dept_id = h.dept_id)",
    ),
    (
        "SELECT name FROM head WHERE NOT dept_id IN (SELECT dept_id FROM dept)",
        (
            "SELECT h.name FROM head h LEFT JOIN dept d ON h.dept_id = d.dept_id "
            "WHERE d.dept_id IS NULL"
        ),
    ),
    ("SELECT name FROM head ORDER BY age", "SELECT name FROM head ORDER BY age ASC"),
    # Ties may come in any order, and a further key is one of them.
    ("SELECT name FROM head ORDER BY age", "SELECT name FROM head ORDER BY age, born DESC"),
    ("SELECT name, age FROM head ORDER BY 2 DESC", "SELECT name, age FROM head ORDER BY age DESC"),
    (
        "SELECT name FROM head ORDER BY age DESC LIMIT 1",
        "SELECT name FROM head ORDER BY age DESC, name LIMIT 1",
    ),
    (
        "SELECT born FROM head GROUP BY born ORDER BY COUNT(*) DESC LIMIT 1",
        (
            "SELECT born FROM (SELECT born, COUNT(*) AS n FROM head GROUP BY born) "
            "ORDER BY n DESC, born DESC LIMIT 1"
        ),
    ),
    # No order is asked for: any will do.
    ("SELECT name FROM head", "SELECT name FROM head ORDER BY age"),
    ("SELECT name FROM head LIMIT 3", "SELECT name FROM head ORDER BY age LIMIT 3"),
    # A bare column depends on how rows are stored where a group has several values of it.
    (
        f"SELECT T2.title, COUNT(*) {JOIN} GROUP BY T2.dept_id",
        (
            "SELECT d.title, COUNT(*) FROM dept d JOIN head h ON h.dept_id = d.dept_id "
            "GROUP BY h.dept_id"
        ),
    ),
    ("SELECT MAX(age) FROM head", "SELECT age FROM head ORDER BY age DESC LIMIT 1"),
    ("SELECT name FROM head WHERE age * 12 > 600", "SELECT name FROM head WHERE age > 600 / 12"),
    ("SELECT name FROM head WHERE age / 12 >= 50", "SELECT name FROM head WHERE age >= 600"),
    ("SELECT name FROM head WHERE 2 * age = 9 + 1", "SELECT name FROM head WHERE age = 5"),
    ("SELECT name FROM head WHERE ABS(age) = 9", "SELECT name FROM head WHERE age IN (9, -9)"),
    (
        "SELECT name FROM head WHERE strftime('%Y', born) = '1995'",
        "SELECT name FROM head WHERE strftime('%Y', born) BETWEEN '1995' AND '1995'",
    ),
    (
        "SELECT name FROM head WHERE LENGTH(name) BETWEEN 4 AND 5",
        "SELECT name FROM head WHERE LENGTH(name) IN (5, 4)",
    ),
    (
        "SELECT name FROM head WHERE substr(born, 1, 2) = 'Oh'",
        "SELECT name FROM head WHERE born GLOB 'Oh*'",
    ),
]
DIFFERENT = [
    ("SELECT name FROM head", "SELECT born FROM head"),
    ("SELECT name FROM head", "SELECT DISTINCT name FROM head"),
    ("SELECT name, age FROM head", "SELECT age, name FROM head"),
    ("SELECT name FROM head", "SELECT name, age FROM head"),
    ("SELECT name FROM head", "SELECT name FROM head LIMIT 1"),
    ("SELECT name FROM head", "SELECT name FROM head WHERE NOT age IS NULL"),
    ("SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age >= 56"),
    ("SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age > 57"),
    # Where some meet it, the largest does.
    ("SELECT MAX(age) FROM head", "SELECT MAX(age) FROM head WHERE age > 5"),
    (
        "SELECT name FROM head ORDER BY age LIMIT 3",
        "SELECT name FROM head WHERE age < 100 ORDER BY age LIMIT 3",
    ),
    ("SELECT name FROM head WHERE born = 'Ohio'", "SELECT name FROM head WHERE born = 'ohio'"),
    (
        "SELECT name FROM head WHERE born = 'Ohio'",
        "SELECT name FROM head WHERE born LIKE '%Ohio%'",
    ),
    (
        "SELECT name FROM head WHERE born LIKE '%Ohio%'",
        "SELECT name FROM head WHERE born LIKE 'Ohio%'",
    ),
    (
        "SELECT name FROM head WHERE age > 5 AND born = 'a'",
        "SELECT name FROM head WHERE age > 5 OR born = 'a'",
    ),
    ("SELECT COUNT(*) FROM head", "SELECT COUNT(age) FROM head"),
    ("SELECT COUNT(born) FROM head", "SELECT COUNT(DISTINCT born) FROM head"),
    ("SELECT SUM(age) FROM head", "SELECT AVG(age) FROM head"),
    ("SELECT MIN(age) FROM head", "SELECT MAX(age) FROM head"),
    (f"SELECT T1.name {JOIN}", "SELECT name FROM head"),
    (f"SELECT T1.name {JOIN}", f"SELECT T1.name {JOIN.replace('JOIN', 'LEFT JOIN')}"),
    (f"SELECT T1.name {JOIN}", f"SELECT DISTINCT T1.name {JOIN}"),
    ("SELECT name FROM head ORDER BY age", "SELECT name FROM head ORDER BY age DESC"),
    ("SELECT name FROM head ORDER BY age", "SELECT name FROM head"),
    ("SELECT name FROM head ORDER BY age LIMIT 2", "SELECT name FROM head ORDER BY age LIMIT 3"),
    ("SELECT name FROM head ORDER BY age LIMIT 1", "SELECT name FROM head LIMIT 1"),
    # With a tie at the top, one row is asked for.
    (
        "SELECT name FROM head ORDER BY age DESC LIMIT 1",
        "SELECT name FROM head WHERE age = (SELECT MAX(age) FROM head)",
    ),
    (
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) > 3",
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) > 4",
    ),
    (
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) = 30",
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) >= 30",
    ),
    (
        "SELECT name FROM head WHERE age = 1 INTERSECT SELECT name FROM head WHERE age = 2",
        "SELECT name FROM head WHERE age = 1 UNION SELECT name FROM head WHERE age = 2",
    ),
    (
        "SELECT title FROM dept EXCEPT SELECT T2.title " + JOIN,
        "SELECT title FROM dept",
    ),
    (
        "SELECT name FROM head WHERE age > (SELECT AVG(age) FROM head)",
        "SELECT name FROM head WHERE age > (SELECT MIN(age) FROM head)",
    ),
    ("SELECT name FROM head WHERE age = 5", "SELECT name FROM head WHERE dept_id = 5"),
    # Sums and functions of columns.
    ("SELECT name FROM head WHERE age * 12 > 600", "SELECT name FROM head WHERE age * 12 > 60"),
    ("SELECT name FROM head WHERE age * 12 > 600", "SELECT name FROM head WHERE age * 12 >= 600"),
    ("SELECT name FROM head WHERE age / 12 > 50", "SELECT name FROM head WHERE age / 12 > 40"),
    ("SELECT name FROM head WHERE age / 12 > 50", "SELECT name FROM head WHERE age / 12 >= 50"),
    ("SELECT name FROM head WHERE 900 - age > 50", "SELECT name FROM head WHERE 900 - age >= 50"),
    ("SELECT name FROM head WHERE age % 7 = 5", "SELECT name FROM head WHERE age % 7 = 6"),
    ("SELECT name FROM head WHERE age > 70 * 10", "SELECT name FROM head WHERE age >= 70 * 10"),
    (
        "SELECT title FROM dept JOIN head ON dept.dept_id = head.dept_id WHERE age + budget > 100",
        "SELECT title FROM dept JOIN head ON dept.dept_id = head.dept_id WHERE age + budget >= 100",
    ),
    (
        "SELECT title FROM dept JOIN head ON dept.dept_id = head.dept_id WHERE budget > age * 10",
        "SELECT title FROM dept JOIN head ON dept.dept_id = head.dept_id WHERE budget >= age * 10",
    ),
    ("SELECT name FROM head WHERE ABS(age) > 100", "SELECT name FROM head WHERE age > 100"),
    ("SELECT ABS(age) FROM head", "SELECT age FROM head"),
    ("SELECT name FROM head WHERE LENGTH(name) > 3", "SELECT name FROM head"),
    (
        "SELECT name FROM head WHERE LENGTH(name) > 30",
        "SELECT name FROM head WHERE LENGTH(name) >= 30",
    ),
    (
        "SELECT name FROM head WHERE LENGTH(name) = 4",
        "SELECT name FROM head WHERE LENGTH(name) = 5",
    ),
    (
        "SELECT name FROM head WHERE strftime('%Y', born) = '1995'",
        "SELECT name FROM head WHERE strftime('%Y', born) = '1996'",
    ),
    ("SELECT COUNT(*) FROM head WHERE strftime('%Y', born) = '1995'", "SELECT COUNT(*) FROM head"),
    (
        "SELECT name FROM head WHERE strftime('%m', born) = '05'",
        "SELECT name FROM head WHERE strftime('%d', born) = '05'",
    ),
    (
        "SELECT name FROM head WHERE strftime('%Y', born) > '1995'",
        "SELECT name FROM head WHERE strftime('%Y', born) >= '1995'",
    ),
    (
        "SELECT COUNT(*) FROM head GROUP BY strftime('%Y', born)",
        "SELECT COUNT(*) FROM head GROUP BY strftime('%m', born)",
    ),
    (
        "SELECT name FROM head WHERE CAST(strftime('%Y', born) AS INTEGER) > 1995",
        "SELECT name FROM head WHERE CAST(strftime('%Y', born) AS INTEGER) > 1994",
    ),
    (
        "SELECT name FROM head WHERE date(born) > '1995-05-01'",
        "SELECT name FROM head WHERE date(born) >= '1995-05-01'",
    ),
    (
        "SELECT name FROM head WHERE substr(born, 6, 2) = '05'",
        "SELECT name FROM head WHERE substr(born, 6, 2) = '06'",
    ),
    (
        "SELECT name FROM head WHERE substr(born, -4) = '1995'",
        "SELECT name FROM head WHERE substr(born, 1, 4) = '1995'",
    ),
    ("SELECT name FROM head WHERE UPPER(name) = 'BO'", "SELECT name FROM head WHERE name = 'BO'"),
    ("SELECT name FROM head WHERE TRIM(name) = 'Bo'", "SELECT name FROM head WHERE name = 'Bo'"),
    (
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) * 2 > 8",
        "SELECT born FROM head GROUP BY born HAVING COUNT(*) * 2 >= 8",
    ),
]


@pytest.mark.parametrize(("gold", "predicted"), EQUAL)
def test_what_means_the_same_matches_both_ways(gold: str, predicted: str) -> None:
    score = execution_match(CONTEXT, gold, predicted)
    assert (score.match, score.valid, score.reason) == (True, True, Reason.equal)
    assert score.gold_rows > 0


@pytest.mark.parametrize(("gold", "predicted"), DIFFERENT)
def test_what_differs_on_some_database_does_not_match(gold: str, predicted: str) -> None:
    score = execution_match(CONTEXT, gold, predicted)
    assert (score.match, score.valid, score.reason) == (False, True, Reason.differs)


@pytest.mark.parametrize("query", sorted({query for pair in EQUAL + DIFFERENT for query in pair}))
def test_each_query_matches_itself(query: str) -> None:
    assert execution_match(CONTEXT, query, query).match is True


# --- odd rows of the real data --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "gold", "predicted", "reason"),
    [
        # "week" is a column here, so the condition holds for every row that has one.
        (
            "CREATE TABLE t (opponent VARCHAR, week VARCHAR)",
            'SELECT opponent FROM t WHERE "week" = "week"',
            "SELECT opponent FROM t WHERE NOT week IS NULL",
            Reason.equal,
        ),
        (
            "CREATE TABLE t (opponent VARCHAR, week VARCHAR)",
            'SELECT opponent FROM t WHERE "week" = "week"',
            "SELECT opponent FROM t WHERE week = 'week'",
            Reason.differs,
        ),
        # A name in double quotes that is no column is text.
        (
            "CREATE TABLE t (opponent VARCHAR, week VARCHAR)",
            'SELECT opponent FROM t WHERE week = "bye"',
            "SELECT opponent FROM t WHERE week = 'bye'",
            Reason.equal,
        ),
        (
            "CREATE TABLE t (season VARCHAR)",
            "SELECT TV AS season FROM t",
            "SELECT season FROM t",
            Reason.gold_fails,
        ),
        (
            "CREATE TABLE t (Id VARCHAR)",
            'SELECT 1949 FROM t WHERE 1945 = "a"',
            "SELECT 1949 FROM t",
            Reason.gold_empty,
        ),
        (
            "CREATE TABLE t (1978 VARCHAR)",
            "SELECT 1978 FROM t",
            "SELECT 1978 FROM t",
            Reason.gold_fails,
        ),
        # From "13,575".
        (
            "CREATE TABLE t (a VARCHAR, b INTEGER)",
            "SELECT a FROM t WHERE b > 13 OFFSET 575",
            "SELECT a FROM t",
            Reason.gold_fails,
        ),
        # Numbers in a column of text are compared as numbers.
        (
            "CREATE TABLE t (a VARCHAR, draw VARCHAR)",
            "SELECT a FROM t WHERE draw > 9",
            "SELECT a FROM t WHERE draw >= 10",
            Reason.equal,
        ),
        (
            "CREATE TABLE t (a VARCHAR, year VARCHAR)",
            "SELECT a FROM t WHERE year = 2004",
            'SELECT a FROM t WHERE year = "2004"',
            Reason.equal,
        ),
        # The same table twice.
        (
            "CREATE TABLE Person (name VARCHAR, age INTEGER); CREATE TABLE person (age INTEGER)",
            "SELECT name FROM Person WHERE age = (SELECT MAX(age) FROM person)",
            "SELECT name FROM Person WHERE age = (SELECT MIN(age) FROM person)",
            Reason.differs,
        ),
        (
            "CREATE TABLE weather (zip VARCHAR, hum INTEGER); CREATE TABLE trip (zip VARCHAR)",
            (
                "SELECT zip FROM weather GROUP BY zip HAVING AVG(hum) < 70 "
                "INTERSECT SELECT zip FROM trip GROUP BY zip HAVING COUNT(*) >= 100"
            ),
            "SELECT zip FROM trip GROUP BY zip HAVING COUNT(*) >= 100",
            Reason.differs,
        ),
    ],
)
def test_odd_rows(context: str, gold: str, predicted: str, reason: Reason) -> None:
    score = execution_match(context, gold, predicted)
    assert score.reason == reason
    assert score.match == {Reason.equal: True, Reason.differs: False}.get(reason)


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("SELECT nothing FROM head", Reason.gold_fails),
        ("", Reason.gold_fails),
        ("DROP TABLE head", Reason.gold_fails),
        ("SELECT name FROM head WHERE age = 1 AND age = 2", Reason.gold_empty),
        ("SELECT MAX(age) FROM head WHERE 1 = 2", Reason.gold_empty),
    ],
)
def test_a_reference_that_tells_nothing_is_counted_and_not_scored(
    gold: str, reason: Reason
) -> None:
    score = execution_match(CONTEXT, gold, "SELECT name FROM head")
    assert (score.match, score.valid, score.reason) == (None, True, reason)


@pytest.mark.parametrize("context", ["", "CREATE TABLE head (", "PRAGMA user_version = 1"])
def test_a_schema_that_makes_no_tables_is_not_scored(context: str) -> None:
    score = execution_match(context, "SELECT name FROM head", "SELECT name FROM head")
    assert (score.match, score.valid, score.reason) == (None, False, Reason.gold_fails)


def test_only_simple_schemas_are_mended() -> None:
    assert mended("CREATE TABLE a (b INT, B TEXT); CREATE TABLE A (c INT)") == (
        "CREATE TABLE a (b INT, c INT)"
    )
    strange = "CREATE TABLE a (b INT PRIMARY KEY, c DECIMAL(3, 1)); CREATE TABLE A (d INT)"
    assert mended(strange) == strange


# --- hostile queries ------------------------------------------------------------------------------

GOLD = "SELECT name FROM head WHERE age > 5"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
LONG = "replace(replace('xxxxxxxxxx', 'x', 'yyyyyyyyyyyyyyyyyyyy'), 'y', 'aaaa')"
HOSTILE = [
    "",
    "There are three heads.",
    "SELECT name FROM heads",
    "SELECT name FROM head WHERE age > ?",
    "SELECT 1; SELECT 2",
    "SELECT '\ud800'",
    "DROP TABLE head",
    "DELETE FROM head RETURNING name",
    "PRAGMA table_info(head)",
    "SELECT * FROM pragma_database_list",
    "ATTACH DATABASE 'stolen.db' AS s",
    "VACUUM INTO 'stolen.db'",
    "SELECT load_extension('evil.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('stolen.db', 'x')",
    "SELECT name FROM head ORDER BY random()",
    "SELECT CURRENT_TIMESTAMP",
    "SELECT name FROM head WHERE born < date('now')",
    "SELECT name FROM head WHERE born < date()",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)",
    "SELECT printf('%1000000000d', 1)",
    "SELECT hex(name) FROM head",
    f"{ENDLESS} SELECT COUNT(*) FROM n",
    f"{ENDLESS} SELECT i FROM n",
    f"{ENDLESS} SELECT group_concat(i) FROM n",
    f"{ENDLESS} SELECT COUNT(*) FROM n WHERE {LONG} LIKE '{'%a' * 90}%b'",
    f"{ENDLESS} SELECT COUNT(*) FROM n WHERE {LONG} GLOB '{'*a' * 90}*b'",
    "SELECT name FROM head WHERE name LIKE '" + "%a" * 2000 + "'",
    "SELECT COUNT(*) FROM head a, head b, head c, head d, head e, head f, head g, head h, head i",
    "SELECT a.name FROM head a, head b, head c, head d, head e, head f",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT '" + "a" * 200_000 + "'",
]


@pytest.mark.parametrize("query", HOSTILE)
def test_a_hostile_query_is_a_wrong_answer_soon(
    query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    score = execution_match(CONTEXT, GOLD, query)
    assert score.match is False
    assert score.reason in (Reason.invalid, Reason.too_much, Reason.differs)
    assert time.process_time() - begun < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "literal", ["1e999", "9" * 40, "9" * 4400, "-1e300", "'" + "a" * 2000 + "'", "0x1F", "x'00'"]
)
def test_a_literal_that_fits_no_table_is_no_error(literal: str) -> None:
    predicted = f"SELECT name FROM head WHERE age > {literal}"
    assert execution_match(CONTEXT, GOLD, predicted).match is False
    assert execution_match(CONTEXT, predicted, "SELECT born FROM dept").match is not True


def test_a_hostile_reference_is_not_scored() -> None:
    for query in (f"{ENDLESS} SELECT i FROM n", "ATTACH ':memory:' AS s"):
        assert execution_match(CONTEXT, query, GOLD).match is None


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Ohio", "%hi%"),
        ("Ohio", "ohio"),
        ("Ohio", "_hi_"),
        ("Ohio", "%o_io"),
        ("Ohio", "Oh"),
        ("Ohio", "%"),
        ("", "%"),
        ("", "_"),
        ("abab", "%ab"),
        ("ababx", "%ab"),
        ("a.c", "a.c"),
        ("abc", "a.c"),
        ("a\nc", "a%c"),
        ("Äb", "äb"),
        ("aXbXc", "a%b%c"),
        ("acb", "a%b%c"),
        ("12", "1%"),
    ],
)
def test_patterns_match_as_in_sqlite(text: str, pattern: str) -> None:
    plain = sqlite3.connect(":memory:").execute("SELECT ? LIKE ?", (text, pattern)).fetchall()
    with database("CREATE TABLE a (b TEXT)") as connection:
        close_for_writing(connection)
        assert select(connection, f"SELECT '{text}' LIKE '{pattern}'") == plain
    glob = pattern.replace("%", "*").replace("_", "?")
    plain = sqlite3.connect(":memory:").execute("SELECT ? GLOB ?", (text, glob)).fetchall()
    with database("CREATE TABLE a (b TEXT)") as connection:
        close_for_writing(connection)
        assert select(connection, f"SELECT '{text}' GLOB '{glob}'") == plain


def test_an_escaped_wildcard_is_a_character() -> None:
    with database("CREATE TABLE a (b TEXT)") as connection:
        close_for_writing(connection)
        query = "SELECT '5%' LIKE '5!%' ESCAPE '!', '55' LIKE '5!%' ESCAPE '!', NULL LIKE 'a'"
        assert select(connection, query) == [(1, 0, None)]


# --- the databases --------------------------------------------------------------------------------


def test_the_same_number_is_the_same_database_and_the_plans_differ() -> None:
    schema = read_schema(CONTEXT)
    columns = {name: table.columns for name, table in schema.items()}
    hints = read_hints([f"SELECT T1.name {JOIN} WHERE T1.age > 5"], columns)
    made = [Synthesiser(schema, hints).rows(number) for number in range(len(PLANS))]
    again = [Synthesiser(schema, hints).rows(number) for number in range(len(PLANS))]
    assert made == again
    assert len({repr(rows) for rows in made}) == len(PLANS)


def test_rows_stand_on_both_sides_of_a_border_and_of_a_join() -> None:
    schema = read_schema(CONTEXT)
    columns = {name: table.columns for name, table in schema.items()}
    synthesiser = Synthesiser(
        schema, read_hints([f"SELECT T1.name {JOIN} WHERE T1.age > 56"], columns)
    )
    ages, matched, alone = set(), 0, 0
    for number in range(len(PLANS)):
        with filled(synthesiser.ddl, schema, synthesiser.rows(number)) as connection:
            ages |= {row[0] for row in select(connection, "SELECT age FROM head")}
            matched += len(select(connection, f"SELECT 1 {JOIN}"))
            alone += len(
                select(connection, "SELECT dept_id FROM dept EXCEPT SELECT dept_id FROM head")
            )
    assert {None, 55, 56, 57} <= ages
    assert matched > 0
    assert alone > 0


def test_a_query_that_cannot_be_parsed_still_lends_its_literals() -> None:
    hints = read_hints(["SELEC name WHERE age > 56 AND born = 'Ohio'"], {"head": ["age", "born"]})
    assert {55, 56, 57, "Ohio"} <= set(hints.near["head", "age"])


def test_real_references_match_themselves_and_few_are_empty(shared: Path) -> None:
    path = shared / "data" / "sql_create_context_sample.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:200]
    scores = [execution_match(row["context"], row["answer"], row["answer"]) for row in rows]
    assert all(score.match is not False for score in scores)
    assert sum(score.reason == Reason.gold_empty for score in scores) < 0.03 * len(rows)
    assert [executes(row["answer"], mended(row["context"])) for row in rows] == [
        score.valid for score in scores
    ]
