"""Where rows come from and how each upstream schema reads: files to rows, rows to examples.

Local JSON (Lines) is parsed here: ``datasets`` 5.2 turns every string of a column into quoted JSON
when one row holds another type, and names no row when one is broken. Everything else (Hub, Hub-like
folders, Parquet, CSV, saved data sets) is read through ``datasets``.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollyllama import embedded
from dollyllama.config import RowFormat
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import extract_instruction
from dollyllama.embedded import EMBEDDED
from dollyllama.files import digest, read_unpacked
from dollyllama.hub import hub_answers, root_line

Row = dict[str, Any]

#: The licence of the sample that comes with the project.
EMBEDDED_LICENCE = {"name": "Apache-2.0", "stated_at": "LICENSE of this project"}

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")


# --- formats: one pure function per upstream schema ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row says, whatever its columns are called.

    repairs: what had to be done to read it, by kind, for the manifest.
    """

    instruction: str
    response: str
    context: str = ""
    repairs: tuple[str, ...] = ()


#: Ways in which Alpaca-like data say "this instruction has no input", punctuation aside.
_NO_INPUT = frozenset({"noinput", "noinputn", "none", "na", "notapplicable"})


def join_input(instruction: str, given: str) -> Fields:
    """Append an optional input after a newline; a marker that stands for none is left out."""
    bare = given.strip()
    if not bare:
        return Fields(instruction, "")
    if len(bare) <= 20 and re.sub(r"[\W_]", "", bare.lower()) in _NO_INPUT:
        return Fields(instruction, "", repairs=("no_input_marker",))
    return Fields(f"{instruction.rstrip()}\n{given}", "")


def _one_of(row: Row, *names: str) -> Any:
    """The value of the only column of ``names`` that the row has (``check_columns`` saw to it)."""
    return next(row[name] for name in names if name in row)


_RESPONSES = ("output", "response", "completion")


def read_alpaca(row: Row) -> Fields:
    """instruction, input (optional), output; the input goes below the instruction.

    Taori et al. 2023 has a second template for rows with input; the recipe uses one for all.
    """
    joined = join_input(row["instruction"], row.get("input") or "")
    response = _one_of(row, *_RESPONSES)
    return Fields(joined.instruction, response, repairs=joined.repairs)


def read_prompt_response(row: Row) -> Fields:
    """prompt, response; a prompt that already carries the Alpaca template loses it."""
    prompt = row["prompt"]
    instruction = extract_instruction(prompt)
    repairs = () if instruction == prompt else ("template_removed",)
    return Fields(instruction, _one_of(row, "response", "completion", "output"), repairs=repairs)


def read_grade_school_math(row: Row) -> Fields:
    """INSTRUCTION, RESPONSE: GSM8K in prompt wordings of Open-Assistant."""
    return Fields(row["INSTRUCTION"], row["RESPONSE"])


def read_databricks_dolly(row: Row) -> Fields:
    """instruction, context, response; the context goes below the instruction."""
    joined = join_input(row["instruction"], row.get("context") or "")
    return Fields(joined.instruction, row["response"], repairs=joined.repairs)


def read_gsm8k(row: Row) -> Fields:
    """question, answer: calculator notes ``<<…>>`` go, ``#### n`` becomes a last sentence.

    Cobbe et al. 2021, arXiv:2110.14168. Words teach the model a final answer in a form that
    people write as well.
    """
    answer = re.sub(r"<<[^<>]*>>", "", row["answer"])
    answer = re.sub(r"\n?####\s*(\S.*?)\s*$", r"\nThe answer is \1.", answer)
    return Fields(row["question"], answer.lstrip("\n"))


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


_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def read_messages(row: Row) -> Fields:
    """messages or conversations: system words and the first user turn, the first answer to it.

    Later turns are left out (repair ``shortened_conversation``). ValueError without a first turn
    of each kind, in that order.
    """
    turns: list[tuple[str, str]] = []
    for message in _one_of(row, "messages", "conversations"):
        if not isinstance(message, Mapping):
            raise ValueError(f"a message must be an object, not {type(message).__name__}")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("a message needs role and content (or from and value), both text")
        turns.append((_ROLES.get(role, role), content))
    system = [content for role, content in turns if role == "system"]
    spoken = [turn for turn in turns if turn[0] != "system"]
    if [role for role, _ in spoken[:2]] != ["user", "assistant"]:
        raise ValueError("the conversation does not begin with a user turn and an answer")
    instruction = "\n".join([*system, spoken[0][1]])
    repairs = ("shortened_conversation",) if len(spoken) > 2 else ()
    return Fields(instruction, spoken[1][1], repairs=repairs)


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


