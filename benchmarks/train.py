"""Training speed beside TRL's SFTTrainer: same model, rows, token ids, adapter, optimizer, batch.

    pip install -c constraints.txt -e '.[bench]'
    python -m benchmarks.train [--data DATA] [--model FOLDER | --model 100m --tokenizer FOLDER]
    python -m benchmarks.train --ladder

All sides train a freshly loaded NF4 base with a freshly drawn adapter (equal bits) for one epoch of
the same encoded rows. Each side is what its own users get: our ``fit``, and SFTTrainer with its
defaults (its loss over chunks of logits among them) for everything that this script does not set
equal: once with the batches of the original recipe, 4 x 4 rows of like length with activations
computed again, and in every way of batching. On CPUs where bfloat16 is slow it computes in float32.
--ladder shows what each of our own means brings, one after the other.

DATA: a folder with the recipe's sources; without it the sample that comes with the project. 100m: a
Llama of 110 M parameters with random weights, for a tokenizer of up to 32,000 pieces.

The sides take turns, after a round that does not count; round n trains with seed n. Speed is tokens
with loss by the seconds of the training loop; what a side does before it (packing rows, say) is the
column "set-up". Memory is the most that the process holds while training, beyond what it held
before. The losses of the trained models on held-out rows are compared seed by seed, because a fast
trainer that learns something else is no use.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from scipy.stats import t as student

from benchmarks.decode import make_model, spread
from dollyllama import config
from dollyllama.data.prepare import prepare
from dollyllama.data.tokens import EncodedExample
from dollyllama.evaluation.loss import average_losses, held_out_loss
from dollyllama.latency.measure import peak, reset_peak
from dollyllama.launch import compose_run
from dollyllama.model.adapter import attach_adapter
from dollyllama.model.load import load_base, load_tokenizer
from dollyllama.model.precision import products_in, upcast
from dollyllama.training.fit import fit

MAX_GRAD_NORM, WEIGHT_DECAY = 1.0, 0.0
#: Without warm-up both schedules are the same to 1 / steps; with it TRL's first step has rate 0.
WARMUP_RATIO = 0.0
BETAS, EPS = (0.9, 0.999), 1e-8
R, ALPHA, DROPOUT = 16, 32.0, 0.05
HELD_OUT = 64
#: The recipe's batch and how it is gathered.
RECIPE_BATCH, RECIPE_ACCUMULATION = 4, 4

OURS = "DollyLlama"


@dataclass(frozen=True, slots=True)
class Timing:
    """One training run. seconds: the loop alone; setup_seconds: everything before it.

    curve: the training loss of a token by step, as the trainer logs it.
    """

    tokens: int
    supervised: int
    seconds: float
    setup_seconds: float
    memory_mib: float
    loss: float
    curve: list[float]

    @property
    def steps(self) -> int:
        return len(self.curve)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def supervised_per_second(self) -> float:
        return self.supervised / self.seconds


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows to train on and to be measured on."""

    train: Sequence[EncodedExample]
    held_out: Sequence[EncodedExample]

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.train)

    @property
    def supervised(self) -> int:
        return sum(row.supervised for row in self.train)


#: Trains on rows with a tokenizer, as the arguments say.
Side = Callable[[Rows, Any, argparse.Namespace], Timing]


def main() -> None:
    arguments = parse_arguments()
    quiet()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model == "100m":
            arguments.model = str(write_model(Path(scratch), arguments.tokenizer))
        tokenizer = load_tokenizer(arguments.model, None)
        rows = read_rows(arguments, tokenizer)
        lengths = [len(row.ids) for row in rows.train]
        print(
            f"{len(lengths)} rows, {rows.tokens:,} tokens (mean {statistics.mean(lengths):.0f}, "
            f"longest {max(lengths)}), {rows.supervised / rows.tokens:.0%} of them with loss, "
            f"{arguments.batch_size} rows a step, NF4 with double quantization, LoRA r {R} on all "
            f"linears with dropout {DROPOUT}, {torch.get_num_threads()} threads"
        )
        peer_dtype = str(torch.bfloat16 if arguments.ladder else faster_dtype())
        print(
            f"torch {torch.__version__}, {peer_version()} in {peer_dtype.removeprefix('torch.')}, "
            f"{device_name()}\n"
        )
        sides = ladder() if arguments.ladder else peers()
        if arguments.sides:
            if unknown := sorted({*arguments.sides} - {*sides}):
                raise SystemExit(f"--sides {unknown[0]!r}: there are {', '.join(map(repr, sides))}")
            sides = {name: sides[name] for name in sides if name in {OURS, *arguments.sides}}
        timings = measure(sides, rows, tokenizer, arguments)
    print(layout(speed_table(timings, rungs=arguments.ladder)))
    print("\nratio: of tokens with loss a second, within a round: median (lowest to highest)\n")
    print(layout(loss_table(timings)))
    print("\ndifference: to DollyLlama with the same seed, mean and 95 % interval over the seeds")
    if arguments.plot:
        draw_curves(timings, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="embedded", help="embedded, 100m, a folder or Hub id")
    parser.add_argument("--tokenizer", help="a folder, for --model 100m")
    parser.add_argument("--data", help="a folder with the recipe's sources")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=RECIPE_BATCH * RECIPE_ACCUMULATION)
    parser.add_argument("--full-text", action="store_true", help="loss on prompts too")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: its default")
    parser.add_argument("--ladder", action="store_true", help="our means one by one, not peers")
    parser.add_argument("--sides", nargs="+", help=f"only these, by their names, and {OURS}")
    parser.add_argument("--plot", type=Path, help="draw the sides' training losses into a PNG file")
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


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- the sides ----------------------------------------------------------------------------------


