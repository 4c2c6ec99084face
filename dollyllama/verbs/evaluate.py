"""``evaluate``: the graders on a trained run."""

from __future__ import annotations

from collections.abc import Sequence

from dollyllama.verbs.parser import open_run, run_parser


def main(arguments: Sequence[str]) -> None:
    """measure a trained run on its held-out data: other decoding, more examples"""
    command = run_parser("evaluate", main.__doc__)
    given = command.parse_intermixed_args(arguments)
    run_config = open_run(given.run, given.overrides)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.evaluation.table import compare_table
    from dollyllama.run import measure, restore

    model, tokenizer = restore(run_config, given.run)
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    evaluated = measure(run_config, model, tokenizer, data.held_out)
    print(compare_table(None, evaluated.metrics))
