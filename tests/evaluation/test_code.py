from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dollyllama.evaluation.code import grade, is_python

PYTHON = [
    "print('hi')",
    "x = 5",
    "def f(a):\n    return a + 1",
    "import os",
    "[print(i) for i in range(3)]",
    "```python\nx = 1\n```",
    "Here it is:\n```\nx = 1\n```\nDone.",
    "```python\nx = 1",  # cut off by the length limit
    "# a comment\nx: int = 1",
    "while True:\n    pass",
    's = "\\d"',  # warns
    "async def f():\n    await g()",
]
NOT_PYTHON = [
    "",
    "   \n",
    "# only a comment",
    "Paris",
    "42",
    "'text'",
    "a, b",
    "x is 5",
    "Yes or no",
    "note: careful",
    "The answer is 5.",
    "def f(a):\nreturn a",
    "def f(a)\n    return a",
    "print 'hi'",
    "x = = 5",
    "x = (1",
    "SELECT name FROM head",
    "function f() { return 1; }",
    "<p>hi</p>",
    "public int x;",
    "x = 1\x00",
    "```python\nx = \n```",
    "(" * 100_000 + ")" * 100_000,
    "x = " + "-" * 100_000 + "1",
    "x = " + "a." * 100_000 + "a",
    "x = " + "1" * 5000,
    "if 1:\n" * 200 + "pass",
]


def test_a_comment_behind_code_is_code() -> None:
    # "### End" is a comment to Python: it is stripped before grading, and harmless if it were not.
    assert is_python("x = 1\n### End")


@pytest.mark.parametrize("text", PYTHON)
def test_python_is_python(text: str) -> None:
    assert is_python(text)


@pytest.mark.parametrize("text", NOT_PYTHON)
def test_anything_else_is_not(text: str) -> None:
    assert not is_python(text)


def test_it_is_scored_only_where_the_reference_is_python() -> None:
    assert grade("x = 1", "y = 2") == {"parses": 1}
    assert grade("x = ", "y = 2") == {"parses": 0}
    assert grade("", "y = 2") == {"parses": 0}
    assert grade("x = 1", "SELECT 1 FROM t") == {}
    assert grade("x = 1", "Paris") == {}


def test_nothing_is_run(tmp_path: Path) -> None:
    target = tmp_path / "written"
    assert is_python(f"open({str(target)!r}, 'w').write('x')")
    assert not target.exists()


def test_the_solutions_of_humaneval_are_python(shared: Path) -> None:
    with gzip.open(shared / "data/eval/humaneval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    for problem in problems:
        solution = problem["prompt"] + problem["canonical_solution"]
        assert is_python(solution)
        assert not is_python(solution + "\n)")
