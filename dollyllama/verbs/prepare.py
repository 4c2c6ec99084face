"""``prepare``: the data step alone."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dollyllama import launch, preflight
from dollyllama.verbs.parser import parser


def main(arguments: Sequence[str]) -> None:
    """read, clean, split and tokenise the data that train.py would use; show what became of it"""
    command = parser("prepare", main.__doc__)
    command.add_argument(
        "overrides", nargs="*", help="as for train.py: data=sql data.max_length=256"
    )
    command.add_argument("--output", type=Path, help="folder for data.json and rejected.jsonl")
    command.add_argument("--examples", type=int, default=4, help="how many to show (default: 4)")
    given = command.parse_intermixed_args(arguments)
    run_config = launch.compose_run(given.overrides)
    preflight.check(run_config)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.data.show import count_table, show_examples
    from dollyllama.files import write_json, write_json_lines
    from dollyllama.model.load import load_tokenizer

    tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    started = datetime.datetime.now()
    output = given.output or Path("runs", "prepared", f"{started:%Y-%m-%d_%H-%M-%S-%f}")
    write_json(output / "data.json", data.manifest)
    write_json_lines(output / "rejected.jsonl", (asdict(row) for row in data.rejected))
    print(count_table(data.manifest))
    if given.examples > 0:
        print(f"\n{show_examples(data, tokenizer, given.examples, colour=sys.stdout.isatty())}")
    print(f"\n{output / 'data.json'}\n{output / 'rejected.jsonl'}")
