"""How fast the weights of a 7B-shaped model are merged beside copying its files, in what memory.

    python -m benchmarks.merge [--folder DIR] [--rounds 3]

A checkpoint with the shapes of open_llama_7b's layers, as many as make 5 GiB in bfloat16, and a
LoRA adapter (r 16) on all its linear layers and the head are made of random numbers; no model is
loaded, and the verification of ``merge`` is no part of this. The sides take turns, each in a
process of its own: copying the files with ``shutil.copyfile``, and merging into the weights as they
are and as NF4 with double quantisation holds them: read as training on a CPU keeps them on the
disk, and quantised on the way, as after training on a GPU. After a round that does not count, the
files to read are in the page cache for all; before each turn, what others wrote is flushed. Two
times are taken of each: until everything is written into the page cache, and until an fsync of each
file has brought it to the disk. Memory is the peak of the resident set (VmHWM) beyond what the
interpreter had when its imports were done.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.train import layout
from dollyllama import config
from dollyllama.files import write_json
from dollyllama.model.merge import Recipe, write_weights
from dollyllama.model.requantise import BLOCK, Packed, list_packed
from dollyllama.model.shards import list_tensors, read_tensor, write_shards
from dollyllama.model.updates import read_updates

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 4096, 11008, 32000, 12
R = 16
DTYPE = torch.bfloat16
MAX_SHARD_BYTES = 2**31
NF4 = config.Quantization(
    method=config.QuantizationMethod.nf4, double=True, compute_dtype=config.Dtype.bfloat16
)
LINEAR = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds until all is in the page cache and until all is on the disk; bytes of memory."""

    written: float
    synced: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to write, default: the temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merge-", dir=given.folder) as temporary:
        folder = Path(temporary)
        size = sum(rows * width for rows, width in map(as_matrix, shapes().values())) * 2
        free = shutil.disk_usage(folder).free
        if free < 2.4 * size:
            sys.exit(
                f"{folder.parent} has {free / 2**30:.1f} GiB free, this needs "
                f"{2.4 * size / 2**30:.1f} GiB: name another --folder"
            )
        make_checkpoint(folder / "base")
        make_adapter(folder / "adapter")
        keep(folder / "base", folder / "kept")
        print(
            f"{size / 2**30:.2f} GiB in {len(list((folder / 'base').glob('*.safetensors')))} "
            f"files, LoRA r {R} on {len(LINEAR) * LAYERS + 1} weights, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
        )
        turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        for number in tqdm(range(given.rounds + 1), desc="rounds", disable=None):
            for side in SIDES:
                turn = take_turn(side, folder)
                if number:  # the first brings the files into the page cache
                    turns[side].append(turn)
    print(layout(table(turns, size)))
    print(
        "\nMedians with lowest to highest. share: the speed as a share of copying's, from the "
        "medians, with the lowest\nand highest within one round."
    )


def shapes() -> dict[str, tuple[int, ...]]:
    """All weights by name, as a Llama has them."""
    layers: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(LAYERS)
        for name, shape in {**LINEAR, **dict.fromkeys(NORMS, (HIDDEN,))}.items()
    }
    return {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        **layers,
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], 1) if len(shape) == 1 else (shape[0], shape[1])


def make_checkpoint(folder: Path) -> None:
    """Normal numbers of a weight's usual size; all rows are cut from the same ones."""
    folder.mkdir()
    numbers = (torch.randn(2**25) * 0.02).to(DTYPE)

    def parts(name: str) -> Iterator[Tensor]:
        rows, width = as_matrix(shapes()[name])
        most = len(numbers) // width
        for first in range(0, rows, most):
            yield numbers[: min(most, rows - first) * width]

    write_shards(folder, shapes(), DTYPE, parts, MAX_SHARD_BYTES)


