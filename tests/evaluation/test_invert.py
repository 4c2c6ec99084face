"""What expressions are undone to, held against SQLite."""

from __future__ import annotations

import sqlite3
from random import Random

import pytest

from dollyllama.evaluation.hints import read_hints
from dollyllama.evaluation.invert import some_day

SUMS = [
    "a + 7 = 100",
    "7 + a = 100",
    "a - 7 = 100",
    "7 - a = 100",
    "a * 12 = 600",
    "12 * a > 601",
    "a * 1.5 = 600",
    "a / 12 = 50",
    "600 / a = 50",
    "a % 12 = 5",
    "-a = 5",
    "ABS(a) = 5",
    "(a + 1) * 3 - 2 = 10",
    "100 < a * 2 + 5",
    "a * 12 BETWEEN 600 AND 601",
    "a / 2 IN (4, 5)",
    "ROUND(a * 2) = 8",
    "CAST(a AS INTEGER) + 1 = 3",
    "a > 5 * 100 - 1",
]
TEXTS = [
    "LENGTH(a) = 4",
    "LENGTH(a) > 30",
    "LENGTH(a) + 1 = 40",
    "LOWER(a) = 'bo'",
    "UPPER(a) = 'BO'",
    "TRIM(a) = 'Bo'",
    "LENGTH(TRIM(a)) = 9",
    "substr(a, 1, 1) = 'B'",
    "substr(a, 6, 2) = '05'",
    "substr(a, -4) = '1995'",
    "substr(a, -4, 2) = 'xy'",
    "substr(a, 12) = 'Bo'",
    "UPPER(substr(a, 2)) = 'BO'",
    "strftime('%Y', a) = '1995'",
    "strftime('%Y', a) > '2031'",
    "strftime('%m', a) = '02'",
    "strftime('%d', a) = '31'",
    "strftime('%Y-%m', a) = '1995-02'",
    "strftime('%H:%M', a) = '23:59'",
    "CAST(strftime('%Y', a) AS INTEGER) < 1800",
    "date(a) = '1995-05-31'",
    "date(a) < '1995'",
]


@pytest.mark.parametrize("condition", SUMS + TEXTS)
def test_some_hint_meets_the_condition_and_some_does_not(condition: str) -> None:
    hints = read_hints([f"SELECT a FROM t WHERE {condition}"], {"t": ("a",)})
    connection = sqlite3.connect(":memory:")
    kind = "NUMERIC" if condition in SUMS else "TEXT"
    connection.execute(f"CREATE TABLE t (a {kind})")
    for value in hints.hits["t", "a"]:
        connection.execute("INSERT INTO t VALUES (?)", (value,))
    (met,) = connection.execute(f"SELECT COUNT(*) FROM t WHERE {condition}").fetchone()
    for value in hints.near["t", "a"]:
        connection.execute("INSERT INTO t VALUES (?)", (value,))
    (missed,) = connection.execute(f"SELECT COUNT(*) FROM t WHERE NOT {condition}").fetchone()
    assert met > 0
    assert missed > 0
    assert (("t", "a") in hints.numeric) == (condition in SUMS)


@pytest.mark.parametrize(
    "condition",
    [
        *("a * 0 = 5", "a / 0 = 5", "a % 2 = 9", "LENGTH(a) = -1", "LENGTH(a) = 1e9", "0 / a = 0"),
        *("strftime('%Y', a) = 'x'", "substr(a, 1, 2) = 'long'", "substr(a, 0) = 'x'", "-a = 'x'"),
        *("a * 1e300 = 1e300", "date(a) = 'x'", "strftime('%m-%d', a) = '02-29'", "a + a = 4"),
        *("date(a) = '9999-12-31'", "strftime('%W', a) = '09'", "substr(a, b, c) = 'x'"),
        *("strftime('%Y-%m', a) = '9999-12'", "strftime('x', a) = 'x'", "a = -a"),
    ],
)
def test_what_cannot_be_undone_is_no_error(condition: str) -> None:
    read_hints([f"SELECT a FROM t WHERE {condition}"], {"t": ("a", "b")})


def test_of_two_columns_the_other_is_taken_for_small_numbers() -> None:
    hints = read_hints(["SELECT a FROM t WHERE a + b > 100"], {"t": ("a", "b")})
    assert {98, 97} <= set(hints.near["t", "a"])
    assert {2, 3} <= set(hints.hits["t", "b"])
    assert hints.numeric == {("t", "a"), ("t", "b")}


def test_days_are_days() -> None:
    random = Random(0)
    days = [some_day(random) for _ in range(200)]
    connection = sqlite3.connect(":memory:")
    assert all(connection.execute("SELECT julianday(?)", (day,)).fetchone()[0] for day in days)
    assert len({day[:4] for day in days}) > 3
    assert {len(day) for day in days} == {10, 19}
