"""Which layers of a model take the fast path, and those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from dollyllama.fast.projections import Projection, project
from dollyllama.model.dense import dense_weights, has_room_for
from dollyllama.model.forwards import replaced_forwards
from dollyllama.model.precision import quantised_as
from dollyllama.model.shard import shares

#: Layers of one parent that read the same input, by the names that Llama-style models share.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@contextmanager
def fast_path(model: Any) -> Iterator[None]:
    """Let the model train on the fast path, and as before afterwards.

    What the path does not know (``left_out``) goes on through PEFT and transformers, and so does
    all of the model in evaluation mode. On a CPU quantised weights are made dense once, not twice a
    step, where there is room for them.
    """
    replaced = [(module, _in_training(module, fast)) for module, fast in _replacements(model)]
    with replaced_forwards(replaced):
        yield


@contextmanager
def fast_inference(model: Any) -> Iterator[None]:
    """Let the model evaluate and answer faster: by dense weights, LoRA without PEFT's own steps.

    For evaluation mode, and an adapter that is neither merged nor switched meanwhile: there is no
    dropout and no backward pass. On a small model PEFT's steps take longer than LoRA's products.
    Results keep their bits. What is not known goes on through PEFT.
    """
    adapted = [
        (module, _adapted(module, layer))
        for module in model.modules()
        if isinstance(layer := _projection_or_reason(module), Projection) and layer.a is not None
    ]
    with dense_weights(model), replaced_forwards(adapted):
        yield


def left_out(model: Any) -> list[str]:
    """Why adapted layers cannot take the fast path, each reason once; empty when all can."""
    reasons = {
        str(each)
        for module in model.modules()
        if isinstance(each := _projection_or_reason(module), str)
    }
    return sorted(reasons)


def _in_training(module: nn.Module, fast: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    slow = module.forward

    def forward(x: Tensor, *positional: Any, **named: Any) -> Any:
        if module.training and not positional and not named:
            return fast(x)
        return slow(x, *positional, **named)

    return forward


def _adapted(module: Any, layer: Projection) -> Callable[[Tensor], Tensor]:
    """What a layer and its LoRA compute outside training, in the dtypes that PEFT does it in."""
    (adapter,) = module.active_adapters
    # The layers themselves, for dense weights pack those of them that are large.
    base, a, b, scaling = layer.base, module.lora_A[adapter], module.lora_B[adapter], layer.scaling
    dtype = a.weight.dtype
    # On a plain layer PEFT rounds the sum alone, on a quantised one what is added before.
    plain = type(base) is nn.Linear

    def forward(x: Tensor) -> Tensor:
        y: Tensor = base(x)
        update = b(a(x.to(dtype))).mul_(scaling)
        return y.add_(update if plain else update.to(y.dtype))

    return forward


def _replacements(model: Any) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The modules that have a fast forward pass, each with it."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[nn.Module, Projection]]] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        projection = _projection_or_reason(module)
        if projection is not None:
            inside.update(module.modules())
        if isinstance(projection, Projection):
            parent, _, last = name.rpartition(".")
            names = next((names for names in SHARED_INPUTS if last in names), (last,))
            groups.setdefault((parent, names), []).append((module, projection))
    found: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    keep = _can_keep_dense(model, [each for members in groups.values() for _, each in members])
    for members in groups.values():
        together = _Together(
            [replace(each, kept={}) if keep else each for _, each in members],
        )
        found += [(module, together.taking(number)) for number, (module, _) in enumerate(members)]
    return found


def _can_keep_dense(model: Any, projections: Sequence[Projection]) -> bool:
    """Whether the dense weights of all layers can stay from one pass to the next."""
    numbers = sum(each.base.in_features * each.base.out_features for each in projections)
    return (
        model.device.type == "cpu"
        and not shares(model)
        and has_room_for(numbers * torch.float32.itemsize)
    )


class _Together:
    """Computes all layers of a group when the first is called, for the others to take.

    A group whose layers turn out to read different inputs computes each for itself from then on.
    """

    def __init__(self, group: Sequence[Projection]) -> None:
        self._group = group
        self._x: Tensor | None = None
        self._left: dict[int, Tensor] = {}
        # LoRA's dropout is one for the group: layers without LoRA have none to mind.
        self._apart = len({layer.p for layer in group if layer.a is not None}) > 1

    def taking(self, number: int) -> Callable[[Tensor], Tensor]:
        return lambda x: self._take(number, x)

    def _take(self, number: int, x: Tensor) -> Tensor:
        if self._left and x is not self._x:
            self._apart = True
            self._x, self._left = None, {}
        if self._apart:
            return project(x, [self._group[number]])[0]
        if number not in self._left:
            self._x, self._left = x, dict(enumerate(project(x, self._group)))
        out = self._left.pop(number)
        if not self._left:
            self._x = None
        return out


def _projection_or_reason(module: nn.Module) -> Projection | str | None:
    """What a linear layer computes, why an adapted one is not known, or None for other modules."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer):
        return Projection(module) if _is_frozen_linear(module) else None
    base = module.get_base_layer()
    if not _is_frozen_linear(base):
        return f"LoRA on {type(base).__name__}"
    if len(module.active_adapters) != 1 or module.merged or module.disable_adapters:
        return "not exactly one active adapter"
    (adapter,) = module.active_adapters
    if adapter not in module.lora_A:
        return "the active adapter is not on the layer"
    if adapter in module.lora_variant:
        return type(module.lora_variant[adapter]).__name__.removesuffix("LinearVariant")
    a, b, dropout = (each[adapter] for each in (module.lora_A, module.lora_B, module.lora_dropout))
    if a.bias is not None or b.bias is not None:
        return "LoRA with biases"
    return Projection(base, a.weight, b.weight, module.scaling[adapter], getattr(dropout, "p", 0.0))


def _is_frozen_linear(module: Any) -> TypeGuard[nn.Linear]:
    match type(module).__name__:
        case "Linear4bit":
            known = True
        case "Linear8bitLt":
            known = trains_by_dense(module.weight.device)
        case _:
            known = type(module) is nn.Linear and quantised_as(module.weight) is None
    return known and not any(each.requires_grad for each in module.parameters(recurse=False))


def trains_by_dense(device: torch.device) -> bool:
    """Whether bitsandbytes itself trains on int8 layers by their dense weights there.

    On a GPU it rounds what comes in as well (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339).
    """
    return device.type == "cpu"
