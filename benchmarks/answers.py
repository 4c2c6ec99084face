"""Answers in batches beside one at a time: a run's model and its held-out questions.

    python -m benchmarks.answers RUN [--rows 48] [--rounds 3]

One process; the sizes take turns after a round that does not count, and write with the run's
decoding. LoRA goes as in every verb (``fast_inference``), and for two sizes through PEFT, by dense
weights as well. Tokens a second are all that was written, reading the prompts included; ratios are
within a round. Answers that differ from those one at a time are counted: roundings decide between
tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.decode import spread
from dollyllama.data.prepare import prepare
from dollyllama.data.prompt import build_prompt
from dollyllama.decoding.generate import generate
from dollyllama.evaluation.suite import select
from dollyllama.fast.attach import fast_inference
from dollyllama.model.dense import dense_weights
from dollyllama.restore import restore
from dollyllama.verbs.parser import open_run

#: How many prompts at a time, and what the model is under meanwhile.
SIDES = [
    *((size, fast_inference) for size in (1, 4, 16, 48)),
    *((size, dense_weights) for size in (1, 16)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=48, help="questions of each source")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run_config = open_run(given.run, [])
    model, tokenizer = restore(run_config, given.run)
    data = prepare(run_config.data, tokenizer, seed=run_config.seed)
    prompts = [
        build_prompt(each.example, run_config.data.prompt, tokenizer)
        for each in select(data.held_out, given.rows)
    ]
    rates: list[list[float]] = [[] for _ in SIDES]
    texts: list[list[str]] = [[] for _ in SIDES]
    order = list(range(len(SIDES)))
    for number in range(given.rounds + 1):
        for side in order if number % 2 else reversed(order):
            size, during = SIDES[side]
            with during(model):
                started = time.perf_counter()
                answers = generate(
                    model, tokenizer, prompts, run_config.decoding, batch_size=size, seed=0
                )
                seconds = time.perf_counter() - started
            texts[side] = [each.text for each in answers]
            if number:
                rates[side].append(sum(each.tokens for each in answers) / seconds)
    print(f"{len(prompts)} prompts, {run_config.decoding.strategy}, {model.device}")
    print(f"{'at a time':>9}  {'LoRA':6}{'tokens/s':>10}  {'ratio (range)':22}other answers")
    for (size, during), found, text in zip(SIDES, rates, texts, strict=True):
        way = "ours" if during is fast_inference else "PEFT's"
        ratios = [one / alone for one, alone in zip(found, rates[0], strict=True)]
        other = sum(one != alone for one, alone in zip(text, texts[0], strict=True))
        print(f"{size:9}  {way:6}{statistics.median(found):10,.0f}  {spread(ratios):22}{other}")


if __name__ == "__main__":
    main()
