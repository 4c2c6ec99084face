"""Training speed beside TRL's SFTTrainer: same model, rows, token ids, adapter, optimizer, batch.

    pip install -c constraints.txt -e '.[bench]'
    taskset -c 0,1 python benchmarks/train.py --threads 2

Both sides train a freshly loaded NF4 base with a freshly drawn adapter (equal bits on both) for one
epoch of the same encoded rows, with loss on responses alone, once with padding in groups of like
length and once with packing. Each side is what its own users get: our ``fit``, and SFTTrainer with
its defaults for everything that this script does not set equal. The sides take turns after a round
that does not count. Speed is real tokens (no padding) by the seconds of the training loop alone;
what a side does before it (packing rows, say) is the column "set-up". The losses of the trained
models on those rows are compared, because a fast trainer that learns something else is no use.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dollyllama import config
from dollyllama.data.prepare import prepare
from dollyllama.data.tokens import EncodedExample
from dollyllama.evaluation.loss import average_losses, held_out_loss
from dollyllama.model.adapter import attach_adapter
from dollyllama.model.load import load_base, load_tokenizer
from dollyllama.model.precision import upcast
from dollyllama.training.fit import fit

#: How far the losses of the two sides' models may be apart before the table says so.
LOSS_TOLERANCE = 0.05
LR, MAX_GRAD_NORM, WEIGHT_DECAY = 1e-3, 1.0, 0.0
#: Without warm-up both schedules are the same to 1 / steps; with it TRL's first step has rate 0.
WARMUP_RATIO = 0.0
BETAS, EPS = (0.9, 0.999), 1e-8
R, ALPHA, DROPOUT = 16, 32.0, 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """One training run. seconds: the loop alone; setup_seconds: everything before it."""

    tokens: int
    steps: int
    seconds: float
    setup_seconds: float
    loss: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def main() -> None:
    arguments = parse_arguments()
    quiet()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = load_tokenizer(arguments.model, None)
    rows = read_rows(arguments, tokenizer)
    lengths = [len(row.ids) for row in rows]
    print(
        f"{len(rows)} rows, {sum(lengths):,} tokens (mean {statistics.mean(lengths):.0f}, longest "
        f"{max(lengths)}), batch {arguments.batch_size}, NF4 with double quantization, "
        f"LoRA r {R} on all linears, bfloat16 autocast, {torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__}, {peer_version()}, {device_name()}\n")
    sides = {"DollyLlama": train_ours, "TRL": train_trl}
    table: list[tuple[str, ...]] = [
        ("batches", "trainer", "tokens/s", "spread", "ratio", "steps", "set-up s", "loss")
    ]
    agree = True
    for batching in (config.Batching.length_grouped, config.Batching.packed):
        timings: dict[str, list[Timing]] = {side: [] for side in sides}
        for number in range(arguments.rounds + 1):
            order = list(sides) if number % 2 else list(reversed(sides))
            for side in order:
                timing = sides[side](rows, tokenizer, batching, arguments)
                if number:
                    timings[side].append(timing)
                print(
                    f"  {batching}, round {number or 'warm-up'}, {side}: "
                    f"{timing.tokens_per_second:,.0f} tokens/s, loss {timing.loss:.3f}",
                    file=sys.stderr,
                )
        base = statistics.median(each.tokens_per_second for each in timings["TRL"])
        table += [describe(batching, side, timings[side], base) for side in sides]
        losses = [statistics.mean(each.loss for each in timings[side]) for side in sides]
        agree &= math.isclose(*losses, rel_tol=LOSS_TOLERANCE)
    print(layout(table))
    verdict = "agree" if agree else "DO NOT agree"
    print(f"\nThe losses of the two sides' models {verdict} within {LOSS_TOLERANCE:.0%}.")
    print("ratio: median over median of TRL with the same batches; spread: lowest to highest.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="embedded", help="'embedded', a local folder or Hub id")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: its default")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def quiet() -> None:
    """Keep the libraries' notices out of the table; errors still show."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import datasets

    datasets.disable_progress_bars()