@dataclass(frozen=True, slots=True)
class Format:
    """A row reader and its columns: each of ``columns`` is a group of names, exactly one present.

    optional: columns that are text when they are there and not null.
    """

    read: Callable[[Row], Fields]
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    value: type = str

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
        read_prompt_response, (("prompt",), ("response", "completion", "output"))
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
}


def check_columns(rows: list[Row], *, name: str, location: str, row_format: RowFormat) -> None:
    """ValueError when the rows' columns are not the format's, with the format that would fit.

    A column counts as there when any row has it: single rows without it are rejected later.
    """
    found = frozenset().union(*rows)
    problem = FORMATS[row_format].misfit(found)
    if problem is None:
        return
    fitting = [str(other) for other, rule in FORMATS.items() if rule.misfit(found) is None]
    hint = f"; data.sources.{name}.format={' or '.join(fitting)} would fit" if fitting else ""
    raise ValueError(
        f"data.sources.{name}.format={row_format} does not fit {location}: {problem}, "
        f"and the columns are {', '.join(sorted(found))}{hint}"
    )


def read_example(
    row: Row, *, name: str, number: int, row_format: RowFormat
) -> tuple[Example, tuple[str, ...]] | Rejected:
    """Read one row: the example (not cleaned, without a group) and its repairs, or a rejection."""
    rule = FORMATS[row_format]
    for names in rule.columns:
        column = next((name for name in names if name in row), names[0])
        value = row.get(column)
        if not isinstance(value, rule.value):
            kind = "missing" if value is None else f"of type {type(value).__name__}"
            return Rejected(name, number, "wrong_type", f"{column} is {kind}", row)
    for column in rule.optional:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            detail = f"{column} is of type {type(value).__name__}"
            return Rejected(name, number, "wrong_type", detail, row)
    try:
        fields = rule.read(row)
    except ValueError as error:
        return Rejected(name, number, "unreadable_conversation", str(error), row)
    example = Example(name, number, fields.instruction, fields.response, fields.context, "")
    return example, fields.repairs


# --- places: a Hub id, a file or a folder -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source's rows are: a Hub id and its revision, or a local file or folder."""

    hub: str | None
    revision: str | None
    local: Path | None

    @property
    def name(self) -> str:
        """The place in words, for messages and the manifest."""
        if self.local is not None:
            return str(self.local)
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)


def locate(
    *, name: str, path: str, file: str, revision: str | None, split: str, root: str | None
) -> Place:
    """Find a source: at ``path`` when that exists here, else under ``root``, else on the Hub.

    Under ``root`` it is ``file_split`` or ``file`` with one of SUFFIXES, or a folder ``file``.
    ValueError when a local place was named and holds nothing, or cannot honour revision or split.
    """
    if root is None and not Path(path).expanduser().exists():
        if path.startswith((".", "/", "~")) or path.endswith(SUFFIXES):
            raise ValueError(f"data.sources.{name}.path={path}: there is no such file or folder")
        return Place(path, revision, None)
    if revision is not None:
        raise ValueError(
            f"data.sources.{name}.revision={revision} has no effect on local files: "
            f"set data.sources.{name}.revision=null"
        )
    if Path(path).expanduser().exists():
        local = Path(path).expanduser()
    else:
        assert root is not None
        local = _find_under(root, name=name, file=file, split=split)
    if local.is_file() and split != "train" and not _stem(local).endswith(f"_{split}"):
        raise ValueError(
            f"data.sources.{name}.split={split}, but {local} is one file without splits: call it "
            f"{_stem(local)}_{split}{local.name[len(_stem(local)) :]}, or set "
            f"data.sources.{name}.split=train"
        )
    return Place(None, None, local)


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def _find_under(root: str, *, name: str, file: str, split: str) -> Path:
    folder = embedded.DATA if root == EMBEDDED else Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.root={root}: there is no such folder")
    names = [f"{stem}{suffix}" for stem in (f"{file}_{split}", file) for suffix in SUFFIXES]
    for candidate in (*names, file):
        if (folder / candidate).exists():
            return folder / candidate
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
    raise ValueError(
        f"data.sources.{name}: data.root={root} has neither a folder {file} nor a file {file} or "
        f"{file}_{split} with one of {' '.join(SUFFIXES)}; it has {found} "
        f"(data.sources.{name}.file=NAME asks for another one)"
    )


def digest_place(place: Place) -> dict[str, str]:
    """SHA-256 of each file of a local place, by name; empty for the Hub (rows are digested)."""
    if place.local is None:
        return {}
    if place.local.is_file():
        return {place.local.name: digest(place.local)}
    return {
        str(path.relative_to(place.local)): digest(path)
        for path in sorted(place.local.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "cache-"))
    }


def digest_rows(rows: list[Row]) -> dict[str, str]:
    """SHA-256 of the rows themselves, for places without files of their own."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return {"rows": total.hexdigest()}


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line of a JSON Lines file that holds no row. number: from 1. problem: "is not …"."""

    number: int
    problem: str


