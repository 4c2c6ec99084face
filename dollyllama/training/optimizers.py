"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dollyllama.config import Optimizer as OptimizerConfig
from dollyllama.config import OptimizerName, Schedule, ScheduleName


def build_optimizer(parameters: Iterable[Parameter], optimizer: OptimizerConfig) -> Optimizer:
    """Build the optimizer over ``parameters``, all in one group, weight decay included.

    ValueError when none of them is trainable.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter: attach an adapter first")
    return OPTIMIZERS[optimizer.name](trainable, optimizer)


def _adamw(parameters: list[Parameter], optimizer: OptimizerConfig) -> Optimizer:
    return torch.optim.AdamW(parameters, **_adam_settings(optimizer))


def _bitsandbytes_adamw(name: str) -> Callable[[list[Parameter], OptimizerConfig], Optimizer]:
    """One of bitsandbytes' AdamWs (Dettmers et al. 2022, arXiv:2110.02861).

    The 8-bit ones keep the state of tensors below 4,096 elements in 32 bits, which is most of the
    adapter of a tiny model.
    """

    def build(parameters: list[Parameter], optimizer: OptimizerConfig) -> Optimizer:
        import bitsandbytes

        made: Optimizer = getattr(bitsandbytes.optim, name)(parameters, **_adam_settings(optimizer))
        return made

    return build


def _adam_settings(optimizer: OptimizerConfig) -> dict[str, Any]:
    assert optimizer.betas is not None
    assert optimizer.eps is not None
    return {
        "lr": optimizer.lr,
        "betas": tuple(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }


def _adafactor(parameters: list[Parameter], optimizer: OptimizerConfig) -> Optimizer:
    """Shazeer & Stern 2018, arXiv:1804.04235: torch's, with a learning rate from outside.

    As in the paper, the step is relative to the size of the parameter (at least 1e-3).
    """
    return torch.optim.Adafactor(parameters, lr=optimizer.lr, weight_decay=optimizer.weight_decay)


def _lion_8bit(parameters: list[Parameter], optimizer: OptimizerConfig) -> Optimizer:
    """Chen et al. 2023, arXiv:2302.06675; small tensors' state stays in 32 bits, as with AdamW."""
    import bitsandbytes

    assert optimizer.betas is not None
    made: Optimizer = bitsandbytes.optim.Lion8bit(
        parameters,
        lr=optimizer.lr,
        betas=tuple(optimizer.betas),
        weight_decay=optimizer.weight_decay,
    )
    return made


def _sgd(parameters: list[Parameter], optimizer: OptimizerConfig) -> Optimizer:
    assert optimizer.momentum is not None
    return torch.optim.SGD(
        parameters,
        lr=optimizer.lr,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
    )


OPTIMIZERS: dict[OptimizerName, Callable[[list[Parameter], OptimizerConfig], Optimizer]] = {
    OptimizerName.adamw: _adamw,
    OptimizerName.adamw_8bit: _bitsandbytes_adamw("AdamW8bit"),
    OptimizerName.paged_adamw_8bit: _bitsandbytes_adamw("PagedAdamW8bit"),
    OptimizerName.paged_adamw_32bit: _bitsandbytes_adamw("PagedAdamW32bit"),
    OptimizerName.adafactor: _adafactor,
    OptimizerName.lion_8bit: _lion_8bit,
    OptimizerName.sgd: _sgd,
}


def build_schedule(optimizer: Optimizer, schedule: Schedule, *, steps: int) -> LambdaLR:
    """Schedule the learning rate over ``steps`` optimizer steps.

    It rises in a line over ``warmup_ratio`` of the steps, rounded up, and then follows its shape.
    Unlike transformers' schedules, no step has the rate 0: of w warm-up steps the first has
    1 / (w + 1) of the peak, the first step after them the peak, and the last step the share of one
    step's descent. So a run of very few steps learns too.
    """
    warmup = math.ceil(round(schedule.warmup_ratio * steps, 6))
    shape = SCHEDULES[schedule.name]

    def factor(step: int) -> float:  # step: how many are done
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shape(min(1.0, (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def _linear(done: float) -> float:
    return 1.0 - done


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _constant(done: float) -> float:
    return 1.0


#: The share of the peak rate, by the share of the steps after warm-up that are done.
SCHEDULES: dict[ScheduleName, Callable[[float], float]] = {
    ScheduleName.linear: _linear,
    ScheduleName.cosine: _cosine,
    ScheduleName.constant: _constant,
}
