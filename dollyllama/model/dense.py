"""Linear layers of a frozen model by dense weights, while many forward passes need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dollyllama.model.forwards import replaced_forwards
from dollyllama.model.precision import products_in

#: The share of free memory that dequantised weights may take.
_SHARE = 0.25
#: Of so many rows a product takes longer than reading its weights, even if widened for it.
_MANY_ROWS = 8


@contextmanager
def dense_weights(model: Any) -> Iterator[None]:
    """Let a CPU do a model's linear layers by weights that are made dense once, not in each pass.

    They are kept where there is room: generation makes all weights dense for every token, which
    takes as long as the products with them. Where float32 products are faster (``products_in``) all
    but those of few rows are in float32, with weights rounded as ever; all others keep their bits.
    A GPU has kernels that need no dense weights. For evaluation: there is no backward pass.
    """
    from bitsandbytes.nn import Linear4bit

    if model.device.type != "cpu":
        yield
        return
    packed = [each for each in model.modules() if type(each) is Linear4bit]
    slow = [each for each in model.modules() if type(each) is nn.Linear and _is_slow(each.weight)]
    size = sum(
        layer.in_features * layer.out_features * (layer.compute_dtype or torch.float32).itemsize
        for layer in packed
    )
    keep = size <= _SHARE * psutil.virtual_memory().available
    with replaced_forwards((layer, _with_dense(layer, keep=keep)) for layer in [*packed, *slow]):
        yield


def dense_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """A frozen linear layer's weight (out, in): of 4 bits, what bitsandbytes multiplies by."""
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    return weight.detach().to(dtype)  # type: ignore[no-any-return]


def _is_slow(weight: Tensor) -> bool:
    return products_in(weight.dtype, weight.device) is not weight.dtype


def _with_dense(layer: Any, *, keep: bool) -> Callable[[Tensor], Tensor]:
    kept: dict[torch.dtype, Tensor] = {}

    def forward(x: Tensor) -> Tensor:
        dtype = getattr(layer, "compute_dtype", None) or x.dtype
        weight = kept.get(dtype)
        if weight is None:
            weight = dense_weight(layer, dtype)
            if keep:
                kept[dtype] = weight
        narrow = x.to(dtype)
        if x.numel() >= _MANY_ROWS * x.shape[-1]:
            dtype = products_in(dtype, x.device)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return linear(narrow.to(dtype), weight.to(dtype), bias).to(x.dtype)

    return forward