def read_rows(
    place: Place, *, name: str, split: str, damaged: list[Damaged] | None = None
) -> list[Row]:
    """Read all rows of a place, in upstream's order. ValueError in one line when it cannot be.

    damaged: takes those lines of a JSON Lines file that hold no row; without it the first is an
    error.
    """
    if place.local is None:
        rows = _read_hub(place, name=name, split=split)
    elif place.local.is_dir():
        rows = _read_folder(place.local, name=name, split=split)
    elif place.local.name.endswith((".parquet", ".csv")):
        rows = _read_table(place.local, name=name)
    elif place.local.name.endswith(SUFFIXES):
        rows = _read_json(place.local, name=name, damaged=damaged)
    else:
        raise ValueError(
            f"data.sources.{name}: {place.local} is none of {', '.join(SUFFIXES)} and no folder"
        )
    if not rows:
        why = f": line {damaged[0].number} {damaged[0].problem}" if damaged else ""
        raise ValueError(f"data.sources.{name}: {place.name} has no rows{why}")
    return rows


def _read_json(path: Path, *, name: str, damaged: list[Damaged] | None) -> list[Row]:
    """JSON Lines, or one JSON list. Lines end at line feeds alone: U+2028 belongs to a string."""
    where = f"data.sources.{name}: {path}"
    data = read_unpacked(path, where).removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"[":
        return _read_list(data, where)
    rows: list[Row] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_read_line(line))
        except ValueError as error:
            if damaged is None:
                raise ValueError(f"{where} line {number} {error}") from error
            damaged.append(Damaged(number, str(error)))
    return rows


def _read_line(line: bytes) -> Row:
    """One row. ValueError whose text says what the line is not."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8: convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {_why(error)}") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not an object with columns")
    return row


def _read_list(data: bytes, where: str) -> list[Row]:
    try:
        rows = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        broken = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where} line {broken} is not UTF-8: convert the file to UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{where}{line} is not JSON: {_why(error)}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{where} row {number} is a {type(row).__name__}, not an object with columns"
            )
    return list(rows)


def _why(error: Exception) -> str:
    """What json found wrong, without the place."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _load_datasets() -> Any:
    """Import ``datasets`` without telemetry, bars or warnings."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    return datasets


def _stream(dataset: Any) -> list[Row]:
    batches = dataset.with_format("arrow").iter(batch_size=8192)
    return [row for batch in batches for row in batch.to_pylist()]


def _read_table(path: Path, *, name: str) -> list[Row]:
    """Parquet, or CSV whose every value is text."""
    datasets = _load_datasets()
    where = f"data.sources.{name}: {path}"
    if path.stat().st_size == 0:
        return []
    try:
        if path.suffix == ".parquet":
            stream = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True
            )
            return _stream(stream)
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file))
        stream = datasets.load_dataset(
            "csv",
            data_files=str(path),
            split="train",
            streaming=True,
            keep_default_na=False,
            features=datasets.Features({column: datasets.Value("string") for column in header}),
        )
        return _stream(stream)
    except StopIteration:
        return []
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{where} cannot be read as {path.suffix[1:]}: {root_line(error)}"
        ) from error


def _read_folder(folder: Path, *, name: str, split: str) -> list[Row]:
    """A data set saved with ``save_to_disk``, or a folder laid out like a Hub repository."""
    datasets = _load_datasets()
    where = f"data.sources.{name}: {folder}"
    try:
        if (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            if split not in saved:
                raise ValueError(f"there is no split {split}; the splits are {', '.join(saved)}")
            return _stream(saved[split])
        if (folder / "state.json").exists():
            return _stream(datasets.load_from_disk(str(folder)))
        return _stream(datasets.load_dataset(str(folder), split=split, streaming=True))
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{where} cannot be read: {root_line(error)}") from error


def _read_hub(place: Place, *, name: str, split: str) -> list[Row]:
    """A data set of the Hub, through the ordinary Hugging Face cache.

    ``OWNER/NAME:CONFIGURATION`` picks one of several configurations.
    """
    datasets = _load_datasets()
    import huggingface_hub

    answers = hub_answers(huggingface_hub.constants.ENDPOINT)
    if not answers:
        # Five retries of a name that does not resolve take 23 s and print ten lines.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    try:
        hub, _, configuration = str(place.hub).partition(":")
        return _stream(
            datasets.load_dataset(hub, configuration or None, revision=place.revision, split=split)
        )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        why = root_line(error) if answers else "it does not answer from here"
        raise ValueError(
            f"data.sources.{name}: {place.name} cannot be had from the Hub ({why}): "
            f"set data.root=FOLDER to a folder with local copies, or use data=sample"
        ) from error
