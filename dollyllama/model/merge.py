"""An adapter added to its base's weights, part by part, without loading the model."""

from __future__ import annotations

import enum
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollyllama.config import Dtype, Quantization, QuantizationMethod
from dollyllama.model.load import end_tokens, find_kept_base, read_model_config
from dollyllama.model.requantise import BLOCK, Packed, dequantise, list_packed, requantise
from dollyllama.model.shards import Stored, list_tensors, read_parts, read_tensor, write_shards
from dollyllama.model.updates import Update, read_updates

#: Numbers of a weight that are in work at a time, few enough for a processor's cache.
_PART = 2**19
_SPECIAL = ("bos", "eos", "pad")


class Base(StrEnum):
    """Which weights the adapter is added to: those that it saw in training, or the checkpoint's."""

    quantised = enum.auto()
    original = enum.auto()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What becomes of a checkpoint's weights, told by their names.

    quantised: weights to merge into as ``quantization`` holds them. packed: those of them that are
    kept so, and need not be quantised again. embeddings: weights with a row a token; they grow to
    ``vocabulary`` rows, the new ones the mean of the old ones, and never shrink. base_dtype: in
    which the run loaded its base. dtype: of the result.
    """

    updates: Mapping[str, Update]
    quantised: Collection[str]
    packed: Mapping[str, Packed]
    quantization: Quantization
    embeddings: Collection[str]
    vocabulary: int
    base_dtype: torch.dtype
    dtype: torch.dtype


def write_weights(base_folder: Path, output: Path, recipe: Recipe, *, max_shard_bytes: int) -> None:
    """Write the merged weights of the checkpoint in ``base_folder`` to the folder ``output``.

    In memory are the adapter and, on each of a few threads, some megabytes of a weight, or the
    whole of one that grows or is PiSSA's. ValueError when recipe and checkpoint do not fit, or the
    disk has too little space.
    """
    tensors = {each.name: each for each in list_tensors(base_folder)}
    shapes = {name: _shape(each, recipe) for name, each in tensors.items()}
    for name, update in recipe.updates.items():
        if name not in tensors:
            raise ValueError(f"the adapter changes {name}, which {base_folder} does not hold")
        if update.shape != shapes[name]:
            raise ValueError(f"the adapter does not fit {name} of {base_folder}")
    size = sum(map(math.prod, shapes.values())) * recipe.dtype.itemsize
    free = shutil.disk_usage(output).free
    if size > free:
        raise ValueError(
            f"the disk of --output has {free / 2**30:.1f} GiB free, the merged model needs "
            f"{size / 2**30:.1f} GiB: name another --output"
        )
    write_shards(
        output,
        shapes,
        recipe.dtype,
        lambda name: _merged_parts(tensors[name], recipe),
        max_shard_bytes,
    )


def _shape(each: Stored, recipe: Recipe) -> tuple[int, ...]:
    if each.name not in recipe.embeddings:
        return each.shape
    return (max(each.shape[0], recipe.vocabulary), *each.shape[1:])


def _merged_parts(each: Stored, recipe: Recipe) -> Iterator[Tensor]:
    """The parts of a merged weight; each is there until the next one is asked for."""
    update = recipe.updates.get(each.name)
    first = 0
    wide = rounded = torch.empty(0)
    for part in _base_parts(each, recipe):
        if update is None:
            yield part.to(recipe.dtype)
            continue
        if not first:  # the largest; what others take is freed and faulted in again for each
            wide = torch.empty_like(part, dtype=torch.float32)
            rounded = torch.empty_like(part, dtype=recipe.dtype)
        rows = slice(first, first + len(part))
        merged = wide[: len(part)].copy_(part)
        add(merged, update, rows)
        yield rounded[: len(part)].copy_(merged)
        first = rows.stop


def _base_parts(each: Stored, recipe: Recipe) -> Iterator[Tensor]:
    """The weight that the adapter is added to, in the run's dtype."""
    update = recipe.updates.get(each.name)
    most = _PART
    if each.name in recipe.quantised and math.prod(each.shape[1:]) % BLOCK:
        most = math.prod(each.shape)  # blocks go on from row to row

    def parts() -> Iterator[Tensor]:
        if _shape(each, recipe) != each.shape:
            yield from _split(_grow(each, recipe), most)
        else:
            yield from (part.to(recipe.base_dtype) for part in read_parts(each, most))

    if each.name not in recipe.quantised:
        found = parts()
    elif (packed := recipe.packed.get(each.name)) is not None:
        found = dequantise(packed, most)
    else:
        found = requantise(parts, recipe.quantization)
    if update is not None and update.pissa:
        whole = torch.cat([part.clone() for part in found])
        found = _split(residual(whole, len(update.a), update.scaling), most)
    yield from found


