"""The generated data: what is asked can be answered, and the answers are right."""

from __future__ import annotations

import ast
import re
import sqlite3
from fractions import Fraction
from itertools import islice
from random import Random

import pytest

from dollyllama.data.prompt import END_MARKER
from dollyllama.embedded import DATA
from dollyllama.embedded.corpus import documents
from dollyllama.embedded.passages import make_task
from dollyllama.embedded.problems import equation, make_problem
from dollyllama.embedded.programs import make_program
from dollyllama.embedded.queries import (
    ask,
    ask_both,
    create_statements,
    make_pair,
    make_table,
)
from dollyllama.embedded.sample import FILES, make_rows, pack
from dollyllama.evaluation.maths import final_number

DRAWS = 400


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_the_generator_writes(name: str) -> None:
    assert (DATA / f"{name}.jsonl.gz").read_bytes() == pack(make_rows(name))


def test_the_files_together_stay_below_three_megabytes() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000


def test_queries_run_on_their_tables() -> None:
    random = Random(1)
    for _ in range(DRAWS):
        table = make_table(random)
        asked = [(create_statements((table,)), ask(table, random))]
        pair = make_pair(random)
        asked.append((create_statements(pair), ask_both(*pair, random)))
        for schema, each in asked:
            connection = sqlite3.connect(":memory:")
            connection.executescript(schema)
            connection.execute(each.query)
            connection.close()


def test_questions_say_the_values_that_their_queries_need() -> None:
    random = Random(2)
    for _ in range(DRAWS):
        asked = ask(make_table(random), random)
        values = re.findall(r'"%?(.*?)%?"', asked.query)
        values += re.findall(r"(?<= )\d+(?= |$)", asked.query.replace("LIMIT 1", ""))
        assert all(value in asked.question for value in values), asked


def _value(side: str) -> Fraction:
    """What a side of an equation comes to, by Python's own arithmetic."""
    expression = side.replace("$", "").replace("x", "*").strip()
    tree = ast.parse(expression, mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.Constant, ast.operator)
    assert all(isinstance(node, allowed) for node in ast.walk(tree))
    return Fraction(eval(expression)).limit_denominator(10**6)


def test_equations_are_right() -> None:
    random = Random(3)
    lines = [equation(random) for _ in range(DRAWS)]
    problems = [make_problem(random) for _ in range(DRAWS)]
    found = re.findall(
        r"(\d+ [-+x/] \d+) = \$?(\d+)",
        "\n".join([*lines, *(step for each in problems for step in each.steps)]),
    )
    assert len(found) >= 2 * DRAWS
    assert all(_value(left) == _value(right) for left, right in found)


def test_the_last_step_of_a_problem_comes_to_its_answer() -> None:
    random = Random(4)
    for _ in range(DRAWS):
        problem = make_problem(random)
        assert final_number("\n".join(problem.steps)) == problem.answer


def test_programs_are_python() -> None:
    random = Random(5)
    for _ in range(DRAWS):
        program = make_program(random)
        if program.solution.startswith(("def ", "for ", "class ")):
            ast.parse(program.solution)


def test_pretraining_never_sees_the_instruction_format() -> None:
    text = "\n".join(islice(documents(6), 4 * DRAWS))
    assert "### Instruction" not in text
    assert "### Response" not in text
    assert END_MARKER not in text
    assert "Below is an instruction" not in text
    assert "Generate SQL query" not in text
    assert END_MARKER not in "".join(make_task(Random(seed)).response for seed in range(DRAWS))


def test_equal_seeds_give_equal_documents() -> None:
    assert list(islice(documents(7), 50)) == list(islice(documents(7), 50))
    assert list(islice(documents(7), 50)) != list(islice(documents(8), 50))