def keep(base: Path, folder: Path) -> None:
    """The layers in 4 bits, as transformers writes them; all layers are the same numbers."""
    import bitsandbytes.functional as bnb
    from safetensors.torch import save_file

    folder.mkdir()
    stored = {each.name: each for each in list_tensors(base)}
    for layer in LINEAR:
        weight = read_tensor(stored[f"model.layers.0.{layer}.weight"])
        packed, state = bnb.quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        about = {"": packed} | {
            f".{name}": tensor for name, tensor in state.as_dict(packed=True).items()
        }
        for number in range(LAYERS):
            name = f"model.layers.{number}.{layer}"
            # One file a weight, as the numbers of one layer are in memory at a time.
            save_file(
                {f"{name}.weight{part}": tensor for part, tensor in about.items()},
                folder / f"{name}.safetensors",
            )
    files = {path.stem + ".weight": path.name for path in folder.glob("*.safetensors")}
    index = {"metadata": {}, "weight_map": files}
    write_json(folder / "model.safetensors.index.json", index)


def make_adapter(folder: Path) -> None:
    """In PEFT's format."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    targets = [*LINEAR, "lm_head"]
    LoraConfig(r=R, lora_alpha=2 * R, target_modules=targets).save_pretrained(str(folder))
    tensors = {}
    for name in adapted():
        rows, width = shapes()[f"{name}.weight"]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(R, width) * 0.02
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, R) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")


def adapted() -> list[str]:
    return [name.removesuffix(".weight") for name, shape in shapes().items() if is_linear(name)]


def is_linear(name: str) -> bool:
    return "proj" in name or "lm_head" in name


def copy(folder: Path, output: Path) -> None:
    for path in (folder / "base").iterdir():
        shutil.copyfile(path, output / path.name)


def merge_original(folder: Path, output: Path) -> None:
    merge(folder, output, [], {})


def merge_kept(folder: Path, output: Path) -> None:
    packed = list_packed(folder / "kept")
    merge(folder, output, list(packed), packed)


def merge_quantised(folder: Path, output: Path) -> None:
    merge(folder, output, [name for name in shapes() if "proj" in name], {})


def merge(
    folder: Path, output: Path, quantised: Sequence[str], packed: Mapping[str, Packed]
) -> None:
    recipe = Recipe(
        updates=read_updates(folder / "adapter"),
        quantised=frozenset(quantised),
        packed=packed,
        quantization=NF4,
        embeddings=(),
        vocabulary=VOCABULARY,
        base_dtype=DTYPE,
        dtype=DTYPE,
    )
    write_weights(folder / "base", output, recipe, max_shard_bytes=MAX_SHARD_BYTES)


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "copy": copy,
    "merge --base original": merge_original,
    "merge --base quantised": merge_kept,
    "the same, base not kept": merge_quantised,
}


def take_turn(side: str, folder: Path) -> Turn:
    output = folder / "output"
    output.mkdir()
    os.sync()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=import_all) as pool:
        turn = pool.submit(measure, side, folder, output).result()
    shutil.rmtree(output)
    return turn


def import_all() -> None:
    """What a merge imports when it comes to it."""
    for name in ("bitsandbytes.functional", "safetensors.torch"):
        importlib.import_module(name)


def measure(side: str, folder: Path, output: Path) -> Turn:
    before = memory("VmRSS")
    started = time.perf_counter()
    SIDES[side](folder, output)
    written = time.perf_counter() - started
    for path in output.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return Turn(written, time.perf_counter() - started, memory("VmHWM") - before)


def memory(what: str) -> int:
    """Bytes, from Linux' account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {what}")


def table(turns: dict[str, list[Turn]], size: int) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [
        ("side", "until", "seconds", "", "GB/s", "share", "", "peak MiB")
    ]
    for side, taken in turns.items():
        peak = f"{max(each.peak for each in taken) / 2**20:,.0f}"
        for until in ("written", "synced"):
            seconds = [getattr(each, until) for each in taken]
            base = [getattr(each, until) for each in turns["copy"]]
            shares = [theirs / ours for ours, theirs in zip(seconds, base, strict=True)]
            lines.append(
                (
                    side,
                    until,
                    f"{statistics.median(seconds):.1f}",
                    f"{min(seconds):.1f} to {max(seconds):.1f}",
                    f"{size / 1e9 / statistics.median(seconds):.2f}",
                    f"{statistics.median(base) / statistics.median(seconds):.0%}",
                    f"{min(shares):.0%} to {max(shares):.0%}",
                    peak,
                )
            )
    return lines


if __name__ == "__main__":
    main()
