"""``prepare``: the data step alone."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from dollyllama import launch, preflight
from dollyllama.verbs.parser import parser, written


def main(arguments: Sequence[str]) -> int:
    """read, clean, split and tokenise the data that train.py would use; show what became of it"""
    command = parser("prepare", main.__doc__)
    command.add_argument(
        "overrides", nargs="*", help="as for train.py: data=sql data.max_length=256"
    )
    command.add_argument("--output", type=written, help="folder for data.json and the record")
    command.add_argument("--examples", type=int, default=4, help="how many to show (default: 4)")
    command.add_argument(
        "--html", action="store_true", help="also write data.html, a page to look at"
    )
    command.add_argument(
        "--check", action="store_true", help="only see that what is prepared is undamaged"
    )
    given = command.parse_intermixed_args(arguments)
    run_config = launch.compose_run(given.overrides)
    preflight.check(run_config)

    from dollyllama.bars import stage_bar
    from dollyllama.data.mix import MixReport, Share
    from dollyllama.data.prepare import RECORD, check, write_record
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.data.show import count_table, mix_table, show_examples
    from dollyllama.model.load import load_tokenizer

    tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)
    if given.check:
        damaged = check(run_config.data, tokenizer, seed=run_config.seed)
        for path in damaged:
            print(f"damaged: {path}")
        print("the next prepare makes them again" if damaged else "all files are as written")
        return 1 if damaged else 0
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    started = datetime.datetime.now()
    output = given.output or Path("runs", "prepared", f"{started:%Y-%m-%d_%H-%M-%S-%f}")
    write_record(data, output)
    print(count_table(data.manifest))
    shares = {name: Share(**share) for name, share in data.manifest["mix"].items()}
    print(f"\n{mix_table(MixReport(shares))}")
    if given.examples > 0:
        print(f"\n{show_examples(data, tokenizer, given.examples, colour=sys.stdout.isatty())}")
    print()
    for name in ("data.json", *RECORD):
        print(output / name)
    if given.html:
        from dollyllama.data.page import data_page
        from dollyllama.files import write_text

        write_text(output / "data.html", data_page(data, tokenizer))
        print(output / "data.html")
    return 0
