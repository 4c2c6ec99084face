from __future__ import annotations

import gzip
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from dollyllama.evaluation.sql import grade, normalise
from dollyllama.evaluation.sqlite import executes

CONTEXT = (
    "CREATE TABLE head (name VARCHAR, age INTEGER, dept_id VARCHAR); CREATE TABLE dept (id STRING)"
)
REFERENCE = 'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit"'

SAME = [
    REFERENCE,
    REFERENCE + ";",
    REFERENCE + " ;\n;",
    f"  {REFERENCE}\n",
    'select count(*) from head where age > 56 and name = "De Wit"',
    'SELECT Count( * )\n  FROM Head\n WHERE AGE>56 AND name="De Wit"',
    "SELECT COUNT(*) FROM head WHERE age > 56 AND name = 'De Wit'",
    "SELECT COUNT(*) -- how many\nFROM head /* all */ WHERE age > 56 AND name = 'De Wit'",
    f"```sql\n{REFERENCE}\n```",
    f"Here it is:\n```SQLite\n{REFERENCE};\n```\nIt counts.",
    f"~~~\n{REFERENCE}\n~~~",
    f"```sql\n{REFERENCE}",  # cut off by the length limit
    f"```\n$ sqlite3 a.db\n```\n```sql\n{REFERENCE}\n```",
    f"{REFERENCE}\n```",  # the prompt opened it
    f"{REFERENCE};\n```\n",
    f"`{REFERENCE}`",
    f"```sql {REFERENCE}```",
    f"SQL: {REFERENCE}",
    f"{REFERENCE};\n\nThis counts the heads.",
]
DIFFERENT = [
    "",
    ";",
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "de wit"',  # a value keeps its case
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De  Wit"',  # and its spaces
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = " De Wit"',
    "SELECT COUNT(*) FROM head WHERE age > 56 AND name = De Wit",
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit',
    'SELECT COUNT(*) FROM head WHERE age > 5 6 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE age >= 56 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE age > 56.0 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE age > -56 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE name = "De Wit" AND age > 56',
    'SELECT COUNT(age) FROM head WHERE age > 56 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit"; DROP TABLE head',
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit";\n\nDROP TABLE head',
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit" LIMIT 1',
    'SELECT COUNT(*) FROM head WHERE age > 56 OR name = "De Wit"',
    'SELECT COUNT(*) FROM `head` WHERE age > 56 AND name = "De Wit"',
    'SELECT COUNT(*) FROM "head" WHERE age > 56 AND name = "De Wit"',
    'SELECT COUNT(*) FROM head WHERE age > 56 AND name = "De Wit" ### End',
    "The answer is " + REFERENCE,
    f"```sql\nSELECT 1\n```\nor\n```sql\n{REFERENCE}\n```",
]


@pytest.mark.parametrize("query", SAME)
def test_another_spelling_of_the_reference_is_exact(query: str) -> None:
    assert grade(query, REFERENCE, "")["exact"] == 1
    assert grade(REFERENCE, query, "")["exact"] == 1


