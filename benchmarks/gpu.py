"""What only a GPU can tell, in one command: does every choice train, how fast, in what memory.

    python -m benchmarks.gpu --output FOLDER [--data FOLDER] [--tokenizer FOLDER] [--seconds 480]

Each stage is a process of its own with a time of its own, so that one that fails, hangs or is out
of memory costs the others nothing; a stage for which no time is left is reported as not run. Every
finding is a line of ``results.jsonl`` as soon as it is there, and is printed when its stage ends;
what a stage prints itself goes to ``log.txt``. Stages whose speed is of no interest share the GPU.
The 7B stages train a model of open_llama_7b's shape with random weights: its speed and memory are
those of the real one, its losses mean nothing. While the first stages run, that checkpoint is
written and its data prepared beside them.

``--shape tiny --device cpu`` goes through everything a CPU can do, to test the script itself.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LOG = "results.jsonl", "log.txt"
#: With less left, a stage is not begun: it would import the libraries and no more.
LEAST_SECONDS = 10
#: Steps of a timed training that do not count: CUDA loads kernels and the allocator grows.
WARM_UP_STEPS = 2
#: Dense bfloat16 of an H100 or H200 SXM, by NVIDIA's data sheet; what a matrix product reaches
#: here is measured beside it.
PEAK_FLOPS = 989e12
#: open_llama_7b's shape, and one for tests.
SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}
VOCABULARY, POSITIONS = 32_000, 2048
#: Tokens of the longest rows, by shape.
LENGTHS = {"7b": 512, "tiny": 128}
MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class Case:
    """What the stages share. scratch: for run folders and checkpoints, some 30 GB at 7B."""

    scratch: Path
    output: Path
    data: str
    tokenizer: str
    shape: str
    stage: str = ""

    @property
    def base(self) -> Path:
        return self.scratch / "base"

    @property
    def run(self) -> Path:
        """The run folder of the 7B recipe."""
        return self.scratch / "recipe"

    @property
    def merged(self) -> Path:
        return self.scratch / "merged"

    def say(self, finding: str, /, **values: Any) -> None:
        """Put a finding on record at once."""
        line = json.dumps({"stage": self.stage, "finding": finding, **values}, default=str)
        with (self.output / RESULTS).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@dataclass(frozen=True, slots=True)
class Stage:
    """seconds: the most that it may take. needs: a stage whose files it cannot do without.

    Stages of one group run at the same time: their speeds are of no interest.
    """

    run: Callable[[Case], None]
    group: int
    seconds: float
    needs: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for results and log")
    parser.add_argument("--scratch", type=Path, help="fast folder; default: the temporary one")
    parser.add_argument("--seconds", type=float, default=480, help="for all stages together")
    parser.add_argument("--patience", type=float, default=1, help="times a stage's own limit")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES], default=[*STAGES])
    parser.add_argument("--data", default="embedded", help="data.root of the recipe")
    parser.add_argument("--tokenizer", default="embedded", help="a folder, of at most 32,000 ids")
    parser.add_argument("--shape", choices=[*SHAPES], default="7b")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--one", choices=[BESIDE, *STAGES], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if given.one:
        case = Case(given.scratch, given.output, given.data, given.tokenizer, given.shape)
        run_one(replace(case, stage=given.one))
        return
    data, tokenizer = (
        place if place == "embedded" else str(Path(place).resolve())
        for place in (given.data, given.tokenizer)
    )
    given.output.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS, LOG):
        (given.output / name).write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=given.scratch) as scratch:
        os.environ["DOLLYLLAMA_CACHE"] = str(Path(scratch, "cache").resolve())
        shared = ["--scratch", str(Path(scratch).resolve())]
        shared += ["--output", str(given.output.resolve())]
        shared += ["--data", data, "--tokenizer", tokenizer]
        run_all(given, [*shared, "--shape", given.shape, "--device", given.device])


# --- stages in processes ------------------------------------------------------------------------


def run_all(given: argparse.Namespace, shared: Sequence[str]) -> None:
    """Run the stages group by group, and beside the first ones make what later ones share."""
    began = time.monotonic()
    ends = began + given.seconds
    results = given.output / RESULTS
    beside = start(BESIDE, shared, given.output)
    printed = 0
    done: set[str | None] = {None}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        for _, group in itertools.groupby(given.stages, lambda name: STAGES[name].group):
            names = list(group)
            if BESIDE in {STAGES[name].needs for name in names} and finish(beside, until=ends):
                done.add(BESIDE)
            now = time.monotonic()
            running.clear()
            for name in names:
                stage = STAGES[name]
                if stage.needs not in done:
                    print(f"{name}: not run: it needs {stage.needs}", flush=True)
                elif ends - now < LEAST_SECONDS:
                    print(f"{name}: not run: no time left", flush=True)
                else:
                    until = min(ends, now + stage.seconds * given.patience)
                    running[name] = start(name, shared, given.output), until
            for name, (process, until) in running.items():
                if finish(process, until):
                    done.add(name)
                state = "done" if name in done else f"ended with {process.returncode}"
                printed = show(results, printed)
                print(f"{name}: {state}, {time.monotonic() - now:.0f} s", flush=True)
    finally:
        for process in (beside, *(process for process, _ in running.values())):
            if process.poll() is None:
                end(process)
        show(results, printed)
    print(f"all: {time.monotonic() - began:.0f} s", flush=True)


def start(name: str, shared: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """A stage in a process group of its own, which ``end`` can end as a whole."""
    with (output / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "--one", name, *shared],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], until: float) -> bool:
    """Wait for a stage, not longer than ``until``; whether it came to its end without an error."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        end(process)
    return process.returncode == 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a stage, its own processes included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(results: Path, printed: int) -> int:
    """Print the findings that are new; how many there are now."""
    lines = results.read_text(encoding="utf-8").splitlines()
    for line in lines[printed:]:
        finding = json.loads(line)
        head = f"{finding.pop('stage')}/{finding.pop('finding')}"
        print(f"  {head}: " + " ".join(f"{k}={brief(v)}" for k, v in finding.items()), flush=True)
    return len(lines)


def brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_one(case: Case) -> None:
    """The body of a stage's process."""
    stage = beside if case.stage == BESIDE else STAGES[case.stage].run
    print(f"\n===== {case.stage}", flush=True)
    try:
        stage(case)
    except BaseException as error:
        traceback.print_exc()
        case.say("error", error=f"{type(error).__name__}: {error}"[:500])
        sys.exit(1)


def command(*arguments: str) -> float:
    """Run our Python on ``arguments``; seconds. RuntimeError with the last line of its errors."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    print(done.stderr, flush=True)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {last}")
    return time.perf_counter() - started


# --- what is prepared beside the first stages ---------------------------------------------------


def beside(case: Case) -> None:
    """The 7B checkpoint in safetensors files, with its tokenizer, and its data in the cache."""
    started = time.perf_counter()
    count = make_checkpoint(case)
    written = time.perf_counter()
    case.say("checkpoint", parameters=count, seconds=written - started)
    from dollyllama.verbs import prepare

    prepare.main([*recipe(case), "--output", str(case.scratch / "prepared"), "--examples", "0"])
    case.say("data", seconds=time.perf_counter() - written)


def make_checkpoint(case: Case) -> int:
    """Weights as a Llama's are drawn before training, in bfloat16; how many."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from dollyllama import embedded
    from dollyllama.embedded import EMBEDDED
    from dollyllama.model.shards import write_shards

    tokenizer = AutoTokenizer.from_pretrained(
        embedded.MODEL if case.tokenizer == EMBEDDED else case.tokenizer
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
        **SHAPES[case.shape],
    )
    config.architectures = ["LlamaForCausalLM"]
    with init_empty_weights():
        empty = LlamaForCausalLM(config)
    shapes = {name: tuple(each.shape) for name, each in empty.named_parameters()}
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def parts(name: str) -> list[Any]:
        if "norm" in name:
            return [torch.ones(shapes[name], dtype=torch.bfloat16)]
        seeded = torch.Generator(device).manual_seed(list(shapes).index(name))
        drawn = torch.randn(shapes[name], generator=seeded, device=device, dtype=torch.bfloat16)
        return [drawn.mul_(config.initializer_range).cpu()]

    case.base.mkdir()
    write_shards(case.base, shapes, torch.bfloat16, parts, MAX_SHARD_BYTES)
    config.save_pretrained(case.base)
    tokenizer.save_pretrained(case.base)
    return sum(map(math.prod, shapes.values()))


