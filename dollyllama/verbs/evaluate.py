"""``evaluate``: the graders on a trained run."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dollyllama.config import Data, Grader, GroupBy, LossOn, Overlong, RowFormat, Run
from dollyllama.data.example import Rejected
from dollyllama.verbs.parser import open_run, run_parser

#: How answers to a file's rows are graded unless --grader says otherwise.
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


def main(arguments: Sequence[str]) -> None:
    """measure a trained run: its held-out data or a file, other decoding, more examples"""
    command = run_parser("evaluate", main.__doc__)
    command.add_argument("--file", type=Path, help="rows to grade instead of the held-out ones")
    command.add_argument(
        "--format",
        choices=[*map(str, RowFormat)],
        help=f"how the rows of --file read: {', '.join(RowFormat)}",
        metavar="FORMAT",
    )
    command.add_argument(
        "--grader",
        choices=[*map(str, Grader)],
        help=f"for --file: {', '.join(Grader)} (default: by its format)",
        metavar="NAME",
    )
    command.add_argument(
        "--output", type=Path, help="folder for metrics.json and samples.jsonl (default: in RUN)"
    )
    given = command.parse_intermixed_args(arguments)
    if given.output is not None and given.output.exists():
        raise ValueError(f"--output {given.output} exists already: name another folder")
    run_config = open_run(given.run, given.overrides)
    if (given.file is None) != (given.format is None):
        raise ValueError(f"--file and --format go together: formats are {', '.join(RowFormat)}")
    if given.grader is not None and given.file is None:
        raise ValueError("--grader is for --file: held-out rows have their source's grader")
    if given.file is not None:
        grader = Grader(given.grader or GRADERS[RowFormat(given.format)])
        run_config = _about_file(run_config, given.file, RowFormat(given.format), grader)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.evaluation.table import compare_table
    from dollyllama.files import write_json, write_json_lines
    from dollyllama.run import measure, restore

    model, tokenizer = restore(run_config, given.run)
    rejected: list[Rejected] = []
    if given.file is not None:
        held_out, rejected = _read_file(run_config.data, tokenizer)
    else:
        with stage_bar("data") as progress:
            data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
        held_out = data.held_out
    measured = measure(run_config, model, tokenizer, held_out)
    started = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    output = given.output or given.run / "evaluations" / started
    record = {
        "decoding": asdict(run_config.decoding),
        "evaluation": asdict(run_config.evaluation),
        "seed": run_config.seed,
        "file": given.file.name if given.file else None,
        "graders": {name: source.grader for name, source in run_config.data.sources.items()},
        "rejected": [asdict(each) for each in rejected],
        "metrics": [asdict(metric) for metric in measured.metrics],
    }
    write_json(output / "metrics.json", record)
    write_json_lines(output / "samples.jsonl", (asdict(sample) for sample in measured.samples))
    print(compare_table(None, measured.metrics, primary=run_config.evaluation.primary))
    for each in rejected[:_SHOWN]:
        print(f"left out: row {each.row}: {each.reason}, {each.detail}")
    if len(rejected) > _SHOWN:
        print(f"left out: {len(rejected) - _SHOWN} more rows, see {output / 'metrics.json'}")
    print(f"\n{output / 'metrics.json'}\n{output / 'samples.jsonl'}")


#: So many rejected rows are named in the terminal.
_SHOWN = 5


def _about_file(run_config: Run, file: Path, row_format: RowFormat, grader: Grader) -> Run:
    """The run's config with the file as its only source."""
    if not file.is_file():
        what = "is a folder: name a file in it" if file.is_dir() else "is not there"
        raise ValueError(f"--file {file} {what}")
    a_source = next(iter(run_config.data.sources.values()))
    source = replace(
        a_source,
        path=str(file),
        file=file.name,
        revision=None,
        split="train",  # what a file without splits is
        format=row_format,
        group_by=GroupBy.instruction,
        rules=[],
        grader=grader,
        licence="unknown",
        licence_stated_at="",
    )
    name = file.name.partition(".")[0]
    data = replace(run_config.data, sources={name: source}, root=None)
    primary = run_config.evaluation.primary
    evaluation = run_config.evaluation
    if primary is not None and primary.partition("/")[2] != "all":
        evaluation = replace(evaluation, primary=None)
    return replace(run_config, data=data, evaluation=evaluation)


def _read_file(data: Data, tokenizer: Any) -> tuple[list[Any], list[Rejected]]:
    """Encode every row of the only source; the second list holds what cannot be asked."""
    from dollyllama.data.prepare import clean_rows, place_of
    from dollyllama.data.sources import read_rows
    from dollyllama.data.tokens import encode_all

    ((name, source),) = data.sources.items()
    place = place_of(source, name=name, root=data.root)
    rows = read_rows(place, name=name, split=source.split)
    try:
        examples, rejected, _ = clean_rows(rows, source, name=name, location=place.name)
    except ValueError as error:
        raise ValueError(str(error).replace(f"data.sources.{name}.format=", "--format ")) from None
    encoded, too_long = encode_all(
        examples,
        tokenizer,
        max_length=data.max_length,
        loss_on=LossOn.response,
        overlong=Overlong.truncate,
    )
    rejected += too_long
    if not encoded:
        raise ValueError(f"{place.name}: none of its {len(rows)} rows can be asked")
    return encoded, rejected