@pytest.mark.parametrize("query", DIFFERENT)
def test_another_query_is_not_exact(query: str) -> None:
    assert grade(query, REFERENCE, "")["exact"] == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT 'it''s'", 'SELECT "it\'s"'),
        ("SELECT 'say \"hi\"'", 'SELECT "say ""hi"""'),
        ("SELECT 'a;'", "SELECT 'a;';"),
        ("SELECT '--no comment'", 'SELECT "--no comment"'),
        ("SELECT T1.a FROM b AS T1", "select t1 . A from B as t1"),
        ("SELECT Ä", "SELECT ä"),
    ],
)
def test_quotes_and_names_that_mean_the_same_are_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT 'it''s'", "SELECT 'its'"),
        ("SELECT 'a' 'b'", "SELECT 'a''b'"),
        ("SELECT '--x'", "SELECT ''"),
        ("SELECT a b", "SELECT ab"),
        ("SELECT 1.5", "SELECT 1 . 5"),
        ("SELECT a <= 1", "SELECT a < = 1"),
        ("SELECT a <> 1", "SELECT a != 1"),
        ("SELECT 'A'", "SELECT 'a'"),
        ("SELECT A", "SELECT 'a'"),
        ("SELECT 'a;'", "SELECT 'a'"),
        ("SELECT 1; SELECT 2", "SELECT 1 SELECT 2"),
    ],
)
def test_what_can_change_the_result_is_not_equal(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_an_empty_answer_is_not_exact_even_to_an_empty_reference() -> None:
    assert grade("", "", "") == {"exact": 0}
    assert grade(";", " ; ", "") == {"exact": 0}


# --- executing ----------------------------------------------------------------------------------

RUNS = [
    REFERENCE,
    "SELECT name FROM head",
    "SELECT T1.name FROM head AS T1 JOIN dept AS T2 ON T1.dept_id = T2.id GROUP BY T2.id",
    "SELECT name FROM head WHERE name LIKE '%a%' ORDER BY age DESC LIMIT 1",
    "SELECT name FROM head EXCEPT SELECT id FROM dept",
    "WITH old AS (SELECT * FROM head WHERE age > 60) SELECT COUNT(*) FROM old",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT i FROM n",
    "SELECT 1;",
    "SELECT AVG(age), ROUND(MAX(age), 2), UPPER(name) FROM head",
]
FAILS = [
    "",
    "  ",
    ";",
    "-- SELECT 1",
    "SELECT",
    "SELECT nothing FROM head",
    "SELECT name FROM heads",
    "SELECT name FROM head WHERE",
    "SELECT name head WHERE age > 1",
    "SELECT FOO(age) FROM head",
    "SELECT name FROM head WHERE age = ?",
    "SELECT name FROM head WHERE name = 'open",
    "SELECT 1; SELECT 2",
    "There are 3 heads.",
    "SELECT 1 \x00",
    "SELECT '\ud800'",
]
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
HOSTILE = [
    "DROP TABLE head",
    "DELETE FROM head",
    "INSERT INTO head VALUES ('a', 1, 'b')",
    "UPDATE head SET age = 1",
    "INSERT INTO head VALUES ('a', 1, 'b') RETURNING name",
    "UPDATE head SET age = 1 RETURNING name",
    "DELETE FROM head RETURNING name",
    "CREATE TABLE x (a INT)",
    "CREATE TEMP TABLE x AS SELECT 1",
    "ALTER TABLE head RENAME TO h",
    "PRAGMA table_info(head)",
    "SELECT * FROM pragma_database_list",
    "ATTACH DATABASE 'stolen.db' AS s",
    "ATTACH ':memory:' AS s",
    "DETACH main",
    "VACUUM INTO 'stolen.db'",
    "BEGIN",
    "SAVEPOINT a",
    "REINDEX",
    "ANALYZE",
    "SELECT load_extension('evil.so')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('stolen.db', 'x')",
    f"{ENDLESS} SELECT COUNT(*) FROM n",
    f"{ENDLESS} SELECT printf('%9000c', 'a') FROM n ORDER BY 1",
    "SELECT zeroblob(1000000000)",
    "SELECT randomblob(1000000000)",
    "SELECT hex(zeroblob(9000))",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT '" + "a" * 200_000 + "'",
]


@pytest.mark.parametrize("query", RUNS)
def test_a_right_query_executes(query: str) -> None:
    assert executes(query, CONTEXT)


@pytest.mark.parametrize("query", FAILS)
def test_a_wrong_query_does_not_execute(query: str) -> None:
    assert not executes(query, CONTEXT)


@pytest.mark.parametrize("query", HOSTILE)
def test_a_hostile_query_is_a_wrong_one_and_ends_soon(
    query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    assert not executes(query, CONTEXT)
    assert time.process_time() - begun < 2
    assert list(tmp_path.iterdir()) == []


def test_a_text_of_a_gigabyte_is_not_made() -> None:
    begun = time.process_time()
    executes("SELECT printf('%1000000000d', 1)", CONTEXT)
    assert time.process_time() - begun < 1


def test_a_pattern_that_backtracks_for_ever_does_not() -> None:
    text = "replace(replace('xxxxxxxxxx', 'x', 'yyyyyyyyyyyyyyyyyyyy'), 'y', 'aa')"
    pattern = "%a" * 60 + "%b"
    begun = time.process_time()
    assert executes(f"SELECT {text} LIKE '{pattern}', {text} GLOB '{'*a' * 60}b'", CONTEXT)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "context",
    [
        "ATTACH DATABASE 'stolen.db' AS s",
        "CREATE TABLE a (b INT); ATTACH DATABASE 'stolen.db' AS s",
        "CREATE VIRTUAL TABLE a USING fts5(b)",
        "PRAGMA journal_mode = DELETE",
        f"CREATE TABLE a AS {ENDLESS} SELECT i FROM n",
        "CREATE TABLE a (b",
    ],
)
def test_a_schema_that_is_hostile_or_damaged_runs_nothing(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not executes("SELECT 1", context)
    assert list(tmp_path.iterdir()) == []


def test_executing_is_scored_only_where_the_reference_executes() -> None:
    same = "SELECT COUNT(1) FROM head WHERE name = 'De Wit' AND 56 < age"
    assert grade(same, REFERENCE, CONTEXT) == {"exact": 0, "executes": 1, "execution": 1}
    wrong = {"exact": 0, "executes": 1, "execution": 0}
    assert grade("SELECT age FROM head", REFERENCE, CONTEXT) == wrong
    assert grade("SELECT no FROM head", REFERENCE, CONTEXT) == {**wrong, "executes": 0}
    assert grade(f"```sql\n{same}\n```", REFERENCE, CONTEXT)["execution"] == 1
    # Upstream: an answer that asks a column the schema lacks, a schema that SQLite does not take.
    assert grade("SELECT age FROM head", "SELECT no FROM head", CONTEXT) == {"exact": 0}
    numbered = "CREATE TABLE t (1880 VARCHAR)"
    assert grade("SELECT 1880 FROM t", "SELECT 1880 FROM t", numbered) == {"exact": 1}
    assert grade(REFERENCE, REFERENCE, "") == {"exact": 1}


def test_one_query_leaves_nothing_behind_for_the_next() -> None:
    assert not executes("INSERT INTO head VALUES ('a', 1, 'b')", CONTEXT)
    assert executes("SELECT * FROM head", CONTEXT)
    assert not executes("SELECT * FROM head", "CREATE TABLE other (a INT)")


def test_real_references_are_exact_to_themselves_and_nearly_all_execute(shared: Path) -> None:
    path = shared / "data" / "sql_create_context_sample.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    scores = [grade(row["answer"], row["answer"], row["context"]) for row in rows]
    assert all(score["exact"] == 1 for score in scores)
    assert all(score.get("executes", 1) == 1 for score in scores)
    assert all(score.get("execution", 1) == 1 for score in scores)
    assert sum("execution" in score for score in scores) > 0.9 * len(rows)
    # The next row's answer is another one, unless the two are equal as text.
    for row, other in pairwise(rows):
        same = row["answer"].lower() == other["answer"].lower()
        assert grade(other["answer"], row["answer"], "")["exact"] == float(same)
