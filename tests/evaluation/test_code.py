from __future__ import annotations

import gzip
import json
import textwrap
import time
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest

from dollyllama.config import RowFormat
from dollyllama.data.formats import FORMATS
from dollyllama.evaluation.code import (
    Problem,
    grade,
    has_tests,
    is_python,
    pass_at_k,
    program,
    read_problem,
    run_tests,
)
from dollyllama.evaluation.sandbox import Status, available

PYTHON = [
    "print('hi')",
    "x = 5",
    "def f(a):\n    return a + 1",
    "import os",
    "[print(i) for i in range(3)]",
    "```python\nx = 1\n```",
    "Here it is:\n```\nx = 1\n```\nDone.",
    "```python\nx = 1",  # cut off by the length limit
    "1. Do:\n   ```python\n   def f(x):\n       return x\n   ```",
    "- ```py\n  x = 1\n  ```",
    "Use `x`:\n~~~python\nx = 1\n~~~\nDone.",
    "```bash\npip install x\n```\n\n```python\nimport x\n```",
    "```bash\npip install x\n```\n\n```\nimport x\n```",
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
    "```python\nx = \n```\nUse it:\n```python\nprint(x)\n```",
    "~" * 100_000,
    "`" * 100_000 + "\n",
    "```" + " " * 100_000 + "`",
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


needs_sandbox = pytest.mark.skipif(available() is not None, reason=str(available()))

HALVES = Problem(
    prompt=(
        "from typing import List\n\n\ndef half(x: int) -> int:\n    return x // 2\n\n\n"
        'def halves(xs: List[int]) -> List[int]:\n    """Halve each.\n    """\n'
    ),
    test="def check(candidate):\n    assert candidate([4, 6]) == [2, 3]\n",
    entry_point="halves",
)
BODY = "    out = []\n    for x in xs:\n        out.append(half(x))\n    return out\n"
WHOLE = "def halves(xs: List[int]) -> List[int]:\n" + BODY

RIGHT = {
    "whole": WHOLE,
    "whole with its helper": HALVES.prompt + BODY,
    "body": BODY,
    "body behind an empty line": "\n" + BODY,
    "body stripped": BODY.strip(),
    "body outdented": textwrap.dedent(BODY),
    "body of one line": "return [half(x) for x in xs]",
    "body and more": BODY + "\nprint(halves([2]))\n",
    "fenced": f"Here it is:\n```python\n{WHOLE}```\nIt halves.",
    "fenced body": f"```\n{BODY}```",
    "fence not closed": f"```python\n{WHOLE}",
    "words before it": f"Here is the function:\n\n{WHOLE}",
    "words around it": f"Here is the function:\n\n{WHOLE}\n\nThis function halves.",
    "a helper in a block of its own": (
        f"```python\ndef part(x):\n    return half(x)\n```\nand\n```python\n"
        f"{WHOLE.replace('half(x)', 'part(x)')}```"
    ),
    "a name for a function": "halves = lambda xs: [half(x) for x in xs]",
    "a fence that closes alone": f"{BODY}```",
    "the block with the function": f"```\npip install it\n```\nthen\n```python\n{WHOLE}```",
    "the last of two": f"```python\n{WHOLE.replace('half(x)', 'x')}```\nBetter:\n```\n{WHOLE}```",
    "docstring quoted otherwise": WHOLE.replace(":\n", ":\n    '''Halve.'''\n", 1),
    "guarded lines": WHOLE + "\nif __name__ == '__main__':\n    raise SystemExit\n",
    "in an item of a list": "1. Here:\n\n" + textwrap.indent(f"```python\n{WHOLE}```\n", "   "),
    "fenced by tildes": f"~~~python\n{WHOLE}~~~",
    "shell first": f"```bash\npip install it\n```\nthen\n```python\n{BODY}```",
    "words behind it": f"{WHOLE}\n\nThis function halves.\nIt doesn't round up.",
    "words behind the body": f"{BODY.strip()}\n\nThis function halves.",
    "words behind the outdented body": f"{textwrap.dedent(BODY)}\nThis function halves.",
    "body and a cut-off function": f"{BODY}\n\ndef other(x):\n    return (x",
    "stripped body and a cut-off function": f"{BODY.strip()}\n\ndef other(x):\n    return (x",
    "body and a cut-off head": f"{BODY}\n\ndef other(x):",
    "body and a cut-off class": f"{BODY}\nclass Halver:\n    def",
    "body and a cut-off guard": f"{BODY}\nif __name__ == '__main__",
    "body and a cut-off call": f"{BODY}\nprint(halves([2, 3",
    "function and a cut-off call": f"{WHOLE}\n\nprint(halves([2, 3",
    "imports of its own": f"from __future__ import annotations\nimport math\n{WHOLE}",
}
WRONG = {
    "nothing": "",
    "words": "It halves each number.",
    "empty body": "    pass",
    "None": "    return None",
    "another name": WHOLE.replace("halves", "halve"),
    "wrong": WHOLE.replace("half(x)", "x"),
    "not Python": "def halves(xs)\n    return xs",
    "a check of its own": "    return None\n\ndef check(candidate):\n    pass\n",
    "tests swallowed": "    return None\n\ntests = '''",
    "exit": "    import sys\n    sys.exit(0)",
    "exit at once": f"import os\nos._exit(0)\n{WHOLE}",
    "words of success": "    print('passed')",
    "AssertionError of its own": f"class AssertionError(Exception):\n    pass\n{BODY[:-4]}",
}


@needs_sandbox
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes_in_whatever_form_it_comes(name: str) -> None:
    assert run_tests(RIGHT[name], HALVES).status is Status.passed


@needs_sandbox
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_does_not_pass(name: str) -> None:
    assert run_tests(WRONG[name], HALVES).status is not Status.passed


def test_what_answers_nothing_is_not_run() -> None:
    assert program("It halves each number.", HALVES) is None
    assert program("", HALVES) is None
    # Half of an answer that does not parse is no answer.
    assert program(f"import math\n{WHOLE.replace('xs:', 'xs')}", HALVES) is None
    assert program(textwrap.dedent(BODY).replace("(x))", "(x)"), HALVES) is None


def test_an_answer_continues_the_prompt_where_it_is_no_whole_function() -> None:
    assert program(BODY.strip(), HALVES) == (HALVES.prompt + BODY.rstrip(),)
    assert program(WHOLE, HALVES) == (HALVES.prompt, WHOLE)
    assert program(f"{WHOLE}\nIt halves.", HALVES) == (HALVES.prompt, f"{WHOLE}\n")


def test_an_answer_of_many_lines_is_ended_soon() -> None:
    for line in ("x = (1\n", "x = 1\n)\n", "It's so.\n", "'''\n", "return 1\ndef f(:\n"):
        begun = time.process_time()
        program(line * 5000, HALVES)
        assert time.process_time() - begun < 10


@needs_sandbox
def test_a_head_without_docstring_can_be_completed() -> None:
    bare = Problem("def one():", "def check(f):\n    assert f() == 1", "one")
    for answer in ("def one():\n    return 1", "    return 1", "return 1"):
        assert run_tests(answer, bare).status is Status.passed


@needs_sandbox
def test_passes_is_scored_only_where_asked_for_and_where_there_are_tests() -> None:
    context = json.dumps({"prompt": HALVES.prompt, "test": HALVES.test, "entry_point": "halves"})
    assert read_problem(context) == HALVES
    assert grade(WHOLE, WHOLE, context) == {"parses": 1}
    assert grade(WHOLE, WHOLE, context, execute=True) == {"parses": 1, "passes": 1}
    assert grade("    return xs", WHOLE, context, execute=True) == {"parses": 1, "passes": 0}
    assert grade("return 1 +", WHOLE, context, execute=True) == {"parses": 0, "passes": 0}
    assert grade(WHOLE, WHOLE, execute=True) == {"parses": 1}
    untested = context.replace(json.dumps(HALVES.test), '" "')
    assert [has_tests(each) for each in (context, untested, "")] == [True, False, False]
    assert grade(WHOLE, WHOLE, untested, execute=True) == {"parses": 1}
    for nothing in ("", "Paris", "# halves", "It halves."):
        assert grade(nothing, WHOLE, context, execute=True) == {"parses": 0, "passes": 0}
    late = RIGHT["the block with the function"]
    assert grade(late, WHOLE, context, execute=True) == {"parses": 1, "passes": 1}


@pytest.mark.parametrize("context", ["", "CREATE TABLE a (b INT)", "1", '{"prompt": "x"}'])
def test_the_context_of_another_format_is_no_problem(context: str) -> None:
    assert read_problem(context) is None
    assert grade("x = 1", "y = 2", context, execute=True) == {"parses": 1}


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_passing_answer(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            passing = sum(any(each < c for each in draw) for draw in draws)
            assert pass_at_k(n, c, k) == passing / len(draws)


def test_pass_at_k_loses_nothing_where_numbers_are_large_or_small() -> None:
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(10**5, 1, 10) == float(Fraction(10, 10**5))
    assert pass_at_k(1000, 500, 300) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(1, 2, 1), (1, -1, 1), (2, 1, 3), (2, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


@needs_sandbox
def test_a_part_of_humaneval_passes_by_its_solutions_and_by_nothing_else(shared: Path) -> None:
    """All of it: ``python -m benchmarks.code_grader``."""
    with gzip.open(shared / "data/eval/humaneval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[::16]:
        fields = FORMATS[RowFormat.humaneval].read(row)
        right = grade(fields.response, fields.response, fields.context, execute=True)
        assert right == {"parses": 1, "passes": 1}
        stripped = grade(
            row["canonical_solution"].strip(), fields.response, fields.context, execute=True
        )
        assert stripped == {"parses": 1, "passes": 1}
        emptied = grade(row["prompt"] + "    pass", fields.response, fields.context, execute=True)
        assert emptied == {"parses": 1, "passes": 0}