def peers() -> dict[str, Side]:
    """Ours, TRL with the recipe's batches, and TRL at what may be its best; in its faster dtype."""
    trl = partial(train_trl, bfloat16=faster_dtype() is torch.bfloat16)
    return {
        OURS: train_ours,
        f"{OURS}, activations made again": partial(train_ours, checkpointing=True),
        "TRL, the recipe": partial(trl, batching="length_grouped", recipe=True),
        "TRL, padded": partial(trl, batching="padded"),
        "TRL, length_grouped": partial(trl, batching="length_grouped"),
        "TRL, padding_free": partial(trl, batching="padding_free"),
        "TRL, packed": partial(trl, batching="packed"),
    }


def faster_dtype() -> torch.dtype:
    """That of large products, which on many CPUs take longer in bfloat16 than in float32."""
    return products_in(torch.bfloat16, device())


def ladder() -> dict[str, Side]:
    """From TRL's padded batches to the fast path, one means after the other."""
    no_path = mock.patch("dollyllama.training.fit.fast_path", contextlib.nullcontext)
    masks = mock.patch("dollyllama.fast.projections.draw_dropped", draw_mask)
    as_asked = mock.patch("dollyllama.fast.projections.products_in", lambda dtype, device: dtype)
    anew = mock.patch("dollyllama.fast.attach.has_room_for", return_value=False)
    apart = mock.patch("dollyllama.data.batches._LEAST_SHARED", 2**40)
    padded, grouped = config.Batching.padded, config.Batching.length_grouped

    def ours(*without: Any, batching: config.Batching = config.Batching.packed) -> Side:
        return partial(train_ours, batching=batching, without=without)

    return {
        "TRL, padded": partial(train_trl, batching="padded"),
        "ours, padded": ours(no_path, batching=padded),
        "+ rows of like length": ours(no_path, batching=grouped),
        "+ packed": ours(no_path, apart),
        "+ joined projections": ours(masks, as_asked, anew, apart),
        "+ dropout by places": ours(as_asked, anew, apart),
        "+ products in float32": ours(anew, apart),  # where that is faster
        "+ weights made dense once": ours(apart),
        OURS: train_ours,  # and what rows start with once
    }


def draw_mask(like: torch.Tensor, p: float) -> torch.Tensor:
    return torch.empty_like(like, dtype=torch.bool).bernoulli_(p)


def train_ours(
    rows: Rows,
    tokenizer: Any,
    arguments: argparse.Namespace,
    *,
    batching: config.Batching = config.Batching.packed,
    checkpointing: bool = False,
    without: Sequence[Any] = (),
) -> Timing:
    """without: patches that take something of ours away."""
    model = fresh_model(tokenizer, arguments)
    curve: list[float] = []
    held = reset_peak(device())
    with tempfile.TemporaryDirectory() as folder, silent(), contextlib.ExitStack() as patches:
        for patch in without:
            patches.enter_context(patch)
        started = time.perf_counter()
        done = fit(
            model,
            tokenizer,
            rows.train,
            trainer=config.Trainer(
                epochs=1.0,
                max_steps=None,
                max_tokens=None,
                max_seconds=None,
                batch_size=arguments.batch_size,
                accumulation=1,
                batching=batching,
                max_grad_norm=MAX_GRAD_NORM,
                activation_checkpointing=checkpointing,
                logging_steps=1,
                eval_steps=None,
                checkpoint_steps=None,
                keep_checkpoints=None,
                profile=False,
            ),
            optimizer=config.Optimizer(
                name=config.OptimizerName.adamw,
                lr=arguments.lr,
                weight_decay=WEIGHT_DECAY,
                betas=list(BETAS),
                eps=EPS,
                momentum=None,
            ),
            schedule=config.Schedule(name=config.ScheduleName.linear, warmup_ratio=WARMUP_RATIO),
            autocast=True,
            seed=arguments.seed,
            folder=Path(folder),
            log=lambda step, values: curve.append(values["train/loss"]),
            resume=False,
        )
        wall = time.perf_counter() - started
    return finish(model, rows, tokenizer, held, curve, seconds=done.seconds, wall=wall)


