"""How each upstream schema reads: one pure function a format, rows to examples."""

from __future__ import annotations

import enum
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import cycle, islice
from typing import Any

from dollyllama.config import RowFormat, Source
from dollyllama.data.example import Example, History, Rejected
from dollyllama.data.prompt import extract_instruction
from dollyllama.files import parse_json

Row = dict[str, Any]

#: The longest row, in bytes of its line or in characters of the text that it gives.
MAX_ROW = 10_000_000


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row says, whatever its columns are called: the fields of ``Example``.

    repairs: what had to be done to read it, by kind, for the manifest.
    """

    instruction: str
    response: str
    context: str = ""
    input: str = ""
    history: History = ()
    repairs: tuple[str, ...] = ()


#: Ways in which Alpaca-like data say "this instruction has no input"; "Na" is sodium.
_NO_INPUT = re.compile(
    r"[\W_]*(no[\W_]*inputn?|none|n[/.]a|not[\W_]+applicable)[\W_]*", re.IGNORECASE
)


def read_input(given: str | None) -> tuple[str, tuple[str, ...]]:
    """An optional input and repairs: a marker that stands for none is none."""
    bare = (given or "").strip()
    if len(bare) <= 20 and _NO_INPUT.fullmatch(bare):
        return "", ("no_input_marker",)
    return given if given and bare else "", ()


def _one_of(row: Row, *names: str) -> Any:
    """The value of the only column of ``names`` that the row has (``check_columns`` saw to it)."""
    return next(row[name] for name in names if name in row)


_RESPONSES = ("output", "response", "completion")


def read_alpaca(row: Row) -> Fields:
    """instruction, input (optional), output."""
    given, repairs = read_input(row.get("input"))
    response = _one_of(row, *_RESPONSES)
    return Fields(row["instruction"], response, input=given, repairs=repairs)


def read_prompt_response(row: Row) -> Fields:
    """prompt, response; a prompt that already carries the Alpaca template loses it.

    Either may be a list of messages instead, as TRL's conversational data have them; together they
    are read as ``read_messages`` does.
    """
    prompt, response = row["prompt"], _one_of(row, "response", "completion", "output")
    if isinstance(prompt, list) or isinstance(response, list):
        return read_messages({"messages": _turns(prompt, "user") + _turns(response, "assistant")})
    instruction = extract_instruction(prompt)
    repairs = () if instruction == prompt else ("template_removed",)
    return Fields(instruction, response, repairs=repairs)


def _turns(said: str | list[Any], role: str) -> list[Any]:
    return said if isinstance(said, list) else [{"role": role, "content": said}]


def read_grade_school_math(row: Row) -> Fields:
    """INSTRUCTION, RESPONSE: GSM8K in prompt wordings of Open-Assistant."""
    return Fields(row["INSTRUCTION"], row["RESPONSE"])


def read_databricks_dolly(row: Row) -> Fields:
    """instruction, context, response; the context is the instruction's input."""
    given, repairs = read_input(row.get("context"))
    return Fields(row["instruction"], row["response"], input=given, repairs=repairs)


def read_gsm8k(row: Row) -> Fields:
    """question, answer: calculator notes ``<<…>>`` go, ``#### n`` becomes a last sentence.

    Cobbe et al. 2021, arXiv:2110.14168. Words teach the model a final answer in a form that
    people write as well.
    """
    answer = re.sub(r"\n?####\s*(\S.*?)\s*$", r"\nThe answer is \1.", without_notes(row["answer"]))
    return Fields(row["question"], answer.lstrip("\n"))


def without_notes(answer: str) -> str:
    """Leave out a calculator's notes, as ``<<48/2=24>>``: they repeat what stands beside them."""
    return re.sub(r'<<[^<>\n"]*=[^<>\n"]*>>', "", answer) if "<<" in answer else answer


def read_self_instruct_starcoder(row: Row) -> Fields:
    """instruction, output (and two similarity columns, not used)."""
    return Fields(row["instruction"], row["output"])


def sql_instruction(question: str, context: str) -> str:
    """The recipe's words for a question about a schema.

    ``CREATE TABLE`` is taken out of the schema and ``VARCHAR`` becomes ``STRING``.
    """
    schema = re.sub(r"\bCREATE TABLE\s+", "", context)
    schema = re.sub(r"\bVARCHAR\b", "STRING", schema).strip()
    return f"Generate SQL query: {question.strip()}, given the following schema: {schema}"


