"""``merge``: a trained adapter and its base as one model, verified before it is published."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dollyllama import config, preflight
from dollyllama.config import Dtype
from dollyllama.files import locked
from dollyllama.verbs.parser import open_run, require_positive, run_parser, written

#: A merge beyond either is not published. docs/merging.md has the measurements behind them.
MAX_KL = 0.01
MIN_GREEDY = 0.95


def main(arguments: Sequence[str]) -> int:
    """write adapter and base as one model, and publish it if both agree on held-out rows"""
    command = run_parser("merge", main.__doc__)
    given, run_config = read_options(command, arguments)
    with making(given.output) as folder:
        if not write_verified(run_config, given, folder):
            return 1
        folder.rename(given.output)
    print(f"\n{given.output}")
    return 0


def read_options(
    command: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, config.Run]:
    """Where to write, what to merge into, how far the result may be from the adapter; and the run.

    ValueError for a number below 1, an output that is there, or a run that cannot be opened.
    """
    command.add_argument("--output", type=written, required=True, help="folder to make")
    command.add_argument(
        "--base",
        choices=["quantised", "original"],
        default="quantised",
        help="weights to merge into: as the adapter saw them (default), or the checkpoint's own",
    )
    command.add_argument(
        "--dtype", choices=[*map(str, Dtype)], help="default: the run's model.dtype"
    )
    command.add_argument("--max-shard-mib", type=int, default=2048, help="default: 2048")
    command.add_argument("--rows", type=int, default=16, help="held-out rows to verify on")
    command.add_argument("--max-kl", type=float, default=MAX_KL, help=f"nats, default {MAX_KL}")
    command.add_argument(
        "--min-greedy", type=float, default=MIN_GREEDY, help=f"share, default {MIN_GREEDY}"
    )
    command.add_argument("--publish-anyway", action="store_true", help="beyond the tolerance too")
    given = command.parse_intermixed_args(arguments)
    require_positive(given, "max_shard_mib", "rows")
    if given.output.exists():
        raise ValueError(f"--output {given.output} exists already: name another folder")
    run_config = open_run(given.run, given.overrides)
    preflight.check_sandbox(run_config)
    return given, run_config


@contextmanager
def making(output: Path) -> Iterator[Path]:
    """A path that is free, to be renamed to ``output`` once it is whole; gone at the end if not.

    It is in a hidden folder beside ``output``, locked as long as this process lives: what a killed
    one has left there is removed. ValueError when another process is making the same output.
    """
    output = output.absolute()
    hidden = output.with_name(f".{output.name}.tmp")
    hidden.mkdir(parents=True, exist_ok=True)
    with locked(hidden, f"--output {output} is being made by another process: wait"):
        try:
            for left in hidden.iterdir():
                print(f"removing {left}, which a killed process has left")
                shutil.rmtree(left)
            yield hidden / output.name
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def write_verified(run_config: config.Run, given: argparse.Namespace, folder: Path) -> bool:
    """Merge the run ``given.run`` into a new ``folder``; whether it may be published.

    given: has the options of ``read_options``. What the comparison with the adapter found is
    printed; a folder that may be published has it in ``merge.json`` and its model card.
    """
    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.files import digest, write_json, write_text
    from dollyllama.model.agreement import choose_rows, compare, logits_of
    from dollyllama.model.load import load_merged
    from dollyllama.model.merge import Base, write_merged
    from dollyllama.model.merged_card import merged_card
    from dollyllama.restore import choose_device, restore
    from dollyllama.run import measure

    model, tokenizer = restore(run_config, given.run)
    base_folder = preflight.require_model_folder(run_config)
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    rows = choose_rows(data.held_out, given.rows)
    adapter_logits = logits_of(model, rows)
    adapter_scores = _scores(measure(run_config, model, tokenizer, data.held_out))
    del model  # one model at a time

    dtype = Dtype(given.dtype or run_config.model.dtype)
    write_merged(
        base_folder,
        given.run / "adapter",
        folder,
        tokenizer=tokenizer,
        base=Base(given.base),
        base_dtype=run_config.model.dtype,
        quantization=run_config.quantization,
        dtype=dtype,
        max_shard_bytes=given.max_shard_mib * 2**20,
    )
    merged = load_merged(folder, choose_device(run_config.device))
    agreement = compare(adapter_logits, logits_of(merged, rows), rows)
    if math.isnan(agreement.kl):
        raise ValueError(f"in {dtype} the merged model computes no numbers: try another --dtype")
    merged_scores = _scores(measure(run_config, merged, tokenizer, data.held_out))
    beyond = {
        "max_kl": agreement.kl > given.max_kl,
        "min_greedy": agreement.greedy < given.min_greedy,
    }
    record: dict[str, Any] = {
        "adapter": digest(given.run / "adapter" / "adapter_model.safetensors"),
        "base": given.base,
        "dtype": str(dtype),
        "prompt": run_config.data.prompt.value,
        "rows": len(rows),
        "tolerance": {"max_kl": given.max_kl, "min_greedy": given.min_greedy},
        "exceeded": [name for name, is_so in beyond.items() if is_so],
        "agreement": asdict(agreement),
        "scores": {
            name: [value, merged_scores.get(name)] for name, value in adapter_scores.items()
        },
    }
    for name, value in record["agreement"].items():
        print(f"{name:26} {value:.6g}")
    if record["exceeded"]:
        print(
            f"merged and adapter differ by more than --max-kl {given.max_kl:g} "
            f"--min-greedy {given.min_greedy:g} allow"
        )
        if not given.publish_anyway:
            print("nothing was published: --publish-anyway overrules it")
            return False
    write_json(folder / "merge.json", record)
    write_text(folder / "README.md", merged_card(asdict(run_config), merge=record))
    return True


def _scores(measured: Any) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in measured.metrics}
