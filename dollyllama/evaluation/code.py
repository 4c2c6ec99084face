"""Whether an answer that should be Python is Python, and, where asked for, passes its tests."""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
import warnings
from dataclasses import dataclass

from dollyllama.evaluation.fences import blocks, fenced
from dollyllama.evaluation.sandbox import Outcome, Status, run_program

#: What a fence around Python says.
_LANGUAGES = ("python", "py")


def is_python(text: str) -> bool:
    """Whether ``text``, or the block of it that ``fences.fenced`` chooses, parses as Python that
    does something.

    A lone word or number parses too; code is what has a statement or a call.
    """
    tree = _parse(fenced(text, _LANGUAGES))
    return tree is not None and any(_does_something(statement) for statement in tree.body)


#: So often is an answer shortened to the last line that parses.
_MOST_CUTS = 50


def _parse(code: str) -> ast.Module | None:
    tree = _tree_or_fault(code)
    return tree if isinstance(tree, ast.Module) else None


def _tree_or_fault(code: str) -> ast.Module | int:
    """What ``code`` parses to, or the line, from 1, at which it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in the answer is not ours
            return ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    # ValueError: a null character; the others: expressions nested too deeply.
    except (ValueError, RecursionError, MemoryError):
        return 1


def _does_something(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return any(isinstance(node, ast.Call) for node in ast.walk(statement))
    # "note: careful" parses as a declaration without a value.
    return not (isinstance(statement, ast.AnnAssign) and statement.value is None)


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to complete, as HumanEval states one (Chen et al. 2021, arXiv:2107.03374).

    prompt: its imports and helpers, its head and docstring. test: code with ``check(candidate)``.
    entry_point: its name.
    """

    prompt: str
    test: str
    entry_point: str


def read_problem(context: str) -> Problem | None:
    """The problem that an example's context holds (``data.sources.read_humaneval``), or None."""
    try:
        return Problem(**json.loads(context))
    except (ValueError, TypeError):  # another format's context, or none
        return None


def has_tests(context: str) -> bool:
    """Whether an example's context holds tests to run an answer against."""
    problem = read_problem(context)
    return problem is not None and bool(problem.test.strip())


def run_tests(completion: str, problem: Problem, *, seconds: float = 10) -> Outcome:
    """Run an answer to a problem against its tests, in the sandbox.

    Runs code that a model wrote: see ``sandbox`` for what that can do. What ``program`` cannot
    make one of fails without being run. seconds: of wall time.
    ValueError where the sandbox cannot be had.
    """
    parts = program(completion, problem)
    if parts is None:
        return Outcome(Status.failed, "the answer neither is nor completes the function")
    test = f"{problem.test}\ncheck({problem.entry_point})\n"
    return run_program(*parts, test, seconds=seconds)


def program(completion: str, problem: Problem) -> tuple[str, ...] | None:
    """The program that an answer makes of a problem, in parts that follow each other, or None.

    The answer is the last fenced block that holds the function, behind those before it that define
    what it may use, or the block that ``fences.fenced`` chooses, or all of the text, or what stands
    behind its first words. A whole function follows the prompt, whose imports and helpers it
    may use. Anything else continues the prompt's function; its first line may have lost its
    indentation, or all lines theirs. Where it does not parse, it ends before what stands at the
    left margin and does not: words, or a further definition or call that was cut off. (Chen et al.
    stop at "\\nclass", "\\ndef", "\\n#", "\\nif", "\\nprint".) None where it fits in no way.
    """
    head = f"{problem.prompt.rstrip()}\n"
    # With its docstring it is a function; a head alone needs a body to be one.
    stub = head if _parse(head) else f"{head}    pass\n"
    texts = [block.code for block in blocks(completion)]
    texts = [_parsing(text) for text in texts] or [_behind_words(completion)]
    whole = [n for n, text in enumerate(texts) if _defines(text, problem.entry_point)]
    if whole:
        helpers = [text for text in texts[: whole[-1]] if _only_defines(text)]
        return stub, *helpers, texts[whole[-1]]
    body = fenced(completion, _LANGUAGES).strip("\n")
    forms = [head + form for form in (body, f"    {body.lstrip()}", textwrap.indent(body, "    "))]
    # Of a whole function that does not parse, no part is a body.
    if not re.search(rf"^[ \t]*(?:async )?def {re.escape(problem.entry_point)}\b", body, re.M):
        forms += [_returning(form, len(head)) for form in forms[:2]]
        forms.append(head + textwrap.indent(_returning(body, 0), "    "))
    escaped = [(_escaped(form, stub), form) for form in forms]
    fitting = [(number, form) for number, form in escaped if number is not None]
    # The first of those from which the least escapes.
    return (min(fitting, key=lambda pair: pair[0])[1],) if fitting else None