def read_sql_create_context(row: Row) -> Fields:
    """question, context, answer; ``context`` keeps the schema that a database can run."""
    instruction = sql_instruction(row["question"], row["context"])
    return Fields(instruction, row["answer"], context=row["context"].strip())


#: What data sets call speakers, in lower case.
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}

#: Where a turn of the assistant says which tool it calls (OpenAI's interface, now and before).
_CALLS = ("tool_calls", "function_call")


def read_messages(row: Row) -> Fields:
    """messages or conversations: system words, and the user and the assistant in turn.

    System words go first, wherever they stand. The last answer is the response, the user's turn
    before it the instruction. Content in parts, as OpenAI's interface has it, is its texts, line by
    line. What follows the last answer, or the first turn that is not its speaker's or calls a tool,
    is left out (repair ``shortened_conversation``). ValueError without a first turn of each kind,
    in that order.
    """
    turns: list[tuple[str, str]] = []
    for message in _one_of(row, "messages", "conversations"):
        if not isinstance(message, Mapping):
            raise ValueError(f"a message must be an object, not {type(message).__name__}")
        role = message.get("role", message.get("from"))
        content = _in_one(message.get("content", message.get("value")))
        if any(message.get(name) for name in _CALLS):
            role, content = "a call of a tool", content or ""
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("a message needs role and content (or from and value), both text")
        turns.append((_ROLES.get(role.lower(), role), content))
    words = "\n".join(content for role, content in turns if role == "system")
    system = [("system", words)] if words.strip() else []
    spoken = [turn for turn in turns if turn[0] != "system"]
    in_turn = [role == speaker for (role, _), speaker in zip(spoken, cycle(["user", "assistant"]))]
    kept = (in_turn.index(False) if False in in_turn else len(spoken)) // 2 * 2
    if kept == 0:
        roles = ", ".join(role for role, _ in spoken[:3])
        raise ValueError(
            f"the conversation does not begin with a user turn and an answer, but with {roles}"
            if roles
            else "the conversation has no turn of a user"
        )
    *before, (_, instruction), (_, response) = spoken[:kept]
    repairs = ("shortened_conversation",) if len(spoken) > kept else ()
    return Fields(instruction, response, history=(*system, *before), repairs=repairs)


