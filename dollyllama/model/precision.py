"""What is stored and computed in which precision: the norms' upcast, and a census to prove it.

Parameters of bitsandbytes are told by their class, as their dtype (uint8, int8) is that of the
packed bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dollyllama.config import Upcast


def upcast(model: Any, what: Upcast) -> None:
    """Make parameters of the base float32, in place: the norms', all but the quantised, or none.

    A norm with a float32 weight answers in float32, so what follows it gets float32 too: 4-bit and
    8-bit layers cast for themselves and answer in float32, and other linear layers are given
    inputs in their weight's dtype here, which is what autocast does. So the model runs with and
    without autocast. To be called before an adapter is attached. ValueError when there is no norm.
    """
    if what is Upcast.none:
        return
    modules = [each for each in model.modules() if what is Upcast.all or _is_norm(each)]
    if not modules:
        raise ValueError(
            f"precision.upcast=norms, but {type(model).__name__} has no normalisation layer with "
            f"weights: set precision.upcast=none"
        )
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if quantised_as(parameter) is None and parameter.is_floating_point():
                parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, nn.Linear) and quantised_as(module.weight) is None:
            module.register_forward_pre_hook(_to_weight_dtype)


def dtype_census(model: Any) -> dict[str, dict[str, dict[str, int]]]:
    """Count parameters by what they belong to and by dtype.

    First key: norms, quantised, adapter or other; second: a dtype, or of quantised ones the method
    (nf4, fp4, int8); then ``parameters`` (real numbers, however packed) and ``tensors``.
    """
    census: dict[str, dict[str, dict[str, int]]] = {}
    for kind, parameter in _by_kind(model):
        dtype = quantised_as(parameter) or str(parameter.dtype).removeprefix("torch.")
        counts = census.setdefault(kind, {}).setdefault(dtype, {"parameters": 0, "tensors": 0})
        counts["parameters"] += count_elements(parameter)
        counts["tensors"] += 1
    return census


def count_elements(parameter: Any) -> int:
    """How many numbers a parameter holds; of a 4-bit one the numbers, not its packed bytes."""
    state = getattr(parameter, "quant_state", None)
    return int((parameter if state is None else state.shape).numel())


def quantised_as(parameter: Any) -> str | None:
    """nf4, fp4 or int8, or None for a parameter that is not quantised."""
    if type(parameter).__name__ == "Int8Params":
        return "int8"
    # A share of a 4-bit weight (``shard_base``) is of another class, with the same attributes.
    kind = getattr(parameter, "quant_type", None)
    return None if kind is None else str(kind)


def products_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which dtype large products are computed where others would in ``dtype``.

    float32 for bfloat16 on a CPU without tiles for it (AMX): there it takes half the time or less
    (without AVX-512 a fifth), and rounds less. The weights are those of ``dtype`` in any case.
    """
    slow = device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
    return torch.float32 if slow and dtype is torch.bfloat16 else dtype


def _by_kind(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter once, with the census's first key."""
    norms = {
        id(parameter)
        for module in model.modules()
        if _is_norm(module)
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if quantised_as(parameter) is not None:
            yield "quantised", parameter
        elif "lora_" in name:
            yield "adapter", parameter
        else:
            yield "norms" if id(parameter) in norms else "other", parameter


def _is_norm(module: nn.Module) -> bool:
    """LlamaRMSNorm, RMSNorm, LayerNorm and their like, which share no class."""
    return type(module).__name__.endswith("Norm") and any(
        True for _ in module.parameters(recurse=False)
    )


def _to_weight_dtype(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook. Under autocast the input is left to it: it casts the weight as well."""
    first, *others = inputs
    assert isinstance(module.weight, Tensor)
    if torch.is_autocast_enabled(first.device.type):
        return inputs
    return (first.to(module.weight.dtype), *others)
