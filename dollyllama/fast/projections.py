"""Linear layers that read one input, with LoRA on them, as one function with its own backward.

N tokens, I input width, O output width, R the ranks of all adapters of a group together.

PEFT computes each layer apart: its own cast of the input, its own dropout, and for each of base, A,
B, scaling and sum an operation that keeps what its own backward pass needs. Here the input is cast
and dropped out once, the As are one product, and all that is kept is the input behind dropout, what
the As make of it and the places that dropped out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dollyllama.fast.dropout import draw_dropped, drop_
from dollyllama.model.dense import dense_weight
from dollyllama.model.precision import products_in


@dataclass(frozen=True, slots=True)
class Projection:
    """A frozen linear layer (bias or not, quantised or not) and the LoRA on it, if any.

    a (r, I) and b (O, r) are parameters; p: LoRA's dropout. kept: the layer's dense weight by
    dtype, to be made once; None where it is made in each pass.
    """

    base: nn.Linear
    a: nn.Parameter | None = None
    b: nn.Parameter | None = None
    scaling: float = 1.0
    p: float = 0.0
    kept: dict[torch.dtype, Tensor] | None = None

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The layer's dense weight, (O, I)."""
        if self.kept is None:
            return dense_weight(self.base, dtype)
        if dtype not in self.kept:
            self.kept[dtype] = dense_weight(self.base, dtype)
        return self.kept[dtype]


def project(x: Tensor, group: Sequence[Projection]) -> tuple[Tensor, ...]:
    """``x`` (…, I) through each layer of the group: (…, O) each.

    The layers' ``p`` are equal. Results have the dtype that PEFT's path gives them without
    autocast, that of ``x``; under autocast that of the products, unless those are in float32.
    """
    parameters = [each for layer in group for each in (layer.a, layer.b) if each is not None]
    outputs: tuple[Tensor, ...] = _Project.apply(x, group, *parameters)  # type: ignore[no-untyped-call]
    return outputs


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Sequence[Projection], *parameters: Tensor) -> Any:
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = products_in(_their_dtype(x, group[0].base), x.device)
        half = autocast and dtype is not torch.float32
        p = max(layer.p for layer in group)
        behind_NI = h_NR = dropped = None
        outputs = []
        with torch.autocast(x.device.type, enabled=False):
            x_NI = x.flatten(0, -2).to(dtype)
            if parameters:
                behind_NI = x_NI
                if p:
                    dropped = draw_dropped(x_NI, p)
                    behind_NI = drop_(x_NI.clone(), dropped)
                h_NR = behind_NI @ _join(parameters, dtype).t()
            start = 0
            for layer in group:
                y_NO = x_NI @ layer.weight(dtype).t()
                if layer.base.bias is not None:
                    y_NO += layer.base.bias.to(dtype)
                if layer.a is not None and layer.b is not None and h_NR is not None:
                    stop = start + len(layer.a)
                    b_RO = layer.b.detach().to(dtype).t()
                    y_NO.addmm_(h_NR[:, start:stop], b_RO, alpha=layer.scaling / (1 - p))
                    start = stop
                outputs.append(y_NO.to(dtype if half else x.dtype).view(*x.shape[:-1], -1))
        ctx.group, ctx.dtype, ctx.x_dtype, ctx.p = group, dtype, x.dtype, p
        ctx.save_for_backward(behind_NI, h_NR, dropped, *parameters)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        behind_NI, h_NR, dropped, *parameters = ctx.saved_tensors
        dtype = ctx.dtype
        dx_NI: Tensor | None = None
        dh_NR = None if h_NR is None else torch.empty_like(h_NR)
        parameter_gradients: list[Tensor] = []
        with torch.autocast(gradients[0].device.type, enabled=False):
            start = 0
            for layer, gradient in zip(ctx.group, gradients, strict=True):
                dy_NO = gradient.flatten(0, -2).to(dtype)
                if ctx.needs_input_grad[0]:
                    weight_OI = layer.weight(dtype)
                    dx_NI = dy_NO @ weight_OI if dx_NI is None else dx_NI.addmm_(dy_NO, weight_OI)
                if layer.a is not None and dh_NR is not None:
                    stop = start + len(layer.a)
                    scale = layer.scaling / (1 - ctx.p)
                    torch.mm(dy_NO, layer.b.to(dtype) * scale, out=dh_NR[:, start:stop])
                    db_OR = (dy_NO.t() @ h_NR[:, start:stop]).mul_(scale)
                    da_RI = dh_NR[:, start:stop].t() @ behind_NI
                    parameter_gradients += [da_RI.to(layer.a.dtype), db_OR.to(layer.b.dtype)]
                    start = stop
            if dx_NI is not None and dh_NR is not None:
                through_NI = dh_NR @ _join(parameters, dtype)
                dx_NI += through_NI if dropped is None else drop_(through_NI, dropped)
        if dx_NI is None:
            return None, None, *parameter_gradients
        shape = (*gradients[0].shape[:-1], dx_NI.shape[1])
        return dx_NI.to(ctx.x_dtype).view(shape), None, *parameter_gradients


def _their_dtype(x: Tensor, base: nn.Linear) -> torch.dtype:
    """What PEFT's path multiplies in: autocast's dtype, or else the layer's own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    dtype: torch.dtype = getattr(base, "compute_dtype", None) or base.weight.dtype
    return dtype if dtype.is_floating_point else x.dtype


def _join(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The As of a group (R, I); its parameters are A and B in turn."""
    return torch.cat([a.detach() for a in parameters[::2]]).to(dtype)
