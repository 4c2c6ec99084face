"""The sample data that comes with the project: rows in four upstream schemas, dirt included.

    python -m dollyllama.embedded.sample

writes the files of ``data/`` again, byte for byte.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from dollyllama.config import RowFormat
from dollyllama.data.prompt import format_prompt
from dollyllama.embedded import DATA
from dollyllama.embedded.passages import make_task
from dollyllama.embedded.problems import make_problem
from dollyllama.embedded.programs import make_program
from dollyllama.embedded.queries import (
    ask,
    ask_both,
    create_statements,
    make_pair,
    make_table,
)

Row = dict[str, Any]
SEED = 20_240_601

#: Where gzip notes the system (RFC 1952, section 2.3.1): Unix here, which Python 3.13 leaves open.
_SYSTEM = 9

_NO_INPUT = ("", "", "", "", "", "", "noinput", "<noinput>", "N/A", "None", "No input.")
#: What stands before a problem.
_WORDINGS = (
    "{}",
    "Can you help me with this? {}",
    "Can you show me the way to solve this? {}",
    "Could you solve this problem: {}",
    "Find a solution for this problem: {}",
    "Hello, I have a question. {}",
    "I am stuck on this: {}",
    "I need help with this problem:\n{}",
    "I need the solution for this problem: {}",
    "Solve this: {}",
    "This problem is from school.\n{}",
    "What is the solution? {}",
)


def _sql(random: Random) -> Row:
    if random.random() < 0.2:
        parent, child = make_pair(random)
        asked = ask_both(parent, child, random)
        tables: tuple[Any, ...] = (parent, child)
    else:
        table = make_table(random)
        asked = ask(table, random)
        tables = (table,)
    return {
        "question": asked.question,
        "context": create_statements(tables),
        "answer": asked.query,
    }


def _code(random: Random) -> Row:
    program = make_program(random)
    given = program.given or random.choice(_NO_INPUT)
    return {"instruction": program.task, "input": given, "output": program.solution}


def _dolly(random: Random) -> Row:
    task = make_task(random)
    return {"prompt": format_prompt(task.instruction), "response": task.response}


def _maths(random: Random) -> Row:
    """The question before the facts: the end of a problem's line is what tells it from others when
    rows are grouped for the split, and the questions are few."""
    problem = make_problem(random)
    story = f"{problem.question} {problem.facts}"
    return {
        "INSTRUCTION": random.choice(_WORDINGS).format(story),
        "RESPONSE": "\n".join(problem.steps),
    }


@dataclass(frozen=True, slots=True)
class SampleFile:
    """asking, answering: its columns. rows: how many, before copies are added."""

    make: Callable[[Random], Row]
    row_format: RowFormat
    asking: str
    answering: str
    rows: int


FILES = {
    "sql_create_context": SampleFile(
        _sql, RowFormat.sql_create_context, "question", "answer", 2600
    ),
    "code_alpaca_20k": SampleFile(_code, RowFormat.alpaca, "instruction", "output", 900),
    "dolly_hhrlhf": SampleFile(_dolly, RowFormat.prompt_response, "prompt", "response", 900),
    "grade_school_math_instructions": SampleFile(
        _maths, RowFormat.grade_school_math, "INSTRUCTION", "RESPONSE", 900
    ),
}


def _numbered_table(row: Row, random: Random) -> Row:
    """As in WikiSQL, whose tables have numbers for names."""
    name = row["context"].removeprefix("CREATE TABLE ").partition(" ")[0]
    numbered = f"table_{random.randint(10000, 99999)}_{random.randint(1, 9)}"
    return {
        "question": row["question"],
        "context": row["context"].replace(f"TABLE {name} (", f"TABLE {numbered} ("),
        "answer": row["answer"].replace(f"FROM {name}", f"FROM {numbered}"),
    }


def _damaged_query(row: Row) -> Row:
    """As upstream's own damage: a condition that compares a column's name with itself."""
    head, where, rest = row["answer"].partition(" WHERE ")
    column = rest.partition(" ")[0].strip('"')
    return {**row, "answer": f'{head} WHERE "{column}" = "{column}"'} if where else row


def _dirty(name: str, row: Row, random: Random) -> list[Row]:
    """The row, or what it has become on its way; now and then a copy of it as well."""
    asking, answering = FILES[name].asking, FILES[name].answering
    chance = random.random()
    if name == "sql_create_context":
        if random.random() < 0.05:
            return [_numbered_table(row, random)]
        if random.random() < 0.01:
            return [_damaged_query(row)]
    if chance < 0.025:
        return [row, row]
    if chance < 0.045:
        text = random.choice((str.upper, str.lower, lambda t: t.replace(" ", "  ")))(row[asking])
        return [row, {**row, asking: row[asking] if name == "dolly_hhrlhf" else text}]
    if chance < 0.050:
        return [{**row, answering: random.choice(("", " ", "\n", None))}]
    if chance < 0.054:
        return [{**row, asking: ""}]
    if chance < 0.058:
        return [{key: value for key, value in row.items() if key != answering}]
    if chance < 0.062:
        return [{**row, answering: row[answering].replace("\n", "\r\n") + "\r\n"}]
    if chance < 0.066:
        return [{**row, asking: row[asking].replace(". ", ".\u2028", 1)}]
    if chance < 0.070 and name == "grade_school_math_instructions":
        text = row[asking]
        return [{**row, asking: f"{text.rstrip()}\nCould you solve this problem: {text}"}]
    if chance < 0.072:
        return [{**row, answering: f"{row[answering]}\n### End"}]
    return [row]


def make_rows(name: str) -> list[Row]:
    """The rows of one file, in its order; copies stand somewhere behind their original."""
    random = Random(f"{SEED} {name}")
    rows: list[Row] = []
    copies: list[Row] = []
    for _ in range(FILES[name].rows):
        first, *rest = _dirty(name, FILES[name].make(random), random)
        rows.append(first)
        copies += rest
    for copy in copies:
        rows.insert(random.randint(len(rows) // 2, len(rows)), copy)
    return rows


def pack(rows: list[Row]) -> bytes:
    """Gzipped JSON Lines, without time stamp and name, so that equal rows are equal bytes."""
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    packed = gzip.compress(lines.encode(), 9, mtime=0)
    return packed[:_SYSTEM] + b"\x03" + packed[_SYSTEM + 1 :]


def write_sample() -> None:
    """Write every file of ``data/``."""
    DATA.mkdir(exist_ok=True)
    for name in FILES:
        (DATA / f"{name}.jsonl.gz").write_bytes(pack(make_rows(name)))


if __name__ == "__main__":
    write_sample()