def _returning(form: str, kept: int) -> str:
    """``_parsing``, where what is left behind ``kept`` returns something: half a body does not."""
    ended = _parsing(form, kept)
    return ended if "return" in ended[kept:] else form


def _parsing(code: str, kept: int = 0) -> str:
    """``code`` up to the last line at the left margin before which it parses, behind ``kept``.

    All of it where it parses, or where no such line helps.
    """
    ends: list[tuple[int, int]] = []  # lines at the margin, each by its number and place
    place = 0
    for number, line in enumerate(code.split("\n"), start=1):
        if place > kept and line[:1].strip():
            ends.append((number, place))
        place += len(line) + 1
    ended = code
    for _ in range(_MOST_CUTS):
        fault = _tree_or_fault(ended)
        if isinstance(fault, ast.Module):
            return ended
        while ends and (ends[-1][0] > fault or ends[-1][1] >= len(ended)):
            ends.pop()
        if not ends:
            break
        ended = code[: ends[-1][1]]
    return code


#: How a line begins that starts code among words.
_BEGINS_CODE = re.compile(r"^(?:(?:async )?def |class |import |from \w+ import |@)", re.MULTILINE)


def _behind_words(text: str) -> str:
    """``text``, or where it does not parse, it from its first line that begins code."""
    parsing = _parsing(text)
    begins = None if _parse(parsing) else _BEGINS_CODE.search(text)
    return _parsing(text[begins.start() :]) if begins else parsing


def _defines(code: str, name: str) -> bool:
    """Whether a statement of ``code`` is the function ``name``, or gives something that name."""
    tree = _parse(code)
    return tree is not None and any(
        getattr(statement, "name", None) == name
        or (
            isinstance(statement, ast.Assign)
            and any(isinstance(each, ast.Name) and each.id == name for each in statement.targets)
        )
        for statement in tree.body
    )


def _only_defines(code: str) -> bool:
    """Whether ``code`` makes names and does nothing else."""
    tree = _parse(code)
    makes = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign
    return tree is not None and all(isinstance(statement, makes) for statement in tree.body)


def _escaped(completed: str, stub: str) -> int | None:
    """How many statements stand behind the last function of ``stub``, once it is completed.

    None where the text does not parse, or adds nothing to that function that does something.
    """
    before, after = _parse(stub), _parse(completed)
    if before is None or after is None or len(after.body) < len(before.body):
        return None
    old, new = before.body[-1], after.body[len(before.body) - 1]
    known = {ast.dump(statement) for statement in getattr(old, "body", ())}
    added = (each for each in getattr(new, "body", ()) if ast.dump(each) not in known)
    if not any(_does_something(statement) for statement in added):
        return None
    return len(after.body) - len(before.body)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k answers passes, unbiased, when c of n drawn ones did.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374, eq. 1; in whole numbers, so that
    nothing is lost. ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs at least {k} answers and c of 0 to n, not n={n}, c={c}")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def grade(
    completion: str, reference: str, context: str = "", *, execute: bool = False
) -> dict[str, float]:
    """Score an answer: ``parses``, where the reference is Python itself; else nothing.

    ``passes``, where ``execute`` asks for it and ``context`` holds tests: the answer is run against
    them in the sandbox (ValueError where that cannot be had). An answer that completes a given
    function parses when the two together do.
    """
    problem = read_problem(context)
    scores = {}
    if is_python(reference):
        completes = problem is not None and program(completion, problem) is not None
        scores["parses"] = float(completes or is_python(completion))
    if execute and problem is not None and has_tests(context):
        scores["passes"] = float(run_tests(completion, problem).status is Status.passed)
    return scores
