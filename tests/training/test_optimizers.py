from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from dollyllama.config import CUDA_ONLY, OptimizerName, Schedule, ScheduleName
from dollyllama.training.optimizers import OPTIMIZERS, SCHEDULES, build_optimizer, build_schedule
from tests.training.build import make_optimizer

ON_CPU = sorted(set(OptimizerName) - CUDA_ONLY)


def test_every_optimizer_and_schedule_has_a_function() -> None:
    assert OPTIMIZERS.keys() == set(OptimizerName)
    assert SCHEDULES.keys() == set(ScheduleName)


@pytest.mark.parametrize("name", ON_CPU)
def test_an_optimizer_walks_down_a_bowl(name: OptimizerName) -> None:
    """5,000 elements: above the 4,096 from which bitsandbytes keeps its state in 8 bits."""
    torch.manual_seed(0)
    parameter = Parameter(torch.randn(5000))
    optimizer = build_optimizer([parameter], make_optimizer(name, lr=0.05))
    start = float(parameter.detach().square().mean())
    for _ in range(30):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert float(parameter.detach().square().mean()) < 0.3 * start


def test_adamw_is_that_of_the_paper() -> None:
    """Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in float64 by hand."""
    gradients = [0.5, -0.25, 2.0, 0.125]
    lr, beta1, beta2, eps, decay = 0.1, 0.8, 0.95, 1e-4, 0.3
    expected, m, v = 1.5, 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        update = (m / (1 - beta1**step)) / (math.sqrt(v / (1 - beta2**step)) + eps)
        expected = expected - lr * decay * expected - lr * update

    parameter = Parameter(torch.tensor([1.5]))
    settings = make_optimizer(lr=lr, betas=[beta1, beta2], eps=eps, weight_decay=decay)
    optimizer = build_optimizer([parameter], settings)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    assert parameter.item() == pytest.approx(expected, rel=1e-6)


def test_sgd_has_momentum_and_weight_decay() -> None:
    parameter = Parameter(torch.tensor([2.0]))
    settings = make_optimizer(OptimizerName.sgd, lr=0.1, momentum=0.5, weight_decay=0.2)
    optimizer = build_optimizer([parameter], settings)
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    first = 2.0 - 0.1 * (1.0 + 0.2 * 2.0)
    velocity = 0.5 * 1.4 + (3.0 + 0.2 * first)
    assert parameter.item() == pytest.approx(first - 0.1 * velocity)


def test_lion_steps_by_the_sign_alone() -> None:
    parameter = Parameter(torch.tensor([1.0, 1.0, 1.0]))
    settings = make_optimizer(OptimizerName.lion_8bit, lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer([parameter], settings)
    parameter.grad = torch.tensor([3.0, -0.001, 0.0])
    optimizer.step()
    decayed = 1.0 - 0.1 * 0.5
    torch.testing.assert_close(
        parameter.detach(), torch.tensor([decayed - 0.1, decayed + 0.1, decayed])
    )


@pytest.mark.parametrize("name", ON_CPU)
def test_weight_decay_reaches_the_optimizer(name: OptimizerName) -> None:
    def train(decay: float) -> torch.Tensor:
        parameter = Parameter(torch.ones(5000))
        optimizer = build_optimizer([parameter], make_optimizer(name, lr=0.1, weight_decay=decay))
        parameter.grad = torch.ones(5000)
        optimizer.step()
        return parameter.detach()

    assert float(train(0.5).mean()) < float(train(0.0).mean())


def test_eight_bit_state_begins_at_4096_elements() -> None:
    small, large = Parameter(torch.zeros(4095)), Parameter(torch.zeros(4096))
    optimizer = build_optimizer([small, large], make_optimizer(OptimizerName.adamw_8bit))
    small.grad, large.grad = torch.ones(4095), torch.ones(4096)
    optimizer.step()
    assert optimizer.state[small]["state1"].dtype == torch.float32
    assert optimizer.state[large]["state1"].dtype == torch.uint8


def test_frozen_parameters_are_left_out() -> None:
    frozen = Parameter(torch.zeros(2), requires_grad=False)
    free = Parameter(torch.zeros(2))
    groups = build_optimizer([frozen, free], make_optimizer()).param_groups
    assert [len(group["params"]) for group in groups] == [1]
    with pytest.raises(ValueError, match="no trainable parameter: attach an adapter"):
        build_optimizer([frozen], make_optimizer())


def rates(name: ScheduleName, warmup_ratio: float, steps: int) -> list[float]:
    """The learning rate of each step, for a peak of 1."""
    optimizer = build_optimizer([Parameter(torch.zeros(1))], make_optimizer(lr=1.0))
    schedule = build_schedule(
        optimizer, Schedule(name=name, warmup_ratio=warmup_ratio), steps=steps
    )
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_linear_rises_to_the_peak_and_falls_to_one_step_above_zero() -> None:
    expected = [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates(ScheduleName.linear, 0.25, 8) == pytest.approx(expected)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert rates(ScheduleName.cosine, 0.0, 4) == pytest.approx(expected)


def test_constant_stays_at_the_peak_after_warm_up() -> None:
    assert rates(ScheduleName.constant, 0.5, 4) == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_warm_up_is_rounded_up() -> None:
    assert rates(ScheduleName.constant, 0.03, 10) == pytest.approx([0.5, *[1.0] * 9])
    assert rates(ScheduleName.constant, 0.3, 10)[2:4] == pytest.approx([0.75, 1.0])


@pytest.mark.parametrize("name", ScheduleName)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_is_wasted_on_a_rate_of_zero(
    name: ScheduleName, warmup_ratio: float, steps: int
) -> None:
    assert all(0 < rate <= 1 for rate in rates(name, warmup_ratio, steps))
