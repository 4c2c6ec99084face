"""An adapter added to its base's weights, tensor by tensor, without loading the model."""

from __future__ import annotations

import enum
import json
import math
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dollyllama.config import Dtype, Quantization, QuantizationMethod
from dollyllama.model.load import silence_notices
from dollyllama.model.shards import (
    Stored,
    list_tensors,
    plan_shards,
    read_tensor,
    write_index,
    write_shard,
)

_PREFIX = "base_model.model."


class Base(StrEnum):
    """Which weights the adapter is added to: those that it saw in training, or the checkpoint's."""

    quantised = enum.auto()
    original = enum.auto()


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter does to one weight (out, in): A (r, in), B (out, r), float32.

    magnitude: DoRA's, (out,), or None.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None


def read_updates(folder: Path) -> dict[str, Update]:
    """The adapter in ``folder`` by the name of the weight that it changes.

    ValueError for a damaged adapter, and for one whose update is not of LoRA's, rsLoRA's or DoRA's
    form (Hu et al. 2021, arXiv:2106.09685; arXiv:2312.03732; Liu et al. 2024, arXiv:2402.09353).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {folder} cannot be read: copy the folder again"
        ) from error
    if settings["init_lora_weights"] == "pissa":
        raise ValueError(
            f"the adapter in {folder} is of lora=pissa, which changes its base as well: it cannot "
            f"be merged; load it with PEFT as its README.md says"
        )
    r = settings["r"]
    scaling = settings["lora_alpha"] / (math.sqrt(r) if settings["use_rslora"] else r)
    updates = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        if f"{module}.lora_B.weight" not in tensors:
            raise ValueError(f"the adapter in {folder} lacks {module}.lora_B.weight: copy it again")
        magnitude = tensors.get(f"{module}.lora_magnitude_vector")
        if settings["use_dora"] and magnitude is None:
            raise ValueError(f"the adapter in {folder} lacks the magnitude of {module}")
        updates[f"{module.removeprefix(_PREFIX)}.weight"] = Update(
            a=tensors[key].float(),
            b=tensors[f"{module}.lora_B.weight"].float(),
            scaling=scaling,
            magnitude=None if magnitude is None else magnitude.float().flatten(),
        )
    return updates


def add(weight: Tensor, update: Update) -> Tensor:
    """``weight`` (out, in), any dtype, with the update added: float32."""
    merged = torch.addmm(weight.float(), update.b, update.a, alpha=update.scaling)
    if update.magnitude is not None:
        merged *= (update.magnitude / torch.linalg.vector_norm(merged, dim=1))[:, None]
    return merged


def requantise(weight: Tensor, quantization: Quantization) -> Tensor:
    """``weight`` as ``load_base`` holds it quantised, dequantised again; dtype as it was."""
    silence_notices()
    import bitsandbytes.functional as bnb

    found: Tensor
    match quantization.method:
        case QuantizationMethod.none:
            return weight
        case QuantizationMethod.int8:
            packed, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
            found = bnb.int8_vectorwise_dequant(packed, scales)
        case QuantizationMethod.nf4 | QuantizationMethod.fp4:
            packed, state = bnb.quantize_4bit(
                weight,
                blocksize=64,
                compress_statistics=bool(quantization.double),
                quant_type=str(quantization.method),
            )
            found = bnb.dequantize_4bit(packed, state)
    return found.to(weight.dtype)


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

    base_dtype: in which the run loaded its base. ValueError when adapter and base do not fit, or
    the disk has too little space.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(base_folder)
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
    updates = read_updates(adapter)
    tensors = list_tensors(base_folder)
    absent = sorted(set(updates) - {each.name for each in tensors})
    if absent:
        raise ValueError(f"{adapter} changes {absent[0]}, which {base_folder} does not hold")
    rows = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    target = getattr(torch, dtype)

    def shape(each: Stored) -> tuple[int, ...]:
        return (rows, *each.shape[1:]) if each.name in embeddings else each.shape

    def result(each: Stored) -> Tensor:
        weight = read_tensor(each).to(getattr(torch, base_dtype))
        if each.name in embeddings and rows > len(weight):
            mean = weight.mean(dim=0, dtype=torch.float32).to(weight.dtype)
            weight = torch.cat([weight, mean.expand(rows - len(weight), -1)])
        if base is Base.quantised and each.name in quantised:
            weight = requantise(weight, quantization)
        if each.name in updates:
            update = updates[each.name]
            if (len(update.b), update.a.shape[1]) != tuple(weight.shape):
                raise ValueError(f"{adapter} does not fit {each.name} of {base_folder}")
            weight = add(weight, update)
        return weight.to(target)

    sizes = [math.prod(shape(each)) * target.itemsize for each in tensors]
    free = shutil.disk_usage(output.parent).free
    if sum(sizes) > free:
        raise ValueError(
            f"{output.parent} has {free / 2**30:.1f} GiB free, the merged model needs "
            f"{sum(sizes) / 2**30:.1f} GiB: name another --output"
        )
    output.mkdir()
    shards = plan_shards(sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, positions in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        group = [tensors[position] for position in positions]
        write_shard(
            output / name, [(each.name, shape(each)) for each in group], target, map(result, group)
        )
        weight_map |= {each.name: name for each in group}
    write_index(output, weight_map, sum(sizes))
    tokenizer.save_pretrained(output)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    GenerationConfig(**special).save_pretrained(output)
    config.update({"vocab_size": rows, "architectures": [type(model).__name__], **special})
    config.dtype = target
    config.save_pretrained(output)


_SPECIAL = ("bos", "eos", "pad")