def recipe(case: Case) -> list[str]:
    """Overrides of the 7B recipe on the checkpoint that was made."""
    from dollyllama.device import cuda_is_available

    chosen = ["experiment=dollyllama_7b", "model=local", f"model.path={case.base}"]
    chosen += [f"data.root={case.data}", f"data.max_length={LENGTHS[case.shape]}", "tracking=files"]
    return chosen if cuda_is_available() else [*chosen, "optimizer=adamw", "optimizer.lr=1e-5"]


def limited(steps: int) -> list[str]:
    """Overrides of a run of so many steps, each on record."""
    return [
        *("trainer.epochs=null", f"trainer.max_steps={steps}", "trainer.logging_steps=1"),
        *("trainer.checkpoint_steps=null", "trainer.keep_checkpoints=null"),
    ]


# --- training by our own functions --------------------------------------------------------------


@dataclass(slots=True)
class Steps:
    """What ``fit`` logged of each step, and when: its ``log``."""

    times: list[float] = field(default_factory=lambda: [time.perf_counter()])
    lines: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.times.append(time.perf_counter())
        self.lines.append(values)

    @property
    def losses(self) -> list[float]:
        return [line["train/loss"] for line in self.lines]

    def speed(self) -> float:
        """Real tokens (no padding) a second after the warm-up."""
        return rate([line["train/tokens_per_second"] for line in self.lines], self.times)


def rate(speeds: Sequence[float], times: Sequence[float]) -> float:
    """Tokens a second over all steps but those of the warm-up.

    speeds: by step; times: of the beginning and the end of each, one more than speeds.
    """
    seconds = [after - before for before, after in itertools.pairwise(times)]
    counted = list(zip(speeds, seconds, strict=True))[WARM_UP_STEPS:]
    if not counted:
        return math.nan
    return sum(speed * each for speed, each in counted) / sum(each for _, each in counted)


def load(run_config: Any, tokenizer: Any) -> Any:
    """The base as a run loads it."""
    from dollyllama.restore import choose_device, load_model

    return load_model(run_config, tokenizer, choose_device(run_config.device))


def train(run_config: Any, model: Any, tokenizer: Any, rows: Sequence[Any]) -> tuple[Any, Steps]:
    """``fit`` as a run calls it: what it returns, and its steps."""
    from dollyllama.training.fit import fit

    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        done = fit(
            model,
            tokenizer,
            rows,
            trainer=run_config.trainer,
            optimizer=run_config.optimizer,
            schedule=run_config.schedule,
            autocast=run_config.precision.autocast,
            seed=run_config.seed,
            folder=Path(folder),
            log=steps,
            resume=False,
        )
    return done, steps


def training_rows(run_config: Any, tokenizer: Any) -> Sequence[Any]:
    from dollyllama.data.prepare import prepare

    rows: Sequence[Any] = prepare(run_config.data, tokenizer, seed=run_config.seed).train
    return rows


