"""The base model as ``load_base`` makes it, but for its numbers: on the meta device, at once."""

from __future__ import annotations

from typing import Any

import torch

from dollyllama.config import Dtype, Quantization
from dollyllama.model.load import quantization_config

#: bitsandbytes' defaults: numbers that share a scale, and scales that share one when quantised too.
_BLOCK, _SCALES_BLOCK = 64, 256


def empty_base(about: Any, *, dtype: Dtype, quantization: Quantization, rows: int) -> Any:
    """Build the causal model that ``about``, a transformers config, describes, frozen.

    Its weights and their scales have the shapes and dtypes of loaded ones, and no memory. rows: of
    the embeddings, should the config have fewer.
    """
    from transformers import AutoModelForCausalLM

    about.vocab_size = max(about.vocab_size, rows)
    about.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            about, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    if (settings := quantization_config(quantization)) is not None:
        _quantise(model, settings)
    return model.requires_grad_(False)


def _quantise(model: Any, settings: Any) -> None:
    """Put bitsandbytes' layers in, as if their weights had been quantised."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    dtype = model.dtype
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), settings)
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # as ``load_base`` has it
            module.weight = type(weight)(
                torch.empty((-(-weight.numel() // 2), 1), dtype=torch.uint8, device="meta"),
                quant_type=weight.quant_type,
                compress_statistics=weight.compress_statistics,
                quant_state=_scales(weight, dtype),
                bnb_quantized=True,
            )
        elif type(module).__name__ == "Linear8bitLt":
            module.state.threshold = 0.0  # how many outliers there are, only numbers tell
            module.weight = type(weight)(
                torch.empty(weight.shape, dtype=torch.int8, device="meta"),
                requires_grad=False,
                has_fp16_weights=False,
                CB=torch.empty(weight.shape, dtype=torch.int8, device="meta"),
                SCB=torch.empty(len(weight), device="meta"),
            )
    # By these PEFT tells which of its layers to put on.
    model.is_loaded_in_8bit = settings.load_in_8bit
    model.is_loaded_in_4bit = settings.load_in_4bit


def _scales(weight: Any, dtype: torch.dtype) -> Any:
    """What bitsandbytes keeps of a 4-bit weight beside its numbers."""
    from bitsandbytes.functional import QuantState

    blocks = -(-weight.numel() // _BLOCK)
    double = weight.compress_statistics
    return QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if double else torch.float32, device="meta"),
        shape=weight.shape,
        code=torch.empty(16, device="meta"),
        blocksize=_BLOCK,
        quant_type=weight.quant_type,
        dtype=dtype,
        offset=torch.empty((), device="meta") if double else None,
        state2=QuantState(
            absmax=torch.empty(-(-blocks // _SCALES_BLOCK), device="meta"),
            code=torch.empty(256, device="meta"),
            blocksize=_SCALES_BLOCK,
            dtype=torch.float32,
        )
        if double
        else None,
    )
