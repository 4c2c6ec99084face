"""Raw rows of a source to its store: every step that looks at one row alone, on all cores.

read -> clean -> rules -> quality -> tokenise -> shingle, some thousand rows at a time. Sources of
more than one such chunk are worked on by several processes; each writes its parts itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from dollyllama.config import Data, LossOn, Source
from dollyllama.data.clean import clean
from dollyllama.data.cores import on_all_cores
from dollyllama.data.dedupe import exact_key
from dollyllama.data.example import Example, Rejected
from dollyllama.data.formats import Row, check_columns, read_example
from dollyllama.data.near import Content, content, shingle
from dollyllama.data.quality import apply_rules, check_quality
from dollyllama.data.readers import SHOWN, Chunk, Damaged
from dollyllama.data.sources import Place, digest_place, digest_rows, iter_rows, locate
from dollyllama.data.split import side_hash
from dollyllama.data.store import (
    KEPT,
    REFUSED,
    Part,
    Store,
    finish_store,
    part_is_there,
    write_part,
)
from dollyllama.data.tokens import EncodedExample, encode_all
from dollyllama.files import locked

#: Rows of a part: few enough that several processes finish a source at about the same time.
PART_ROWS = 2048

#: Called with the number of rows that are done.
Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A source to prepare, where it is, and the digests of what is there."""

    name: str
    source: Source
    data: Data
    place: Place
    digests: dict[str, str]


def find_source(data: Data, name: str, source: Source) -> Job:
    """Locate a source and take its digests. ValueError when it is not there or cannot be read."""
    place = locate(name, source, root=data.root)
    job = Job(name, source, data, place, digest_place(place))
    if place.local is not None:
        return job
    # The Hub's files are behind a cache; the rows are what counts.
    rows = (row for chunk in _chunks(job, None) for row in chunk.parse(_where(job)))
    return replace(job, digests=digest_rows(rows))


def _where(job: Job) -> str:
    return f"data.sources.{job.name}: {job.place.name}"


def _chunks(job: Job, digests: dict[str, str] | None) -> Iterator[Chunk]:
    return iter_rows(
        job.place,
        name=job.name,
        split=job.source.split,
        chunk_rows=PART_ROWS,
        digests=digests if job.place.local is not None else None,
    )


def _parse(job: Job, chunk: Chunk) -> list[Row | Damaged]:
    """The rows of ``chunk``; those that a source begins with show whether its columns fit."""
    rows = chunk.parse(_where(job))
    if chunk.first == 0:
        whole = [row for row in rows if not isinstance(row, Damaged)]
        check_columns(whole, name=job.name, location=job.place.name, source=job.source)
    return rows


# --- questions of a benchmark --------------------------------------------------------------------


def read_questions(job: Job) -> list[tuple[str, Content]]:
    """What a benchmark asks, each with its name in words; every turn of a user is a question.

    ValueError when the benchmark cannot be read.
    """
    questions = []
    for chunk in _chunks(job, job.digests):
        for number, row in enumerate(_parse(job, chunk), start=chunk.first):
            if isinstance(row, Damaged):
                raise ValueError(f"{_where(job)} line {row.number} {row.problem}")
            read = read_example(row, name=job.name, number=number, source=job.source)
            if isinstance(read, Rejected):
                raise ValueError(f"{_where(job)} row {number}: {read.detail}")
            questions += [(f"{job.name} row {number}", each) for each in questions_of(read[0])]
    return questions


def questions_of(example: Example) -> list[Content]:
    """What an example asks and how it is answered, turn by turn, in ``near.content``'s shape."""
    turns: list[Content] = []
    for role, text in example.history:
        if role == "user":
            turns.append((text, "", ""))
        elif role == "assistant" and turns:
            turns[-1] = (turns[-1][0], "", text)
    return [*turns, content(replace(example, history=()))]


def parts_of(example: Example) -> list[Content]:
    """What an example asks by itself: each turn of a conversation, an input without instruction.

    In ``near.content``'s shape, without answers; none where all that is asked is one text.
    """
    turns = [(question, given, "") for question, given, _ in questions_of(example)]
    parts = turns if example.history else []
    return [*parts, (example.input, "", "")] if example.input else parts


# --- one part -----------------------------------------------------------------------------------


def clean_rows(
    rows: Sequence[Row | Damaged], source: Source, *, name: str, first: int = 0
) -> tuple[list[Example], list[Rejected], Counter[str], Counter[str]]:
    """Read, choose and clean rows of a source.

    Returns examples, what cannot be one (with ``raw`` left empty), repairs by kind, and how many
    rows are left after each step. first: the number of the first row.
    """
    read: list[tuple[Example, tuple[str, ...]]] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=first):
        if isinstance(row, Damaged):
            detail = f"line {row.number} {row.problem}"
            rejected.append(Rejected(name, number, row.reason, detail, {}))
            continue
        outcome = read_example(row, name=name, number=number, source=source)
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            read.append(outcome)
    # The source's own rules first: they are cheap, and of SQL they leave 1 row in 17.
    chosen, refused = apply_rules((example for example, _ in read), source.rules)
    rejected += refused
    repairs_of = {example.row: repairs for example, repairs in read}
    examples: list[Example] = []
    repairs: Counter[str] = Counter()
    for example in chosen:
        cleaned = clean(example, repairs_of[example.row], group_by=source.group_by)
        if isinstance(cleaned, Rejected):
            rejected.append(cleaned)
        else:
            examples.append(cleaned[0])
            repairs.update(cleaned[1])
    return examples, rejected, repairs, Counter(rules=len(chosen), cleaned=len(examples))


