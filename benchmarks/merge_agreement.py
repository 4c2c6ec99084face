"""How far a run's merged model is from the adapter on its base, merged in our ways and in others.

    python -m benchmarks.merge_agreement RUN [--rows 16]

The other ways are PEFT's ``merge_and_unload`` on the model as the run loads it (a quantised weight
is dequantised, added to and quantised again), and on the base loaded anew in float16. Each is
compared with the adapter on its base, as training left them, on the same held-out rows and by the
same measures as ``merge`` verifies with.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dollyllama import config
from dollyllama.card import markdown_table
from dollyllama.data.prepare import prepare
from dollyllama.model.adapter import load_adapter
from dollyllama.model.agreement import choose_rows, compare, logits_of
from dollyllama.model.load import load_base
from dollyllama.model.merge import Base
from dollyllama.restore import choose_device, restore, restore_merged
from dollyllama.verbs.parser import open_run

UNQUANTISED = config.Quantization(
    method=config.QuantizationMethod.none, double=None, compute_dtype=None
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--rows", type=int, default=16, help="held-out rows to compare on")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message="Merge lora module to")  # that rounding is the point
    run_config = open_run(given.run, [])
    model, tokenizer = restore(run_config, given.run)
    data = prepare(run_config.data, tokenizer, seed=run_config.seed)
    rows = choose_rows(data.held_out, given.rows)
    expected = logits_of(model, rows)
    del model  # one model at a time
    lines = []
    for way, merged in ways(run_config, given.run, tokenizer):
        found = compare(expected, logits_of(merged, rows), rows)
        del merged
        lines.append(
            (
                way,
                f"{found.kl:.3g}",
                f"{found.greedy:.4f}",
                f"{found.largest_logit_difference:.3g}",
                f"{found.mean_logit_difference:.3g}",
                f"{found.adapter_perplexity:.4f}",
                f"{found.merged_perplexity:.4f}",
            )
        )
    print(
        f"{len(rows)} held-out rows, {found.tokens:,} positions, {run_config.quantization.method}"
    )
    header = ("merged by", "KL", "same greedy token", "largest logit difference", "mean")
    print(markdown_table((*header, "perplexity: adapter", "merged"), lines))


def ways(run_config: config.Run, run: Path, tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """Each way's name and its model, made when it is asked for."""
    for base in Base:
        for dtype in dict.fromkeys((run_config.model.dtype, config.Dtype.float32)):
            way = f"merge --base {base} --dtype {dtype}"
            yield way, restore_merged(run_config, run, tokenizer, base=base, dtype=dtype)
    yield "PEFT, on the model as trained", restore(run_config, run)[0].merge_and_unload()
    yield "PEFT, on the base in float16", peft_on_float16(run_config, run, tokenizer)


def peft_on_float16(run_config: config.Run, run: Path, tokenizer: Any) -> Any:
    base = load_base(
        run_config.model.path,
        run_config.model.revision,
        pickled_weights=run_config.model.pickled_weights,
        dtype=config.Dtype.float16,
        quantization=UNQUANTISED,
        device=choose_device(run_config.device),
        tokenizer=tokenizer,
    )
    return load_adapter(base, run / "adapter").merge_and_unload()


if __name__ == "__main__":
    main()