def _in_one(content: Any) -> Any:
    """Content in parts as one text, any other as it is; ValueError for a part that is no text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message has a part that is no text but {kind}")
        texts.append(text)
    return "\n".join(texts)


def read_humaneval(row: Row) -> Fields:
    """prompt, canonical_solution, test, entry_point: a function to complete, and its tests.

    Chen et al. 2021, arXiv:2107.03374, section 2.2. ``context`` is what the tests are run with, as
    a JSON object of prompt, test and entry_point.
    """
    prompt = row["prompt"]
    context = {key: row[key] for key in ("prompt", "test", "entry_point")}
    return Fields(
        f"Complete the following Python function. Write the whole function.\n{prompt}",
        prompt + row["canonical_solution"],
        context=json.dumps(context),
    )


def read_turns(row: Row) -> Fields:
    """turns: what a user says one after the other, without answers, as FastChat's benchmarks have.

    The last turn is the instruction; ``reference``'s texts, one a turn where there are any, the
    responses; a text by itself is the last one's.
    """
    turns = [turn for turn in row["turns"] if isinstance(turn, str)]
    if not turns:
        raise ValueError("turns holds no text")
    reference = row.get("reference") or []
    if isinstance(reference, str):
        reference = [*[""] * (len(turns) - 1), reference]
    if not isinstance(reference, list) or any(not isinstance(each, str) for each in reference):
        raise ValueError("reference holds something else than texts")
    answers = reference + [""] * len(turns)
    spoken = [
        each
        for turn, answer in zip(turns, answers, strict=False)
        for each in (("user", turn), ("assistant", answer))
    ]
    history = tuple((role, text) for role, text in spoken[:-2] if text)
    return Fields(turns[-1], spoken[-1][1], history=history)


def read_columns(row: Row) -> Fields:
    """instruction, response, input and context, each picked from a column that the source names.

    The context is for the grader alone.
    """
    given, repairs = read_input(row.get("input"))
    context = row.get("context") or ""
    return Fields(row["instruction"], row["response"], context, input=given, repairs=repairs)


@dataclass(frozen=True, slots=True)
class Format:
    """A row reader and its columns: each of ``columns`` is a group of names, exactly one present.

    optional: columns that are text when they are there and not null.
    """

    read: Callable[[Row], Fields]
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    value: type | tuple[type, ...] = str

    def misfit(self, found: frozenset[str]) -> str | None:
        """What is wrong with these columns, or None."""
        for names in self.columns:
            present = [name for name in names if name in found]
            if not present:
                return f"it wants the column {' or '.join(names)}"
            if len(present) > 1:
                return f"it takes the response from one column and finds {' and '.join(present)}"
        return None


FORMATS: dict[RowFormat, Format] = {
    RowFormat.sql_create_context: Format(
        read_sql_create_context, (("question",), ("context",), ("answer",))
    ),
    RowFormat.alpaca: Format(read_alpaca, (("instruction",), _RESPONSES), ("input",)),
    RowFormat.prompt_response: Format(
        read_prompt_response, (("prompt",), ("response", "completion", "output")), value=(str, list)
    ),
    RowFormat.grade_school_math: Format(read_grade_school_math, (("INSTRUCTION",), ("RESPONSE",))),
    RowFormat.databricks_dolly: Format(
        read_databricks_dolly, (("instruction",), ("response",)), ("context",)
    ),
    RowFormat.gsm8k: Format(read_gsm8k, (("question",), ("answer",))),
    RowFormat.self_instruct_starcoder: Format(
        read_self_instruct_starcoder, (("instruction",), ("output",))
    ),
    RowFormat.messages: Format(read_messages, (("messages", "conversations"),), value=list),
    RowFormat.humaneval: Format(
        read_humaneval, (("prompt",), ("canonical_solution",), ("test",), ("entry_point",))
    ),
    RowFormat.turns: Format(read_turns, (("turns",),), value=list),
    RowFormat.columns: Format(
        read_columns, (("instruction",), ("response",)), ("input", "context")
    ),
}


# --- columns that a source names ---------------------------------------------------------------


def pick(row: Row, path: str) -> Any:
    """The value of a column, or of a key or place inside it after a dot; None without one."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _paths(row: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every column of a row as ``columns`` can name it, keys inside of objects too."""
    for key, value in row.items():
        yield f"{prefix}{key}"
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, Mapping):
            yield from _paths(inner, f"{prefix}{key}.")


def check_columns(rows: Sequence[Row], *, name: str, location: str, source: Source) -> None:
    """ValueError when the rows' columns are not the format's, with the format that would fit.

    A column counts as there when any row has it: single rows without it are rejected later.
    """
    if source.columns:
        _check_named(rows, name=name, location=location, columns=source.columns)
        return
    found = frozenset().union(*rows)
    problem = FORMATS[source.format].misfit(found)
    if problem is None:
        return
    fitting = [
        str(other)
        for other, rule in FORMATS.items()
        if other is not RowFormat.columns and rule.misfit(found) is None
    ]
    if fitting:
        hint = f"data.sources.{name}.format={' or '.join(fitting)} would fit"
    else:
        _refuse_one_object(rows, name=name, location=location)
        hint = f"source@data.sources.{name}=columns takes columns of any name"
    raise ValueError(
        f"data.sources.{name}.format={source.format} does not fit {location}: {problem}, "
        f"and the columns are {_some_of(sorted(found))}; {hint}"
    )


#: How many columns, and how many characters of a name, an error shows.
_SHOWN_COLUMNS, _SHOWN_NAME = 20, 60


