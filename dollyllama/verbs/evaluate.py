"""``evaluate``: the graders on a trained run."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dollyllama import preflight, remote
from dollyllama.config import (
    WITH_SCHEMA,
    Commercial,
    Grader,
    GroupBy,
    LossOn,
    Overlong,
    RowFormat,
    Run,
    Source,
)
from dollyllama.data.example import Example, Rejected
from dollyllama.verbs.parser import fetched, open_run, run_parser, written

if TYPE_CHECKING:
    from dollyllama.data.readers import Damaged
    from dollyllama.data.tokens import EncodedExample
    from dollyllama.evaluation.suite import Sample

#: The formats that --file can have, and how answers are graded unless --grader says otherwise.
GRADERS: dict[RowFormat, Grader] = {
    RowFormat.sql_create_context: Grader.sql,
    RowFormat.grade_school_math: Grader.maths,
    RowFormat.gsm8k: Grader.maths,
    RowFormat.self_instruct_starcoder: Grader.code,
    RowFormat.alpaca: Grader.text,
    RowFormat.prompt_response: Grader.text,
    RowFormat.databricks_dolly: Grader.text,
    RowFormat.messages: Grader.text,
    RowFormat.humaneval: Grader.code,
}


def main(arguments: Sequence[str]) -> int:
    """measure a trained run: its held-out data or a file, other decoding, more examples"""
    command = run_parser("evaluate", main.__doc__)
    command.add_argument(
        "--file",
        type=fetched,
        help="rows to grade instead of the held-out ones; "
        "the exit status is 1 when some lines hold none",
    )
    command.add_argument(
        "--format",
        type=_row_format,
        help=f"how the rows of --file read: {', '.join(GRADERS)}",
        metavar="FORMAT",
    )
    command.add_argument(
        "--source",
        help="the rows of --file read, and are graded, as those of this source of RUN",
        metavar="NAME",
    )
    command.add_argument(
        "--grader",
        choices=[*map(str, Grader)],
        help=f"for --file: {', '.join(Grader)} (default: by its format, or the source's)",
        metavar="NAME",
    )
    command.add_argument(
        "--output",
        type=written,
        help="folder for metrics.json and samples.jsonl (default: in RUN, where that is a folder)",
    )
    given = command.parse_intermixed_args(arguments)
    if given.output is not None and given.output.exists():
        raise ValueError(f"--output {given.output} exists already: name another folder")
    if [given.format, given.source].count(None) != (2 if given.file is None else 1):
        raise ValueError(
            "--file goes with --source NAME, for rows like those of a source of RUN, or --format "
            f"FORMAT: {', '.join(GRADERS)}"
        )
    if given.grader is not None and given.file is None:
        raise ValueError("--grader is for --file: held-out rows have their source's grader")
    sources = None
    if given.file is not None:
        if not given.file.is_file():
            what = "is a folder: name a file in it" if given.file.is_dir() else "is not there"
            raise ValueError(f"--file {given.file} {what}")
        if given.source is not None:
            sources = _as_source(given.file, given.source, given.grader, given.run)
        else:
            sources = _only_source(given.file, given.format, given.grader)
    run_config = open_run(given.run, given.overrides, sources=sources)
    if not run_config.evaluation.loss_examples and not run_config.evaluation.generate_examples:
        raise ValueError("evaluation=none measures nothing: add evaluation=quick, say")
    preflight.check_sandbox(run_config)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.evaluation.suite import unscored
    from dollyllama.evaluation.table import compare_table
    from dollyllama.files import write_json, write_json_lines
    from dollyllama.restore import restore, restore_merged
    from dollyllama.run import measure

    damaged: list[Damaged] = []
    rejected: list[Rejected] = []
    held_out: Sequence[EncodedExample]
    if given.file is not None:  # before the model is loaded, for its errors to come at once
        examples, rejected, damaged = _read_file(run_config, given.file)
    model, tokenizer = restore(run_config, given.run)
    if run_config.evaluation.merged:
        model = restore_merged(run_config, given.run, tokenizer)
    if given.file is not None:
        held_out, too_long = _encode(run_config, model, tokenizer, examples, given.file)
        rejected += too_long
        if len(held_out) < _FEW:
            print(
                f"warning: {len(held_out)} rows of {given.file} are left to score: with fewer than "
                f"{_FEW}, scores and their errors say little",
                file=sys.stderr,
            )
    else:
        with stage_bar("data") as progress:
            data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
        held_out = data.held_out
    measured = measure(run_config, model, tokenizer, held_out)
    started = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    output = given.output or remote.home(given.run) / "evaluations" / started
    graders = {name: source.grader for name, source in run_config.data.sources.items()}
    untested = _untested(run_config, measured.samples)
    record = {
        "decoding": asdict(run_config.decoding),
        "evaluation": asdict(run_config.evaluation),
        "seed": run_config.seed,
        "file": given.file.name if given.file else None,
        "graders": graders,
        "damaged": [{"number": each.number, "problem": each.problem} for each in damaged],
        "rejected": [asdict(each) for each in rejected],
        "unscored": unscored(measured.samples, graders),
        "untested": untested,
        "metrics": [asdict(metric) for metric in measured.metrics],
    }
    write_json(output / "metrics.json", record)
    write_json_lines(output / "samples.jsonl", (asdict(sample) for sample in measured.samples))
    print(compare_table(None, measured.metrics, primary=run_config.evaluation.primary))
    for name, count in untested.items():
        print(f"not run: {count} rows of {name} have no tests")
    left_out = [
        *(f"{given.file} line {each.number} {each.problem}" for each in damaged),
        *(f"{given.file} row {each.row}: {each.reason}, {each.detail}" for each in rejected),
    ]
    for line in left_out[:_SHOWN]:
        print(f"left out: {line}")
    if len(left_out) > _SHOWN:
        print(f"left out: {len(left_out) - _SHOWN} more, see {output / 'metrics.json'}")
    if left_out:
        total = len(held_out) + len(left_out)
        print(f"{len(held_out)} of {total} rows of {given.file} could be asked")
    print(f"\n{output / 'metrics.json'}\n{output / 'samples.jsonl'}")
    return _SOME_LINES_DAMAGED if damaged else 0


#: Tells that some lines of a file hold no row, and the others were measured.
_SOME_LINES_DAMAGED = 1

#: So many rows that are left out are named in the terminal.
_SHOWN = 5

#: Fewer rows than that get a warning.
_FEW = 20

#: What a source is called where its file's name cannot be a source's.
_UNNAMED = "file"


def _row_format(text: str) -> RowFormat:
    """A format of ``GRADERS``; of those that sources have, two more want what a flag cannot say."""
    if text in GRADERS:
        return RowFormat(text)
    raise argparse.ArgumentTypeError(
        f"{text} is none of {', '.join(GRADERS)}: rows like those of a source of RUN are read by "
        "--source NAME, and others are written as one of these first, e.g. jq -c "
        "'{instruction: .q, output: .a}' FILE > NEW.jsonl for alpaca"
    )


def _only_source(file: Path, row_format: RowFormat, wish: str | None) -> dict[str, Source]:
    """The file as a source, by its name."""
    grader = Grader(wish or GRADERS[row_format])
    if grader is Grader.sql and row_format not in WITH_SCHEMA:
        raise ValueError(
            f"--grader sql runs queries on a row's schema, and rows of --format {row_format} have "
            f"none ({', '.join(sorted(WITH_SCHEMA))} has): leave it out for {GRADERS[row_format]}"
        )
    source = Source(
        path=str(file),
        file=file.name,
        revision=None,
        split="train",  # what a file without splits is
        format=row_format,
        columns={},
        group_by=GroupBy.instruction,
        rules=[],
        grader=grader,
        licence="unknown",
        licence_stated_at="",
        commercial=Commercial.unclear,
        weight=1.0,
        max_rows=None,
        max_tokens=None,
    )
    name = file.name.partition(".")[0]
    return {_UNNAMED if name in ("", "all") else name: source}


def _as_source(file: Path, name: str, wish: str | None, run: Path) -> dict[str, Source]:
    """The file in place of the source ``name`` of the run: its columns and its grader."""
    own = open_run(run, []).data.sources
    if name not in own:
        near = get_close_matches(name, own, n=1, cutoff=0.0)[0]
        raise ValueError(f"--source {name} is no source of {run}: did you mean {near}?")
    source = own[name]
    if source.format is RowFormat.turns:
        raise ValueError(f"--source {name}: its rows have no answers to be graded by")
    return {
        name: replace(
            source,
            path=str(file),
            file=file.name,
            revision=None,
            split="train",
            rules=[],  # every row is asked
            grader=Grader(wish or source.grader),
            max_rows=None,
            max_tokens=None,
        )
    }


def _read_file(run_config: Run, file: Path) -> tuple[list[Example], list[Rejected], list[Damaged]]:
    """Every row of the only source; the others are rows and lines that cannot be asked.

    ValueError when the file cannot be read, or when its grader can judge none of the rows.
    """
    from dollyllama.data.formats import check_columns
    from dollyllama.data.ingest import clean_rows
    from dollyllama.data.sources import locate, read_rows
    from dollyllama.evaluation.suite import SCORERS

    ((name, source),) = run_config.data.sources.items()
    damaged: list[Damaged] = []
    try:
        place = locate(name, source, root=None)
        rows = read_rows(place, name=name, split=source.split, damaged=damaged)
        check_columns(rows, name=name, location=place.name, source=source)
        examples, rejected, *_ = clean_rows(rows, source, name=name)
    except ValueError as error:
        # What a source's keys are called here.
        said = str(error).replace(f"data.sources.{name}.format=", "--format ")
        raise ValueError(said.replace(f"data.sources.{name}: ", "--file ")) from None
    if not examples:
        _refuse(file, rejected)
    # A grader that can judge a row judges its reference.
    if run_config.evaluation.generate_examples and not any(
        SCORERS[source.grader](each.response, each, False) for each in examples
    ):
        raise ValueError(
            f"the grader {source.grader} can judge no row of {file}: no reference is "
            f"{'a number' if source.grader is Grader.maths else 'Python'}; name another --grader"
        )
    return examples, rejected, damaged


def _encode(
    run_config: Run, model: Any, tokenizer: Any, examples: Sequence[Example], file: Path
) -> tuple[list[EncodedExample], list[Rejected]]:
    """Encode examples as far as the model has positions; the second list has no room for an answer.

    Not as far as ``data.max_length``, which is training's.
    """
    from dollyllama.data.prompt import build_prompt
    from dollyllama.data.tokens import encode_all, encode_prompts

    positions = model.config.max_position_embeddings
    room, beside = positions - 1, "a token of the answer"
    if run_config.evaluation.generate_examples:
        answer = run_config.decoding.max_new_tokens
        room, beside = positions - answer, f"decoding.max_new_tokens={answer}"
    prompt = run_config.data.prompt
    prompts = encode_prompts(
        [build_prompt(each, prompt, tokenizer) for each in examples], tokenizer
    )
    fitting: list[Example] = []
    rejected: list[Rejected] = []
    for example, ids in zip(examples, prompts, strict=True):
        if len(ids) <= room:
            fitting.append(example)
            continue
        detail = f"{len(ids)} tokens and {beside} are more than the model's {positions} positions"
        rejected.append(Rejected(example.source, example.row, "prompt_too_long", detail, {}))
    if not fitting:
        _refuse(file, rejected)
    encoded, _ = encode_all(
        fitting,
        tokenizer,
        prompt=prompt,
        max_length=positions,
        loss_on=LossOn.response,
        overlong=Overlong.truncate,
    )
    return encoded, rejected


def _refuse(file: Path, rejected: Sequence[Rejected]) -> NoReturn:
    first = rejected[0]
    raise ValueError(
        f"--file {file}: none of its rows can be asked (row {first.row}: {first.reason}, "
        f"{first.detail})"
    )


def _untested(run_config: Run, samples: Sequence[Sample]) -> dict[str, int]:
    """How many questions have no tests, by source whose answers are run where they have."""
    scores = {
        name: run_config.evaluation.scores(source)
        for name, source in run_config.data.sources.items()
    }
    untested = {
        (each.source, each.id)
        for each in samples
        if "passes" in scores[each.source] and "passes" not in each.scores
    }
    return dict(Counter(source for source, _ in untested))
