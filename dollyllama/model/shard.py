"""A base in shares: each process of a run keeps a part of it, and the whole of one layer at a time.

For bases that do not fit one device. The adapter is whole everywhere.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from dollyllama import distributed

#: What PEFT and the census of dtypes ask a 4-bit weight for.
_ABOUT_4BIT = ("compress_statistics", "quant_type", "quant_state")


def shard_base(model: Any, device: torch.device) -> None:
    """Leave this process its share of the weights of the decoder layers' linear layers.

    torch's ``fully_shard`` gathers the whole of a layer before a pass needs it, either way, and
    frees it behind (Zhao et al. 2023, arXiv:2304.11277); weights of 4 bits travel packed. They are
    frozen, so nothing is summed up. All else moves to ``device`` whole. ``model`` may be on the
    CPU: then no more than a layer at a time is whole on ``device``. From then on all processes must
    call the model equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh(device.type, (distributed.processes(),))
    for layer in model.get_decoder().layers:
        linear = [each for each in layer.modules() if isinstance(each, nn.Linear)]
        whole = [each.weight for each in linear]
        fully_shard(
            layer,
            mesh=mesh,
            ignored_params=set(layer.parameters()) - set(whole),
            reshard_after_forward=True,  # each layer is a root, which would stay whole
        )
        for module, weight in zip(linear, whole, strict=True):
            for name in _ABOUT_4BIT:
                if hasattr(weight, name):
                    setattr(module.weight, name, getattr(weight, name))
            if (state := getattr(weight, "quant_state", None)) is not None:
                state.to(device)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def shares(model: Any) -> list[str]:
    """The names of the parameters of which this process holds a share."""
    from torch.distributed.tensor import DTensor

    return [name for name, each in model.named_parameters() if isinstance(each, DTensor)]