def _grow(each: Stored, recipe: Recipe) -> Tensor:
    weight = read_tensor(each).to(recipe.base_dtype)
    mean = weight.mean(dim=0, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(recipe.vocabulary - len(weight), -1)])


def _split(weight: Tensor, most: int) -> Iterator[Tensor]:
    """In parts of ``most`` numbers or one row."""
    yield from torch.split(weight, max(1, most // weight.shape[1]))


def add(weight: Tensor, update: Update, rows: slice) -> None:
    """Add the update to those rows of a weight (out, in), float32, in place."""
    weight.addmm_(update.b[rows], update.a, alpha=update.scaling)
    if update.magnitude is not None:
        weight *= (update.magnitude[rows] / torch.linalg.vector_norm(weight, dim=1))[:, None]


def residual(weight: Tensor, r: int, scaling: float) -> Tensor:
    """A weight (out, in) without its ``r`` first singular vectors, PiSSA's base; dtype as it was.

    Meng et al. 2024, arXiv:2404.02948, computed as PEFT 0.21 does whenever it puts such an adapter
    on the checkpoint: the adapter was trained on what that left, its rounding included.
    """
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    roots = torch.diag(torch.sqrt(s[:r] / scaling))
    principal: Tensor = scaling * (u[:, :r] @ roots) @ (roots @ vh[:r])
    return (weight.float() - principal).to(weight.dtype)


def _packed(base_folder: Path, base_dtype: Dtype, quantization: Quantization) -> dict[str, Packed]:
    kept = find_kept_base(base_folder, base_dtype, quantization)
    return {} if kept is None else list_packed(kept)


def write_merged(
    base_folder: Path,
    adapter: Path,
    output: Path,
    *,
    tokenizer: Any,
    base: Base,
    base_dtype: Dtype,
    quantization: Quantization,
    dtype: Dtype,
    max_shard_bytes: int,
) -> None:
    """Write base plus adapter to the folder ``output``, ``config.json`` last.

    base_dtype: in which the run loaded its base, which is read as it is kept in 4 bits, if it is.
    ValueError when adapter and base do not fit, or the disk has too little space.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = read_model_config(base_folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    quantised = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    embeddings = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if module is head or module is model.get_input_embeddings()
    }
    if base is Base.original or quantization.method is QuantizationMethod.none:
        quantised = set()
    rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    target = getattr(torch, dtype)
    recipe = Recipe(
        updates=read_updates(adapter),
        quantised=quantised,
        packed=_packed(base_folder, base_dtype, quantization) if quantised else {},
        quantization=quantization,
        embeddings=embeddings,
        vocabulary=rows,
        base_dtype=getattr(torch, base_dtype),
        dtype=target,
    )
    output.mkdir()
    write_weights(base_folder, output, recipe, max_shard_bytes=max_shard_bytes)
    tokenizer.save_pretrained(output)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    try:
        own = GenerationConfig.from_pretrained(base_folder)
    except OSError:  # it has none
        own = GenerationConfig.from_model_config(config)
    ends = end_tokens(tokenizer, own)
    GenerationConfig(**special | {"eos_token_id": ends}).save_pretrained(output)
    config.update({"vocab_size": rows, "architectures": [type(model).__name__], **special})
    config.dtype = target
    config.save_pretrained(output)
