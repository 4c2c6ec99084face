"""Whether an answer that should be Python is Python. Nothing is run."""

from __future__ import annotations

import ast
import re
import warnings

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def is_python(text: str) -> bool:
    """Whether ``text``, or the first fenced block in it, parses as Python that does something.

    A lone word or number parses too; code is what has a statement or a call.
    """
    fenced = _FENCED.search(text)
    code = fenced.group(1) if fenced else text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in the answer is not ours
            tree = ast.parse(code)
    # ValueError: a null character; the others: expressions nested too deeply.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(_does_something(statement) for statement in tree.body)


def _does_something(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return any(isinstance(node, ast.Call) for node in ast.walk(statement))
    # "note: careful" parses as a declaration without a value.
    return not (isinstance(statement, ast.AnnAssign) and statement.value is None)


def grade(completion: str, reference: str) -> dict[str, float]:
    """Score an answer: ``parses``, where the reference is Python itself; else nothing."""
    return {"parses": float(is_python(completion))} if is_python(reference) else {}