def make_part(job: Job, chunk: Chunk, tokenizer: Any) -> Part:
    """Take the rows of ``chunk`` through every step.

    ValueError when the columns of a source's first rows are not those of its format.
    """
    read = _parse(job, chunk)
    examples, rejected, repaired, counts = clean_rows(
        read, job.source, name=job.name, first=chunk.first
    )
    counts["read"] = len(read)
    examples, refused = check_quality(examples, job.data.quality, job.source.grader)
    rejected += refused
    counts["quality"] = len(examples)
    trained, evaluated, refused = _encode(examples, job.data, tokenizer)
    rejected += refused
    counts["fits"] = len(trained)
    raw = {
        number: row.text if isinstance(row, Damaged) else row
        for number, row in enumerate(read, start=chunk.first)
    }
    return Part(
        _kept_batch(trained, evaluated, raw),
        _refused_batch(rejected, raw),
        counts,
        repaired,
        Counter(each.reason for each in rejected),
    )


def _encode(
    examples: Sequence[Example], data: Data, tokenizer: Any
) -> tuple[list[EncodedExample], list[EncodedExample], list[Rejected]]:
    """Encode for training and for evaluation, whose loss is over responses whatever is trained on.

    So runs that train on different parts of the text can be compared. A row fits both or neither.
    """

    def encode(loss_on: LossOn) -> tuple[list[EncodedExample], list[Rejected]]:
        return encode_all(
            examples,
            tokenizer,
            prompt=data.prompt,
            max_length=data.max_length,
            loss_on=loss_on,
            loss_roles=data.loss_roles if loss_on is LossOn.roles else None,
            overlong=data.overlong,
        )

    trained, rejected = encode(data.loss_on)
    if data.loss_on is LossOn.response:
        return trained, trained, rejected
    evaluated, also = encode(LossOn.response)
    refused = {each.row: each for each in chain(also, rejected)}

    def fit(encoded: list[EncodedExample]) -> list[EncodedExample]:
        return [each for each in encoded if each.example.row not in refused]

    return fit(trained), fit(evaluated), [refused[row] for row in sorted(refused)]


def _kept_batch(
    trained: Sequence[EncodedExample], evaluated: Sequence[EncodedExample], raw: dict[int, Any]
) -> pa.RecordBatch:
    examples = [each.example for each in trained]
    values, offsets = shingle([content(example) for example in examples])
    columns: dict[str, Any] = {
        name: [getattr(example, name) for example in examples]
        for name in ("row", "instruction", "input", "response", "context", "group")
    }
    columns |= {
        "history": [
            [{"role": role, "content": text} for role, text in example.history]
            for example in examples
        ],
        "raw": [_in_json(raw[example.row]) for example in examples],
        "id": [int(example.id, 16) for example in examples],
        "key": [exact_key(example) for example in examples],
        "side": [side_hash(example.group) for example in examples],
        "tokens": [len(each.ids) for each in trained],
        "supervised": [each.supervised for each in trained],
        "held_out_supervised": [each.supervised for each in evaluated],
        "truncated": [each.truncated for each in trained],
        "ids": [each.ids for each in trained],
        "loss": [list(chain.from_iterable(each.spans)) for each in trained],
        "held_out_loss": [list(chain.from_iterable(each.spans)) for each in evaluated],
    }
    shingles = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))
    arrays = [
        shingles if field.name == "shingles" else pa.array(columns[field.name], field.type)
        for field in KEPT
    ]
    return pa.record_batch(arrays, schema=KEPT)


def _refused_batch(rejected: list[Rejected], raw: dict[int, Any]) -> pa.RecordBatch:
    rejected.sort(key=lambda each: each.row)
    columns = {
        "row": [each.row for each in rejected],
        "reason": [each.reason for each in rejected],
        "detail": [each.detail for each in rejected],
        "raw": [_shortened(raw[each.row], each.reason) for each in rejected],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in REFUSED]
    return pa.record_batch(arrays, schema=REFUSED)


def _in_json(raw: Row | str) -> str:
    """A row as it is kept: dates, bytes and the like, which JSON lacks, in words."""
    return json.dumps(raw, default=str)


def _shortened(raw: Row | str, reason: str) -> str:
    """The same; of a row that is too large its beginning."""
    whole = _in_json(raw)
    return json.dumps(whole[:SHOWN]) if reason == "row_too_large" else whole


# --- all parts ----------------------------------------------------------------------------------


def build_store(job: Job, folder: Path, tokenizer: Any, done: Done) -> Store:
    """The store of a source in ``folder``, made or finished where it is not whole.

    Other processes that want it wait. ValueError when the source cannot be read, or changed
    meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, None):
        try:
            store = Store(folder)
        except ValueError:
            pass
        else:
            if not store.damaged():
                return store
            store.discard()
        parts = 0

        def missing() -> Iterator[tuple[int, Chunk]]:
            nonlocal parts
            for number, chunk in enumerate(_chunks(job, job.digests)):
                parts = number + 1
                if part_is_there(folder, number):
                    done(len(chunk))
                else:
                    yield number, chunk

        def make(task: tuple[int, Chunk]) -> int:
            number, chunk = task
            part = make_part(job, chunk, tokenizer)
            write_part(folder, number, part)
            return part.rows["read"]

        for rows in on_all_cores(make, missing()):
            done(rows)
        finish_store(folder, parts)
        return Store(folder)


def settings_of(job: Job) -> dict[str, Any]:
    """Everything in the config that decides what is in a store."""
    source, data = asdict(job.source), asdict(job.data)
    own = ("split", "format", "columns", "group_by", "rules", "grader")
    shared = ("quality", "prompt", "max_length", "overlong", "loss_on", "loss_roles")
    return (
        {"source": job.name}
        | {key: source[key] for key in own}
        | {key: data[key] for key in shared}
    )