def free() -> None:
    """Give back what models that are gone have left, so that the next peak is its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the stages ---------------------------------------------------------------------------------


def default(case: Case) -> None:
    """``python train.py`` on the embedded model, shortened."""
    folder = case.scratch / "default"
    seconds = command(
        *("train.py", "tracking=files", f"hydra.run.dir={folder}", "evaluation.batch_size=64"),
        *("trainer.epochs=null", "trainer.max_steps=60", "evaluation.generate_examples=8"),
    )
    result = read(folder / "result.json")
    for phase, metrics in result["metrics"].items():
        wanted = {each["name"]: each["value"] for each in metrics}
        case.say(phase, **{name: wanted[name] for name in ("loss/all", "score/all")})
    trained = result["train"]
    case.say(
        result["status"],
        seconds=seconds,
        parts=result["seconds"],
        tokens_per_second=trained["tokens_per_second"],
        peak_mib=trained["peak_memory_mib"],
        loss=trained["loss"],
    )
    device = read(folder / "provenance.json")["device"]
    case.say("device", python=platform.python_version(), **device)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


#: What else than the default can be chosen, the first to compare the others with.
CHOICES: dict[str, list[str]] = {
    "default": [],
    "adamw_8bit": ["optimizer=adamw_8bit"],
    "paged_adamw_8bit": ["optimizer=paged_adamw_8bit"],
    "paged_adamw_32bit": ["optimizer=paged_adamw_32bit"],
    "lion_8bit": ["optimizer=lion_8bit"],
    "adafactor": ["optimizer=adafactor"],
    "sgd": ["optimizer=sgd"],
    "int8": ["quantization=int8"],
    "fp4": ["quantization=fp4"],
    "nf4": ["quantization=nf4"],
    "no_quantization": ["quantization=none"],
    "dora": ["lora=dora"],
    "dora_int8": ["lora=dora", "quantization=int8"],
    "pissa": ["lora=pissa", "quantization=none"],
    "checkpointing": ["trainer.activation_checkpointing=true"],
    "padded": ["trainer.batching=padded"],
    "length_grouped": ["trainer.batching=length_grouped"],
    "as_loaded": ["precision=as_loaded"],
    "no_autocast": ["precision.autocast=false"],
    "float32": ["precision=all_float32", "precision.autocast=false", "model.dtype=float32"],
    "float16": ["model.dtype=float16", "quantization.compute_dtype=float16"],
}


def choices(case: Case) -> None:
    """A few steps of every choice on the embedded model, of the same rows in the same order."""
    from dollyllama import launch
    from dollyllama.evaluation.loss import average_losses, held_out_loss
    from dollyllama.model.load import load_tokenizer
    from dollyllama.restore import put_adapter

    shared = ["tracking=files", *limited(8), "trainer.batch_size=8", "evaluation=none"]
    run_config = launch.compose_run(shared)
    tokenizer = load_tokenizer(run_config.model.path, None)
    rows = training_rows(run_config, tokenizer)[:200]
    for name, chosen in CHOICES.items():
        started = time.perf_counter()
        try:
            run_config = launch.compose_run([*shared, *chosen])
            model = put_adapter(run_config, load(run_config, tokenizer))
            done, steps = train(run_config, model, tokenizer, rows)
            losses = held_out_loss(model, rows[:32], batch_size=32)
        except Exception as error:  # the next choice may work
            traceback.print_exc()
            case.say(name, error=f"{type(error).__name__}: {error}"[:300])
            continue
        case.say(
            name,
            first=steps.losses[0],
            last=steps.losses[-1],
            after=average_losses(losses)[0].value,
            tokens_per_second=steps.speed(),
            peak_mib=done.peak_memory_mib,
            seconds=time.perf_counter() - started,
        )
        del model
        free()
    gradients(case, rows[:16], tokenizer)


def gradients(case: Case, rows: Sequence[Any], tokenizer: Any) -> None:
    """Loss and gradient of one batch, packed and padded, beside float32's.

    One step of plain gradient descent with rate 1 from LoRA's B = 0 leaves the gradient in B.
    """
    import torch

    from dollyllama import launch
    from dollyllama.restore import put_adapter

    def gradient(*chosen: str) -> tuple[float, Any]:
        run_config = launch.compose_run(
            [
                *("tracking=files", *limited(1), "evaluation=none", "quantization=none"),
                *("optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "schedule=constant"),
                *("schedule.warmup_ratio=0", "lora.dropout=0", "trainer.max_grad_norm=null"),
                *(f"trainer.batch_size={len(rows)}", *chosen),
            ]
        )
        model = put_adapter(run_config, load(run_config, tokenizer))
        _, steps = train(run_config, model, tokenizer, rows)
        parts = [each for name, each in model.named_parameters() if "lora_B" in name]
        return steps.losses[0], torch.cat([each.detach().double().flatten() for each in parts])

    exact = ["precision=all_float32", "precision.autocast=false", "model.dtype=float32"]
    loss, reference = gradient(*exact, "trainer.batching=padded")
    for name, chosen in {
        "packed_float32": [*exact, "trainer.batching=packed"],
        "padded_bfloat16": ["trainer.batching=padded"],
        "packed_bfloat16": ["trainer.batching=packed"],
        "packed_checkpointing": [
            *("trainer.batching=packed", "trainer.activation_checkpointing=true"),
        ],
    }.items():
        other_loss, other = gradient(*chosen)
        case.say(
            f"gradient_{name}",
            loss=other_loss,
            float32_loss=loss,
            distance=float((other - reference).norm() / reference.norm()),
        )


def seven(case: Case) -> None:
    """The 7B recipe as a run, then its training alone in batches of several kinds."""
    import torch

    from dollyllama import launch
    from dollyllama.data.store import lengths_of
    from dollyllama.model.load import load_tokenizer
    from dollyllama.restore import put_adapter
    from dollyllama.run import run

    recipe_config = launch.compose_run(
        [
            *(*recipe(case), *limited(6), "trainer.eval_steps=null", "decoding=greedy"),
            *("evaluation=loss_only", "evaluation.before=false", "evaluation.loss_examples=4"),
            "evaluation.batch_size=4",
        ]
    )
    started = time.perf_counter()
    result = run(recipe_config, case.run)
    assert result.train is not None
    logged = [json.loads(line) for line in (case.run / "metrics.jsonl").open(encoding="utf-8")]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    case.say(
        "recipe",
        status=result.status,
        seconds=time.perf_counter() - started,
        parts=result.seconds,
        parameters=result.parameters,
        tokens_per_second=result.train.tokens_per_second,
        peak_gib=result.train.peak_memory_mib / 1024,
        losses=[round(loss, 3) for loss in losses],
    )
    free()
    ceiling = matrix_product_flops()
    case.say("matrix_product", tflops=ceiling / 1e12)

    tokenizer = load_tokenizer(str(case.base), None)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    base = load(recipe_config, tokenizer)
    case.say(
        "load",
        seconds=time.perf_counter() - started,
        peak_gib=peak_gib(),
        held_gib=torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else math.nan,
    )
    model = put_adapter(recipe_config, base)
    rows = training_rows(recipe_config, tokenizer)
    lengths = lengths_of(rows)
    longest = LENGTHS[case.shape]
    places = itertools.cycle([at for at, length in enumerate(lengths) if length == longest])
    full = [rows[at] for at in itertools.islice(places, 16 * 6)]
    for name, on, chosen in batches():
        run_config = launch.compose_run([*recipe(case), *limited(6), *chosen])
        try:
            done, steps = train(run_config, model, tokenizer, full if on == "full" else rows)
        except torch.cuda.OutOfMemoryError as error:
            case.say(name, out_of_memory=str(error)[:200])
            done = None
        if done is None:  # beyond the except clause, which holds what was in memory
            model.zero_grad(set_to_none=True)
            free()
            continue
        speed = steps.speed()
        flops = speed * flops_per_token(base, longest if on == "full" else statistics.mean(lengths))
        case.say(
            name,
            tokens_per_second=speed,
            peak_gib=done.peak_memory_mib / 1024,
            model_tflops=flops / 1e12,
            of_data_sheet=flops / PEAK_FLOPS,
            of_matrix_product=flops / ceiling,
            losses=[round(steps.losses[0], 3), round(steps.losses[-1], 3)],
        )
        free()


def batches() -> list[tuple[str, str, list[str]]]:
    """Name, rows (all of the longest, or the recipe's mix) and overrides of each timed training."""
    found = []
    for size, batching, checkpointing in itertools.product(
        (4, 16), ("padded", "packed"), (True, False)
    ):
        chosen = [f"trainer.batch_size={size}", f"trainer.batching={batching}"]
        chosen += ["trainer.accumulation=1"]
        chosen += [f"trainer.activation_checkpointing={str(checkpointing).lower()}"]
        word = "checkpointing" if checkpointing else "plain"
        found.append((f"{size}_full_rows_{batching}_{word}", "full", chosen))
    found += [
        (f"mix_4x4_{batching}", "mix", [f"trainer.batching={batching}"])
        for batching in ("padded", "length_grouped", "packed")
    ]
    packed = ["trainer.batching=packed", "trainer.batch_size=16", "trainer.accumulation=1"]
    found.append(("mix_16x1_packed", "mix", packed))
    found.sort(
        key=lambda each: each[0].startswith("16_full") and "plain" in each[0]
    )  # may be out of memory
    return found


def flops_per_token(model: Any, length: float) -> float:
    """Model FLOPs of one token of QLoRA training in a row of ``length`` tokens.

    4 N + 6 L T h: the N weights of all linear layers, head included, are multiplied once forwards
    and once backwards at 2 FLOPs each (frozen weights have no gradient, LoRA's share is left out);
    causal attention of L layers and width h takes 2 L T h forwards (two products, half of the T
    positions, 2 FLOPs) and twice that backwards. What activation checkpointing computes again does
    not count, as in model FLOP utilisation of Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    config = model.config
    width, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_key_value_heads * width // config.num_attention_heads
    layer = 2 * width * width + 2 * width * heads + 3 * width * config.intermediate_size
    weights = layers * layer + width * config.vocab_size
    return float(4 * weights + 6 * layers * length * width)


def matrix_product_flops() -> float:
    """FLOP/s of a large product in bfloat16; of a small one on a CPU."""
    import torch

    cuda = torch.cuda.is_available()
    width = 8192 if cuda else 256
    one, other = torch.randn(2, width, width, device="cuda" if cuda else "cpu").bfloat16()
    for _ in range(3):
        one @ other
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        one @ other
    if cuda:
        torch.cuda.synchronize()
    return 20 * 2 * width**3 / (time.perf_counter() - started)


def peak_gib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else math.nan


def decode(case: Case) -> None:
    """``benchmarks.decode`` without its processes for memory, which a GPU does not need."""

    from benchmarks import decode as peers
    from dollyllama.latency.measure import peak, reset_peak

    rounds = 3
    context, tokens = (1024, 48) if case.shape == "7b" else (64, 6)
    for batch in (1, 4):
        model = peers.make_model(context + tokens, "bfloat16")
        seconds: dict[str, list[float]] = {}
        peaks: dict[str, float] = {}
        for number, side in itertools.product(range(rounds + 1), peers.SIDES):
            before = reset_peak(model.device)
            try:
                ((_, took),) = peers.write(
                    [side], model, batch=batch, context=context, tokens=tokens
                )
            except RuntimeError as error:
                if number == 0:
                    case.say(f"{side}_fails", error=str(error)[:200])
                continue
            if number:
                seconds.setdefault(side, []).append(took)
                peaks[side] = (peak(model.device) - (before or 0)) / 2**20
        case.say(
            f"{batch}x{context}",
            milliseconds={
                side: round(statistics.median(took) * 1e3, 2) for side, took in seconds.items()
            },
            ratios={
                f"{one}/{other}": round(
                    statistics.median(map(float.__truediv__, seconds[one], seconds[other])), 3
                )
                for one, other in peers.RATIOS
                if one in seconds and other in seconds
            },
            peak_mib={side: round(value, 1) for side, value in peaks.items()},
        )


def beside_trl(case: Case) -> None:
    """``benchmarks.train`` on the 7B shape and the recipe's rows, each side with a base of its own.

    Loading anew for every training, as that does, would take most of the time here.
    """
    from benchmarks import train as peers
    from dollyllama import config, launch
    from dollyllama.data.store import lengths_of
    from dollyllama.model.load import load_tokenizer

    peers.quiet()
    arguments = argparse.Namespace(
        model=str(case.base), max_length=LENGTHS[case.shape], batch_size=4, seed=0, lr=1e-3
    )
    tokenizer = load_tokenizer(arguments.model, None)
    train = training_rows(launch.compose_run(recipe(case)), tokenizer)[:64]
    rows = peers.Rows(train, train)
    lengths = lengths_of(train)
    case.say("rows", rows=len(train), tokens=sum(lengths), longest=max(lengths))
    sides: dict[str, Any] = {"DollyLlama": peers.train_ours, "TRL": peers.train_trl}
    fresh = peers.fresh_model
    used: dict[str, Any] = {}
    for number, batching, side in itertools.product(
        range(3), (config.Batching.length_grouped, config.Batching.packed), sides
    ):

        def reused(tokenizer: Any, arguments: Any, side: str = side, **_: Any) -> Any:
            if side not in used:
                used[side] = fresh(tokenizer, arguments)
            else:
                used[side] = renewed(used[side], arguments.seed, peers)
            return used[side]

        free()
        reset_gpu_peak()
        with mock.patch.object(peers, "fresh_model", reused):
            timing = sides[side](rows, tokenizer, arguments, batching=batching)
        case.say(
            f"{batching}_{side}_{number or 'warm-up'}",
            tokens_per_second=timing.tokens_per_second,
            steps=timing.steps,
            setup_seconds=timing.setup_seconds,
            loss=timing.loss,
            peak_gib=peak_gib(),
        )


def renewed(model: Any, seed: int, peers: Any) -> Any:
    """The base of a PeftModel with a new adapter, drawn as the first one was."""
    from dollyllama import config
    from dollyllama.model.adapter import attach_adapter

    return attach_adapter(
        model.unload(),
        r=peers.R,
        alpha=peers.ALPHA,
        dropout=peers.DROPOUT,
        variant=config.LoraVariant.lora,
        targets=["all-linear"],
        seed=seed,
    )


def reset_gpu_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def resume(case: Case) -> None:
    """A run that is killed without warning and goes on, beside two that nothing happens to."""
    shared = ["tracking=files", *limited(60), "evaluation=loss_only", "evaluation.before=false"]
    shared += ["trainer.checkpoint_steps=10", "trainer.keep_checkpoints=2"]
    folders = {name: case.scratch / name for name in ("whole", "again", "killed")}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "train.py", *shared, f"hydra.run.dir={folder}"], cwd=ROOT
        )
        for name, folder in folders.items()
    }
    while processes["killed"].poll() is None:
        if (folders["killed"] / "checkpoints" / "checkpoint-20").is_dir():
            processes["killed"].kill()
        time.sleep(0.005)
    status = read(folders["killed"] / "result.json")["status"]
    case.say("killed", exit=processes["killed"].returncode, status=status)
    command("train.py", f"resume={folders['killed']}")
    codes = [processes[name].wait() for name in ("whole", "again")]
    curves = {name: curve(folder) for name, folder in folders.items()}
    after = {
        name: read(folder / "result.json")["metrics"]["after"][0]["value"]
        for name, folder in folders.items()
    }
    case.say(
        "resumed",
        exits=codes,
        steps={name: len(losses) for name, losses in curves.items()},
        largest_difference=largest_difference(curves["whole"], curves["killed"]),
        of_the_two_whole_runs=largest_difference(curves["whole"], curves["again"]),
        after=after,
    )


def curve(folder: Path) -> dict[int, float]:
    """The training loss by step; of steps that were done twice, as they were done last."""
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def largest_difference(one: dict[int, float], other: dict[int, float]) -> float:
    """NaN when they have not the same steps."""
    if one.keys() != other.keys():
        return math.nan
    return max(abs(loss - other[step]) for step, loss in one.items())


def merge(case: Case) -> None:
    """``python -m dollyllama merge`` of the 7B run, in this process to see its memory."""
    from benchmarks.merge import memory
    from dollyllama.model import merge as merging
    from dollyllama.verbs import merge as verb

    writing: list[float] = []
    write_merged = merging.write_merged

    def timed(*arguments: Any, **named: Any) -> None:
        before = time.perf_counter()
        write_merged(*arguments, **named)
        writing.append(time.perf_counter() - before)

    started = time.perf_counter()
    with mock.patch.object(merging, "write_merged", timed):
        verb.main([str(case.run), "--output", str(case.merged), "--rows", "8", "--publish-anyway"])
    record = read(case.merged / "merge.json")
    case.say(
        "verb",
        seconds=time.perf_counter() - started,
        writing_seconds=writing[0],
        gib=sum(path.stat().st_size for path in case.merged.iterdir()) / 2**30,
        peak_host_gib=memory("VmHWM") / 2**30,
        peak_gpu_gib=peak_gib(),
        exceeded=record["exceeded"],
    )
    case.say("agreement", **record["agreement"])


def sweep(case: Case) -> None:
    """Four cells of the embedded model, two at once on one GPU."""
    folder = case.scratch / "sweep"
    seconds = command(
        *("sweep.py", "sweep=none", "seed=range(2)", "ablation=baseline,rank_8", "tracking=files"),
        *("hydra.launcher.n_jobs=2", "trainer.max_steps=12", f"hydra.sweep.dir={folder}"),
    )
    cells = [read(path) for path in folder.glob("*/result.json")]
    case.say(
        "cells",
        status=sorted(cell["status"] for cell in cells),
        seconds=seconds,
        cell_seconds=[round(cell["seconds"]["total"], 1) for cell in cells],
        losses=[round(cell["train"]["loss"], 4) for cell in cells],
        report=sorted(path.name for path in folder.glob("report*")),
    )


def latency(case: Case) -> None:
    """``python -m dollyllama latency`` of the 7B run, base, adapter and merged."""
    from dollyllama.verbs import latency as verb

    options = ["--merged", str(case.merged)] if case.merged.is_dir() else []
    options += ["--batch", "1", "--context", "128", "--tokens", "16"]
    started = time.perf_counter()
    verb.main([str(case.run), *options])
    record = read(next((case.run / "latency").glob("*.json")))
    for cell in record["cells"]:
        for side, timings in cell["sides"].items():
            case.say(
                side,
                first_ms=1e3 * statistics.median(each["first_seconds"] for each in timings),
                next_ms=1e3 * statistics.median(each["next_seconds"] for each in timings),
                weights_mib=record["weights_mib"][side],
                growth_mib=timings[-1]["growth_mib"],
            )
        case.say("adapter_over_merged", **cell["adapter_over_merged"])
    case.say("verb", seconds=time.perf_counter() - started, peak_gib=peak_gib())


BESIDE = "beside"
#: In this order: what is cheap and tells most comes first.
STAGES: dict[str, Stage] = {
    "default": Stage(default, 0, 120),
    "choices": Stage(choices, 0, 150),
    "seven": Stage(seven, 1, 200, needs=BESIDE),
    "decode": Stage(decode, 2, 75),
    "trl": Stage(beside_trl, 3, 130, needs=BESIDE),
    "resume": Stage(resume, 4, 100),
    "sweep": Stage(sweep, 4, 120),
    "merge": Stage(merge, 5, 150, needs="seven"),
    "latency": Stage(latency, 6, 90, needs="seven"),
}

_T = TypeVar("_T")

if __name__ == "__main__":
    main()
