"""``merge``: a trained adapter and its base as one model, verified before it is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dollyllama import preflight
from dollyllama.config import Dtype
from dollyllama.verbs.parser import open_run, require_positive, run_parser

#: A merge beyond either is not published. docs/merging.md has the measurements behind them.
MAX_KL = 0.01
MIN_GREEDY = 0.95


def main(arguments: Sequence[str]) -> int:
    """write adapter and base as one model, and publish it if both agree on held-out rows"""
    command = run_parser("merge", main.__doc__)
    command.add_argument("--output", type=Path, required=True, help="folder to make")
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
    output = given.output.absolute()
    if output.exists():
        raise ValueError(f"--output {given.output} exists already: name another folder")
    run_config = open_run(given.run, given.overrides)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.files import write_json, write_text
    from dollyllama.model.agreement import compare, logits_of
    from dollyllama.model.load import load_merged
    from dollyllama.model.merge import Base, write_merged
    from dollyllama.model.merged_card import merged_card
    from dollyllama.run import choose_device, measure, restore

    model, tokenizer = restore(run_config, given.run)
    base_folder = preflight.model_folder(run_config.model.path, run_config.model.revision)
    if base_folder is None:
        raise ValueError(
            f"model.path={run_config.model.path} is not in the Hub's cache: load it once"
        )
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    stride = max(1, len(data.held_out) // given.rows)
    rows = data.held_out[::stride][: given.rows]
    ids = [row.ids for row in rows]
    adapter_logits = logits_of(model, ids)
    adapter_scores = _scores(measure(run_config, model, tokenizer, data.held_out))
    del model  # one model at a time

    dtype = Dtype(given.dtype or run_config.model.dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        write_merged(
            base_folder,
            given.run / "adapter",
            temporary,
            tokenizer=tokenizer,
            base=Base(given.base),
            base_dtype=run_config.model.dtype,
            quantization=run_config.quantization,
            dtype=dtype,
            max_shard_bytes=given.max_shard_mib * 2**20,
        )
        merged = load_merged(temporary, choose_device(run_config.device))
        agreement = compare(
            adapter_logits, logits_of(merged, ids), ids, [row.masked for row in rows]
        )
        merged_scores = _scores(measure(run_config, merged, tokenizer, data.held_out))
        record: dict[str, Any] = {
            "base": given.base,
            "dtype": str(dtype),
            "rows": len(rows),
            "tolerance": {"max_kl": given.max_kl, "min_greedy": given.min_greedy},
            "agreement": asdict(agreement),
            "scores": {
                name: [value, merged_scores.get(name)] for name, value in adapter_scores.items()
            },
        }
        for name, value in record["agreement"].items():
            print(f"{name:26} {value:.6g}")
        # Not "beyond": a KL that is no number is refused too.
        if not (agreement.kl <= given.max_kl and agreement.greedy >= given.min_greedy):
            print(
                f"merged and adapter differ by more than --max-kl {given.max_kl:g} "
                f"--min-greedy {given.min_greedy:g} allow"
            )
            if not given.publish_anyway:
                print("nothing was published: --publish-anyway overrules it")
                return 1
        write_json(temporary / "merge.json", record)
        write_text(temporary / "README.md", merged_card(asdict(run_config), merge=record))
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"\n{given.output}")
    return 0


def _scores(measured: Any) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in measured.metrics}
