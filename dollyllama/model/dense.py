"""Weights made dense, and kept so while many small forward passes need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.functional import linear

from dollyllama.model.forwards import replaced_forwards

#: The share of free memory that dequantised weights may take.
_SHARE = 0.25


@contextmanager
def dense_weights(model: Any) -> Iterator[None]:
    """Keep what bitsandbytes makes of 4-bit weights anew in each pass, where a CPU has the room.

    Generation makes all weights dense for every token, which on a CPU takes as long as the products
    with them. Results keep their bits, for it is the same product with the same numbers. A GPU has
    kernels that need no dense weights. For evaluation: there is no backward pass.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    size = sum(
        layer.in_features * layer.out_features * (layer.compute_dtype or torch.float32).itemsize
        for layer in layers
    )
    if model.device.type != "cpu" or size > _SHARE * psutil.virtual_memory().available:
        yield
        return
    with replaced_forwards((layer, _with_dense(layer)) for layer in layers):
        yield


def dense_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """A frozen linear layer's weight (out, in): of 4 bits, what bitsandbytes multiplies by."""
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    return weight.detach().to(dtype)  # type: ignore[no-any-return]


def _with_dense(layer: Any) -> Callable[[Tensor], Tensor]:
    dense: dict[torch.dtype, Tensor] = {}

    def forward(x: Tensor) -> Tensor:
        narrow = x.to(layer.compute_dtype or x.dtype)
        if narrow.dtype not in dense:
            dense[narrow.dtype] = dense_weight(layer, narrow.dtype)
        bias = None if layer.bias is None else layer.bias.to(narrow.dtype)
        return linear(narrow, dense[narrow.dtype], bias).to(x.dtype)

    return forward
