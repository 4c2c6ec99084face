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

#: The share of free memory that dense weights may take.
_SHARE = 0.25
#: Of so many rows a product takes longer than reading its weights, even if widened for it.
_MANY_ROWS = 8
#: Products of up to so many rows in float32 are faster with packed weights, and in bfloat16 no
#: slower of any; from so many numbers on.
_PACKED_ROWS, _PACKED_SIZE = 256, 2**17
#: Rows that weights are packed for: that suits one row as well, and packing for one suits no other.
_PACKED_FOR = 4


@contextmanager
def dense_weights(model: Any) -> Iterator[None]:
    """Let a CPU do a model's linear layers by weights that are made dense once, not in each pass.

    They are kept where there is room: generation makes all weights dense for every token, which
    takes as long as the products with them. Kept weights are packed in the order in which oneDNN
    reads them, in the dtype of the fastest products (``products_in``): one of few rows is faster
    then (docs/decoding.md). Without room for them only products of many rows are in that dtype.
    Weights are rounded as ever, and all other products keep their bits.
    A GPU has kernels that need no dense weights. For evaluation: there is no backward pass.
    """
    from bitsandbytes.nn import Linear4bit

    if model.device.type != "cpu":
        yield
        return
    layers = [each for each in model.modules() if type(each) is Linear4bit or _can_gain(each)]
    keep = has_room_for(sum(map(_bytes, layers)))
    with replaced_forwards(
        (each, _by_packed(each) if keep and _can_pack(each) else _by_dense(each, keep=keep))
        for each in layers
    ):
        yield


def dense_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """A frozen linear layer's weight (out, in): where quantised, what bitsandbytes multiplies by.

    Of int8 that is what it multiplies by when it trains on a CPU.
    """
    weight: Any = layer.weight
    if type(layer).__name__ == "Linear8bitLt":
        scales = getattr(weight, "SCB", None)
        if scales is None:  # the layer took them along when it was first asked
            scales = layer.state.SCB
        return weight.detach().to(dtype).mul_(scales[:, None] * (1 / 127))  # type: ignore[no-any-return]
    # A weight that was gathered from shares has none, its layer does.
    state = getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state)
    return weight.detach().to(dtype)  # type: ignore[no-any-return]


def has_room_for(size: int) -> bool:
    """Whether a CPU's memory has room for dense weights of so many bytes beside all else."""
    return bool(size <= _SHARE * psutil.virtual_memory().available)


def _can_gain(module: Any) -> bool:
    """Whether a layer that is dense already can be faster in another dtype or packed."""
    if type(module) is not nn.Linear:
        return False
    dtype = module.weight.dtype
    return products_in(dtype, module.weight.device) is not dtype or _can_pack(module)


def _can_pack(layer: Any) -> bool:
    """Whether products with a layer's weight are faster when it is packed."""
    return (
        _packed_in(layer) in (torch.float32, torch.bfloat16)
        and layer.in_features * layer.out_features >= _PACKED_SIZE
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        # Arm's library packs for one number of rows alone.
        and not torch.ops.mkldnn._is_mkldnn_acl_supported()
    )


def _rounded_to(layer: Any) -> torch.dtype | None:
    """The dtype of a layer's dense weight; None for a 4-bit one that takes its input's."""
    return layer.weight.dtype if type(layer) is nn.Linear else layer.compute_dtype


def _packed_in(layer: Any) -> torch.dtype | None:
    """The dtype of a layer's weight when it is packed; None for one that takes its input's."""
    dtype = _rounded_to(layer)
    return None if dtype is None else products_in(dtype, torch.device("cpu"))


def _bytes(layer: Any) -> int:
    """What a layer's dense weight takes beside the model."""
    if _can_pack(layer):
        dtype = _packed_in(layer)
    elif type(layer) is nn.Linear:
        return 0
    else:
        dtype = layer.compute_dtype or torch.float32
    assert dtype is not None
    return layer.in_features * layer.out_features * dtype.itemsize  # type: ignore[no-any-return]


def _by_packed(layer: Any) -> Callable[[Tensor], Tensor]:
    # Looked up once: a token passes all layers, and a module's attributes are slow to come by.
    dtype, made = _rounded_to(layer), _packed_in(layer)
    assert dtype is not None
    bias = None if layer.bias is None else layer.bias.to(dtype).to(made)
    packed: Tensor | None = None

    def forward(x: Tensor) -> Tensor:
        nonlocal packed
        given = x.to(dtype).to(made)
        if made is torch.float32 and x.numel() > _PACKED_ROWS * x.shape[-1]:
            return linear(given, dense_weight(layer, dtype).to(made), bias).to(x.dtype)
        if packed is None:
            weight = dense_weight(layer, dtype).to(made)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(given, packed, bias, "none", [], "")
        return y.to(x.dtype)

    return forward


def _by_dense(layer: Any, *, keep: bool) -> Callable[[Tensor], Tensor]:
    kept: dict[torch.dtype, Tensor] = {}

    def forward(x: Tensor) -> Tensor:
        dtype = _rounded_to(layer) or x.dtype
        weight = kept.get(dtype)
        if weight is None:
            weight = dense_weight(layer, dtype)
            if keep:
                kept[dtype] = weight
        narrow = x.to(dtype)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        if x.numel() >= _MANY_ROWS * x.shape[-1]:
            dtype = products_in(dtype, x.device)
            bias = None if bias is None else bias.to(dtype)
        return linear(narrow.to(dtype), weight.to(dtype), bias).to(x.dtype)

    return forward