def peer_version() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "trl"))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def read_rows(arguments: argparse.Namespace, tokenizer: Any) -> list[EncodedExample]:
    """The first rows of the embedded sample's mix, encoded as for training."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=config.Run)
    conf = Path(__file__).resolve().parents[1] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("train", [f"data.max_length={arguments.max_length}"])
    data = OmegaConf.to_object(composed.data)
    assert isinstance(data, config.Data)
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(data, tokenizer, seed=arguments.seed, cache=Path(cache))
    if len(prepared.train) < arguments.rows:
        raise SystemExit(f"--rows {arguments.rows}: the sample has {len(prepared.train)}")
    return list(prepared.train[: arguments.rows])


def fresh_model(tokenizer: Any, arguments: argparse.Namespace) -> Any:
    """The quantised base with norms in float32 and a new adapter, from the seed alone."""
    torch.manual_seed(arguments.seed)
    model = load_base(
        arguments.model,
        None,
        dtype=config.Dtype.bfloat16,
        quantization=config.Quantization(
            method=config.QuantizationMethod.nf4,
            double=True,
            compute_dtype=config.Dtype.bfloat16,
        ),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer=tokenizer,
    )
    upcast(model, config.Upcast.norms)
    return attach_adapter(
        model,
        r=R,
        alpha=ALPHA,
        dropout=DROPOUT,
        variant=config.LoraVariant.lora,
        targets=["all-linear"],
        seed=arguments.seed,
    )


def loss_after(
    model: Any, rows: Sequence[EncodedExample], tokenizer: Any, arguments: argparse.Namespace
) -> float:
    """Loss a supervised token over the trained rows, measured alike for both sides.

    What the trainers log cannot be compared: ours weighs tokens alike, the other one steps.
    """
    losses = held_out_loss(
        model, rows, batch_size=arguments.batch_size, pad_token_id=tokenizer.pad_token_id
    )
    return average_losses(losses)[0].value


def train_ours(
    rows: Sequence[EncodedExample],
    tokenizer: Any,
    batching: config.Batching,
    arguments: argparse.Namespace,
) -> Timing:
    model = fresh_model(tokenizer, arguments)
    with tempfile.TemporaryDirectory() as folder, silent():
        started = time.perf_counter()
        done = fit(
            model,
            tokenizer,
            rows,
            trainer=config.Trainer(
                epochs=1.0,
                max_steps=None,
                max_tokens=None,
                max_seconds=None,
                batch_size=arguments.batch_size,
                accumulation=1,
                batching=batching,
                max_grad_norm=MAX_GRAD_NORM,
                activation_checkpointing=False,
                logging_steps=10,
                eval_steps=None,
                checkpoint_steps=None,
                keep_checkpoints=None,
                profile=False,
            ),
            optimizer=config.Optimizer(
                name=config.OptimizerName.adamw,
                lr=LR,
                weight_decay=WEIGHT_DECAY,
                betas=list(BETAS),
                eps=EPS,
                momentum=None,
            ),
            schedule=config.Schedule(name=config.ScheduleName.linear, warmup_ratio=WARMUP_RATIO),
            autocast=True,
            seed=arguments.seed,
            folder=Path(folder),
            log=lambda step, values: None,
            resume=False,
        )
        wall = time.perf_counter() - started
    loss = loss_after(model, rows, tokenizer, arguments)
    del model
    gc.collect()
    tokens = sum(len(row.ids) for row in rows)
    return Timing(tokens, done.steps, done.seconds, wall - done.seconds, loss)


def train_trl(
    rows: Sequence[EncodedExample],
    tokenizer: Any,
    batching: config.Batching,
    arguments: argparse.Namespace,
) -> Timing:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = fresh_model(tokenizer, arguments)
    packed = batching is config.Batching.packed
    mean_length = statistics.mean(len(row.ids) for row in rows)
    # Its packed rows are max_length long: so many of them hold about what our packed batch does.
    packed_rows = max(1, round(arguments.batch_size * mean_length / arguments.max_length))
    with tempfile.TemporaryDirectory() as folder, silent():
        started = time.perf_counter()
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(
                [{"input_ids": list(row.ids), "labels": row.labels.tolist()} for row in rows]
            ),
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1.0,
                per_device_train_batch_size=packed_rows if packed else arguments.batch_size,
                gradient_accumulation_steps=1,
                max_length=arguments.max_length,
                packing=packed,
                train_sampling_strategy="random" if packed else "group_by_length",
                optim="adamw_torch",
                learning_rate=LR,
                weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=EPS,
                lr_scheduler_type="linear",
                warmup_steps=WARMUP_RATIO,  # below 1 it is a share of the steps
                max_grad_norm=MAX_GRAD_NORM,
                gradient_checkpointing=False,
                bf16=True,
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=arguments.seed,
                use_cpu=not torch.cuda.is_available(),
            ),
        )
        setup_seconds = time.perf_counter() - started
        started = time.perf_counter()
        done = trainer.train()
        seconds = time.perf_counter() - started
    loss = loss_after(model, rows, tokenizer, arguments)
    del trainer, model
    gc.collect()
    tokens = sum(len(row.ids) for row in rows)
    return Timing(tokens, done.global_step, seconds, setup_seconds, loss)


@contextlib.contextmanager
def silent() -> Any:
    """Swallow what a trainer prints; both draw bars and tables."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def describe(
    batching: config.Batching, side: str, timings: Sequence[Timing], base: float
) -> tuple[str, ...]:
    speeds = [each.tokens_per_second for each in timings]
    return (
        str(batching),
        side,
        f"{statistics.median(speeds):,.0f}",
        f"{min(speeds):,.0f} to {max(speeds):,.0f}",
        f"{statistics.median(speeds) / base:.2f}",
        str(timings[0].steps),
        f"{statistics.median(each.setup_seconds for each in timings):.1f}",
        f"{statistics.mean(each.loss for each in timings):.3f}",
    )


def layout(table: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


if __name__ == "__main__":
    main()