def _some_of(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    shown = [
        name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}…"
        for name in islice(names, _SHOWN_COLUMNS)
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class Inside(StrEnum):
    """What a value of an object may be, when the object is a whole file."""

    rows = enum.auto()  # a list with objects in it
    row = enum.auto()
    column = enum.auto()  # an object by the numbers of rows, as pandas writes it
    other = enum.auto()

    @classmethod
    def of(cls, value: Any) -> Inside:
        if isinstance(value, list):
            return cls.rows if any(isinstance(each, Mapping) for each in value) else cls.other
        if not isinstance(value, Mapping) or all(
            isinstance(each, Mapping | list) for each in value.values()
        ):
            return cls.other
        return cls.column if all(key.isdecimal() for key in value) else cls.row


def one_object(inside: Mapping[str, Inside]) -> str:
    """What is wrong with a file that is one object, by what its keys hold."""
    problem = "is one object, not rows (a JSON list, or an object a line)"
    if (way := _way_out(inside)) is None:
        return f"{problem}: write each row in one line of a .jsonl file"
    return f"{problem}, and {way}"


def _way_out(inside: Mapping[str, Inside]) -> str | None:
    """How to get at the rows that an object holds; None when it seems to hold none."""
    lists = [key for key, what in inside.items() if what is Inside.rows]
    if lists:
        plain = re.fullmatch(r"[A-Za-z_]\w*", lists[0], re.ASCII)
        path = f".{lists[0]}[]" if plain else f".[{json.dumps(lists[0])}][]"
        hold, write = ("holds a list", "it") if len(lists) == 1 else ("hold lists", "one")
        return (
            f"{_some_of(lists)} {hold} of objects: write {write} by itself, e.g. "
            f"jq -c {shlex.quote(path)} FILE > NEW.jsonl"
        )
    kinds = set(inside.values())
    if len(inside) > 1 and kinds == {Inside.row}:
        return "each key may hold one: write those as rows, e.g. jq -c '.[]' FILE > NEW.jsonl"
    if kinds == {Inside.column}:
        return (
            "its keys are columns: write them as rows, e.g. in Python "
            'pandas.read_json(FILE, dtype=False).to_json(NEW, orient="records", lines=True)'
        )
    return None


def _refuse_one_object(rows: Sequence[Row], *, name: str, location: str) -> None:
    """ValueError when the only row of a JSON file holds objects, which may be the rows."""
    if len(rows) != 1 or not location.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz")):
        return
    inside = {key: Inside.of(value) for key, value in rows[0].items()}
    if _way_out(inside) is not None:
        raise ValueError(f"data.sources.{name}: {location} {one_object(inside)}")


def _check_named(
    rows: Sequence[Row], *, name: str, location: str, columns: Mapping[str, str]
) -> None:
    found = dict.fromkeys(path for row in rows for path in _paths(row))
    for ours, path in columns.items():
        if path in found:
            continue
        if "." not in path:  # who asks for a place inside an object means a row
            _refuse_one_object(rows, name=name, location=location)
        near = get_close_matches(path, found, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"data.sources.{name}.columns.{ours}={path} is no column of {location}: {hint}"
            f"There are {_some_of(found)}"
        )


def read_example(
    row: Row, *, name: str, number: int, source: Source
) -> tuple[Example, tuple[str, ...]] | Rejected:
    """Read one row: the example (not cleaned, without a group) and its repairs, or a rejection."""

    def reject(reason: str, detail: str) -> Rejected:
        return Rejected(name, number, reason, detail, row)

    rule, named = FORMATS[source.format], source.columns
    values = {ours: pick(row, path) for ours, path in named.items()} if named else row
    for names in rule.columns:
        column = next((name for name in names if name in values), names[0])
        value = values.get(column)
        if rule.value is list and isinstance(value, str):
            value = _read_list(value)
            values = {**values, column: value}
        if not isinstance(value, rule.value):
            return reject("wrong_type", _wrong_type(named.get(column, column), value))
    for column in rule.optional:
        value = values.get(column)
        if value is not None and not isinstance(value, str):
            return reject("wrong_type", _wrong_type(named.get(column, column), value))
    try:
        fields = rule.read(values)
    except ValueError as error:
        return reject("unreadable_conversation", str(error))
    example = Example(
        name,
        number,
        fields.instruction,
        fields.response,
        fields.context,
        group="",
        input=fields.input,
        history=fields.history,
    )
    if len(example.question) + len(example.response) + len(example.context) > MAX_ROW:
        return reject("row_too_large", f"more than {MAX_ROW:,} characters")
    return example, fields.repairs


def _read_list(text: str) -> Any:
    """The list that a column keeps as JSON in a text, as exports to CSV do; the text if none."""
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return value if isinstance(value, list) else text


def _wrong_type(column: str, value: Any) -> str:
    """What is wrong with a value that is not what its column should hold."""
    if value is None:
        return f"{column} is missing"
    if isinstance(value, Mapping) and value:
        inside = ", ".join(f"{column}.{key}" for key in value)
        return f"{column} is an object (format=columns can reach into it: {inside})"
    return f"{column} is of type {type(value).__name__}"