def train_trl(
    rows: Rows,
    tokenizer: Any,
    arguments: argparse.Namespace,
    *,
    batching: str = "packed",
    bfloat16: bool = True,
    recipe: bool = False,
) -> Timing:
    """recipe: the original run's way to its 16 rows a step, 4 x 4 with activations made again."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = fresh_model(tokenizer, arguments, bfloat16=bfloat16)
    packed = batching == "packed"
    mean_length = rows.tokens / len(rows.train)
    # Its packed rows are max_length long: so many of them hold about what our packed batch does.
    packed_rows = max(1, round(arguments.batch_size * mean_length / arguments.max_length))
    batch_size = packed_rows if packed else arguments.batch_size
    held = reset_peak(device())
    with tempfile.TemporaryDirectory() as folder, silent():
        started = time.perf_counter()
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(
                [{"input_ids": list(row.ids), "labels": row.labels.tolist()} for row in rows.train]
            ),
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1.0,
                per_device_train_batch_size=RECIPE_BATCH if recipe else batch_size,
                gradient_accumulation_steps=RECIPE_ACCUMULATION if recipe else 1,
                # The rows are no longer; without padding SFTTrainer wants to hear that from us.
                max_length=None if batching == "padding_free" else arguments.max_length,
                packing=packed,
                padding_free=batching == "padding_free",
                train_sampling_strategy=(
                    "group_by_length" if batching == "length_grouped" else "random"
                ),
                optim="adamw_torch",
                learning_rate=arguments.lr,
                weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=EPS,
                lr_scheduler_type="linear",
                warmup_steps=WARMUP_RATIO,  # below 1 it is a share of the steps
                max_grad_norm=MAX_GRAD_NORM,
                gradient_checkpointing=recipe,
                bf16=bfloat16,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=arguments.seed,
                use_cpu=not torch.cuda.is_available(),
            ),
        )
        setup_seconds = time.perf_counter() - started
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    del trainer
    return finish(
        model, rows, tokenizer, held, curve, seconds=seconds, wall=seconds + setup_seconds
    )


def finish(
    model: Any,
    rows: Rows,
    tokenizer: Any,
    held: int | None,
    curve: list[float],
    *,
    seconds: float,
    wall: float,
) -> Timing:
    """What a trained side took, and what it learnt.

    The loss is that of held-out rows, measured alike for all.
    """
    memory_mib = float("nan") if held is None else (peak(device()) - held) / 2**20
    losses = held_out_loss(model, rows.held_out, batch_size=16)
    loss = average_losses(losses)[0].value
    gc.collect()
    setup_seconds = wall - seconds
    return Timing(rows.tokens, rows.supervised, seconds, setup_seconds, memory_mib, loss, curve)


# --- the model and the rows ---------------------------------------------------------------------


def write_model(folder: Path, tokenizer: str | None) -> Path:
    """A Llama of 110 M parameters with random weights, in bfloat16, with a tokenizer."""
    if tokenizer is None:
        raise SystemExit("--model 100m: name a tokenizer's folder with --tokenizer")
    make_model(2_048, "bfloat16").save_pretrained(folder)
    load_tokenizer(tokenizer, None).save_pretrained(folder)
    return folder


def read_rows(arguments: argparse.Namespace, tokenizer: Any) -> Rows:
    """Rows spread over the mix, encoded as for training."""
    mix = [f"data.root={arguments.data}", "data=dollyllama"] if arguments.data else []
    loss_on = "full_text" if arguments.full_text else "response"
    composed = compose_run(
        [*mix, f"data.max_length={arguments.max_length}", f"data.loss_on={loss_on}"]
    )
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(composed.data, tokenizer, seed=0, cache=Path(cache))
        if len(prepared.train) < arguments.rows:
            raise SystemExit(f"--rows {arguments.rows}: there are {len(prepared.train)}")
        # Lists, because the files that rows lie in go with the folder.
        return Rows(
            list(map(detached, spread_over(prepared.train, arguments.rows))),
            list(map(detached, spread_over(prepared.held_out, HELD_OUT))),
        )


def spread_over(rows: Sequence[EncodedExample], count: int) -> list[EncodedExample]:
    """So many rows at equal distances: rows lie source by source."""
    every = len(rows) // count
    return [rows[number * every] for number in range(count)]


def detached(row: EncodedExample) -> EncodedExample:
    return EncodedExample(row.example, list(map(int, row.ids)), row.spans, row.truncated)


def fresh_model(tokenizer: Any, arguments: argparse.Namespace, *, bfloat16: bool = True) -> Any:
    """The quantised base with norms in float32 and a new adapter, from the seed alone."""
    torch.manual_seed(arguments.seed)
    model = load_base(
        arguments.model,
        None,
        pickled_weights=False,
        dtype=config.Dtype.bfloat16,
        quantization=config.Quantization(
            method=config.QuantizationMethod.nf4,
            double=True,
            compute_dtype=config.Dtype.bfloat16 if bfloat16 else config.Dtype.float32,
        ),
        device=device(),
        tokenizer=tokenizer,
    )
    upcast(model, config.Upcast.norms if bfloat16 else config.Upcast.all)
    return attach_adapter(
        model,
        r=R,
        alpha=ALPHA,
        dropout=DROPOUT,
        variant=config.LoraVariant.lora,
        targets=["all-linear"],
        seed=arguments.seed,
    )


@contextlib.contextmanager
def silent() -> Any:
    """Swallow what a trainer prints; both draw bars and tables."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- rounds and tables --------------------------------------------------------------------------


