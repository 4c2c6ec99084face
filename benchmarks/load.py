"""How soon a 7B-shaped base is ready in NF4, and in what memory: kept beside quantised each time.

    python -m benchmarks.load [--folder DIR] [--rounds 1] [--layers 32] [--hidden 4096]

A checkpoint with the shapes of open_llama_7b in bfloat16 is made of random numbers, in shards of at
most 2 GiB; ``--layers`` and ``--hidden`` make smaller ones. The sides take turns, each in a process
of its own: transformers' ``from_pretrained`` with a ``BitsAndBytesConfig``; ``load_base`` with an
empty cache, which quantises and keeps; ``load_base`` with what that kept. Two times are taken:
until the model is there, and until it has answered eight tokens, since mapped weights are read by
then at the latest. Processor time, until the model is there, is less disturbed by other work on the
machine. The logits must be the same bits. Imports are done and the files are in the page
cache. Memory is what the process had beyond its imports at most: anonymous (its own, sampled every
10 ms until the model is there) and resident (VmHWM, which counts mapped files that others share and
the kernel can drop at will).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.train import layout
from dollyllama import config
from dollyllama.model import quantised
from dollyllama.model.load import load_base, quantization_config
from dollyllama.model.shards import write_shards

VOCABULARY, MAX_SHARD_BYTES = 32000, 2**31
DTYPE = torch.bfloat16
NF4 = config.Quantization(
    method=config.QuantizationMethod.nf4, double=True, compute_dtype=config.Dtype.bfloat16
)
SIDES = ("transformers", "first load_base", "next load_base")
IDS = torch.arange(3, 11)[None]


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds until the model is there and until it has answered; bytes; digest of the logits.

    processor: seconds of all threads until the model is there.
    """

    loaded: float
    answered: float
    processor: float
    own: int
    resident: int
    logits: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to write, default: the temporary one")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    given = parser.parse_args()
    shapes = shapes_of(given.layers, given.hidden)
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * DTYPE.itemsize
    with tempfile.TemporaryDirectory(prefix="load-", dir=given.folder) as temporary:
        folder = Path(temporary)
        free = shutil.disk_usage(folder).free
        if free < 1.5 * size:
            sys.exit(
                f"{folder.parent} has {free / 2**30:.1f} GiB free, this needs "
                f"{1.5 * size / 2**30:.1f} GiB: name another --folder"
            )
        make_checkpoint(folder / "base", shapes)
        shards = len(list((folder / "base").glob("*.safetensors")))
        print(
            f"{size / 2**30:.2f} GiB in {shards} files, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}\n"
        )
        turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        for _ in tqdm(range(given.rounds), desc="rounds", disable=None):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for side in SIDES:
                turn = take_turn(side, folder)
                tqdm.write(f"{side}: {turn.loaded:.1f} s, {turn.processor:.1f} s of processor")
                turns[side].append(turn)
        kept = sum(path.stat().st_size for path in (folder / "cache" / "bases").rglob("*.*"))
    if len({turn.logits for taken in turns.values() for turn in taken}) > 1:
        sys.exit("the sides answer differently")
    print(layout(table(turns)))
    print(
        f"\n{kept / 2**30:.2f} GiB kept. Medians with lowest to highest; times as fast: "
        f"{SIDES[0]}' median over the side's."
    )


def shapes_of(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """All weights by name, as a Llama has them; between layers 2.6875 times ``hidden``, as 7B."""
    between = hidden * 43 // 16
    linear = {
        **{f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"},
        **{f"mlp.{name}_proj": (between, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (hidden, between),
    }
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,))
    return {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        **{
            f"model.layers.{number}.{name}.weight": shape
            for number in range(layers)
            for name, shape in (linear | norms).items()
        },
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }


def make_checkpoint(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Normal numbers of a weight's usual size; all rows are cut from the same ones."""
    from transformers import LlamaConfig

    folder.mkdir()
    numbers = (torch.randn(2**24 + 1, generator=torch.Generator().manual_seed(0)) * 0.02).to(DTYPE)

    def parts(name: str) -> Iterator[torch.Tensor]:
        left = torch.Size(shapes[name]).numel()
        while left:
            yield numbers[: min(left, len(numbers))]
            left -= min(left, len(numbers))

    write_shards(folder, shapes, DTYPE, parts, MAX_SHARD_BYTES)
    between, hidden = shapes["model.layers.0.mlp.up_proj.weight"]
    settings = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=between,
        num_hidden_layers=sum(name.endswith("up_proj.weight") for name in shapes),
        num_attention_heads=hidden // 64 if hidden < 4096 else 32,
        vocab_size=VOCABULARY,
    ).to_dict()
    (folder / "config.json").write_text(
        json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}), encoding="utf-8"
    )


def take_turn(side: str, folder: Path) -> Turn:
    os.environ["DOLLYLLAMA_CACHE"] = str(folder / "cache")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=import_all) as pool:
        return pool.submit(measure, side, folder).result()


def import_all() -> None:
    """What loading imports when it comes to it."""
    import bitsandbytes  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    quantised.MIN_BYTES = 0


def measure(side: str, folder: Path) -> Turn:
    with peak_of("RssAnon") as own:
        resident = memory("VmRSS")
        started, processor = time.perf_counter(), time.process_time()
        model = load_peer(folder / "base") if side == SIDES[0] else load_ours(folder / "base")
        loaded, processor = time.perf_counter() - started, time.process_time() - processor
    with torch.no_grad():
        logits = model(IDS).logits
    answered = time.perf_counter() - started
    return Turn(
        loaded,
        answered,
        processor,
        own[0],
        memory("VmHWM") - resident,
        hashlib.sha256(logits.float().numpy().tobytes()).hexdigest(),
    )


def load_ours(base: Path) -> Any:
    tokens = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    tokenizer = type("Tokenizer", (SimpleNamespace,), {"__len__": lambda _: VOCABULARY})(
        **vars(tokens)
    )
    return load_base(
        str(base),
        None,
        pickled_weights=False,
        dtype=config.Dtype.bfloat16,
        quantization=NF4,
        device=torch.device("cpu"),
        tokenizer=tokenizer,
    )


def load_peer(base: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=DTYPE,
        quantization_config=quantization_config(NF4),
        device_map={"": "cpu"},
        attn_implementation="sdpa",
    )
    for (
        module
    ) in model.modules():  # else CPUs with AVX512-BF16 answer by another kernel, as rounded
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def peak_of(what: str) -> Iterator[list[int]]:
    """Bytes of memory that are had at most beyond those at the beginning, in a list of one."""
    before, peak, done = memory(what), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory(what) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def memory(what: str) -> int:
    """Bytes, from Linux' account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {what}")


def table(turns: dict[str, list[Turn]]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [
        ("side", "seconds", "median", "", "times as fast", "own MiB", "resident MiB")
    ]
    for side, taken in turns.items():
        for until in ("loaded", "answered", "processor"):
            seconds = [getattr(each, until) for each in taken]
            peer = statistics.median(getattr(each, until) for each in turns[SIDES[0]])
            lines.append(
                (
                    side,
                    until,
                    f"{statistics.median(seconds):.2f}",
                    f"{min(seconds):.2f} to {max(seconds):.2f}",
                    f"{peer / statistics.median(seconds):.2f}",
                    f"{max(each.own for each in taken) / 2**20:,.0f}",
                    f"{max(each.resident for each in taken) / 2**20:,.0f}",
                )
            )
    return lines


if __name__ == "__main__":
    main()
