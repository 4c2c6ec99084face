"""An equal share of wall time: how many tokens a run trains in so many seconds, found by trying."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dollyllama import config
from dollyllama.files import read_signed_json, write_signed_json
from dollyllama.training.loop import Log

BUDGET_FILE = "budget.json"
#: Steps of the pilot. The first of them warms up, and its speed does not count.
STEPS = 5


def within_seconds(
    trainer: config.Trainer,
    model: Any,
    folder: Path,
    train: Callable[[config.Trainer, Path, Log], Any],
) -> config.Trainer:
    """Turn ``max_seconds`` into the ``max_tokens`` that a pilot of some steps says fit into it.

    What the pilot found is kept in ``folder``, so that a resumed run has the same budget; it leaves
    no other trace: weights are given back. train: trains for the given settings
    in the given folder, and logs. KeyboardInterrupt when it is asked to stop: speeds of a part of
    the pilot are no measurement.
    """
    assert trainer.max_seconds is not None
    path = folder / BUDGET_FILE
    if path.exists():
        tokens = read_signed_json(path)["max_tokens"]
    else:
        speed = median(_speeds(trainer, model, folder, train)[1:])
        tokens = max(1, round(speed * trainer.max_seconds))
        write_signed_json(path, {"max_tokens": tokens, "tokens_per_second": round(speed, 3)})
    return replace(trainer, max_seconds=None, max_tokens=tokens)


def _speeds(
    trainer: config.Trainer,
    model: Any,
    folder: Path,
    train: Callable[[config.Trainer, Path, Log], Any],
) -> list[float]:
    """Tokens per second of each step of a pilot."""
    speeds: list[float] = []
    weights = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    settings = replace(
        trainer,
        max_seconds=None,
        max_steps=STEPS,
        logging_steps=1,
        eval_steps=None,
        checkpoint_steps=None,
        keep_checkpoints=None,
        profile=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pilot-", dir=folder) as temporary:
        result = train(
            settings,
            Path(temporary),
            lambda step, values: speeds.append(values["train/tokens_per_second"]),
        )
    if result.interrupted:
        raise KeyboardInterrupt
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
                parameter.grad = None
    return speeds