def measure(
    sides: dict[str, Side], rows: Rows, tokenizer: Any, arguments: argparse.Namespace
) -> dict[str, list[Timing]]:
    """Train on every side in turn, in the other direction each round."""
    timings: dict[str, list[Timing]] = {side: [] for side in sides}
    for number in range(arguments.rounds + 1):
        arguments.seed = number
        for name in list(sides) if number % 2 else list(reversed(sides)):
            timing = sides[name](rows, tokenizer, arguments)
            gc.collect()
            if number:
                timings[name].append(timing)
            print(
                f"  round {number or 'warm-up'}, {name}: {timing.tokens_per_second:,.0f} tokens/s, "
                f"{timing.memory_mib:,.0f} MiB, loss {timing.loss:.3f}",
                file=sys.stderr,
                flush=True,
            )
    return timings


def speed_table(timings: dict[str, list[Timing]], *, rungs: bool) -> list[tuple[str, ...]]:
    """Each side's speed, and how many times as fast ours is; of rungs, than the first of them."""
    first = next(iter(timings))
    ratio = "first rung = 1" if rungs else "ours is faster by"
    table: list[tuple[str, ...]] = [
        ("", "tokens/s", "with loss/s", ratio, "steps", "set-up s", "memory MiB")
    ]
    for side, found in timings.items():
        pairs = zip(found, timings[first], strict=True)
        ratios = [
            (one.supervised_per_second / other.supervised_per_second) ** (1 if rungs else -1)
            for one, other in pairs
        ]
        table.append(
            (
                side,
                f"{statistics.median(each.tokens_per_second for each in found):,.0f}",
                f"{statistics.median(each.supervised_per_second for each in found):,.0f}",
                spread(ratios),
                str(found[0].steps),
                f"{statistics.median(each.setup_seconds for each in found):.1f}",
                f"{statistics.median(each.memory_mib for each in found):,.0f}",
            )
        )
    return table


def loss_table(timings: dict[str, list[Timing]]) -> list[tuple[str, ...]]:
    """Each side's held-out loss, how much seeds differ, and the difference to ours by seed."""
    ours = [each.loss for each in timings[OURS]]
    table: list[tuple[str, ...]] = [("", "loss", "between seeds", "difference")]
    for side, found in timings.items():
        losses = [each.loss for each in found]
        apart = [loss - our for loss, our in zip(losses, ours, strict=True)]
        between = half = float("nan")
        if len(losses) > 1:
            between = statistics.stdev(losses)
            half = float(student.ppf(0.975, len(apart) - 1)) * statistics.stdev(apart)
            half /= len(apart) ** 0.5
        table.append(
            (
                side,
                f"{statistics.mean(losses):.3f}",
                f"{between:.3f}",
                "" if side == OURS else f"{statistics.mean(apart):+.3f} ± {half:.3f}",
            )
        )
    return table


def draw_curves(timings: dict[str, list[Timing]], path: Path) -> None:
    """Training losses over the share of the rows: the mean of a side's rounds, and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for side, found in timings.items():
        steps = min(each.steps for each in found)
        share = [(step + 1) / steps for step in range(steps)]
        by_step = list(zip(*(each.curve[:steps] for each in found), strict=True))
        (line,) = axes.plot(share, list(map(statistics.mean, by_step)), label=side, linewidth=1.2)
        lowest, highest = list(map(min, by_step)), list(map(max, by_step))
        axes.fill_between(share, lowest, highest, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel="share of the rows seen", ylabel="training loss, nats a token")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def layout(table: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


if __name__ == "__main__":
    main()
