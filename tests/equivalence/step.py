"""One optimizer step of ``fit``, taken apart, and the same from transformers' loss, row by row."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dollyllama.config import OptimizerName
from dollyllama.data.tokens import IGNORED, EncodedExample
from tests.training.build import make_optimizer, run_fit, trainable


@dataclass(frozen=True)
class Step:
    loss: float
    grad_norm: float
    gradients: dict[str, torch.Tensor]


def step_of_fit(model: Any, rows: Sequence[EncodedExample], **trainer: Any) -> Step:
    """A step of plain gradient descent at rate 1, so that the weights' change is the gradient."""
    before = trainable(model)
    with tempfile.TemporaryDirectory() as folder:
        _, logged = run_fit(
            model,
            rows,
            Path(folder),
            optimizer=make_optimizer(OptimizerName.sgd, lr=1.0, momentum=0.0),
            **({"max_steps": 1, "max_grad_norm": None} | trainer),
        )
    after = trainable(model)
    values = logged[0][1]
    gradients = {name: before[name] - after[name] for name in before}
    return Step(values["train/loss"], values["train/grad_norm"], gradients)


def step_by_hand(model: Any, rows: Sequence[EncodedExample]) -> Step:
    """Each row alone through transformers' own loss, weighted by its supervised tokens."""
    model.eval()
    model.zero_grad()
    counts = [int((row.labels[1:] != IGNORED).sum()) for row in rows]
    loss = torch.zeros(())
    for row, count in zip(rows, counts, strict=True):
        output = model(input_ids=torch.tensor([row.ids]), labels=torch.from_numpy(row.labels)[None])
        loss = loss + output.loss * count / sum(counts)
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    norm = math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values()))
    return Step(loss.item(), norm, gradients)


def assert_same(one: Step, other: Step, *, tolerance: float = 1e-5) -> None:
    assert math.isclose(one.loss, other.loss, rel_tol=tolerance)
    assert math.isclose(one.grad_norm, other.grad_norm, rel_tol=tolerance)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, other.gradients[name], rtol=1e-3, atol=tolerance)
