"""A tiny LoRA model, rows of random tokens, and ``fit`` with settings that a test can change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from dollyllama.config import (
    Batching,
    Optimizer,
    OptimizerName,
    Schedule,
    ScheduleName,
    Trainer,
)
from dollyllama.data.example import Example
from dollyllama.data.tokens import EncodedExample
from dollyllama.training.fit import FitResult, fit

VOCABULARY, PAD = 99, 0
TOKENIZER = SimpleNamespace(pad_token_id=PAD)


def make_model(
    kind: Any = LlamaForCausalLM,
    seed: int = 0,
    *,
    dropout: float = 0.0,
    head: bool = False,
    **changes: Any,
) -> Any:
    """A Llama with LoRA whose both matrices are random, so that every gradient is non-zero."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    base = kind(kind.config_class(max_position_embeddings=128, **(shape | changes)))
    targets = ["q_proj", "v_proj", "down_proj", *(["lm_head"] if head else [])]
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=dropout,
        target_modules=targets,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def make_rows(
    lengths: Sequence[int], *, seed: int = 0, sources: Sequence[str] = ("sql", "maths")
) -> list[EncodedExample]:
    """Rows of random tokens; about the first half of each is a prompt without loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        example = Example(sources[number % len(sources)], number, "i", "r", "", "g")
        rows.append(EncodedExample(example, ids, ((length // 2, length),), truncated=False))
    return rows


def make_trainer(**changes: Any) -> Trainer:
    values: dict[str, Any] = {
        "epochs": None,
        "max_steps": None,
        "max_tokens": None,
        "max_seconds": None,
        "batch_size": 2,
        "accumulation": 1,
        "batching": Batching.padded,
        "max_grad_norm": 1.0,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "eval_steps": None,
        "checkpoint_steps": None,
        "keep_checkpoints": None,
        "profile": False,
    }
    if not {"epochs", "max_tokens", "max_seconds"} & changes.keys():
        values["max_steps"] = 4
    return Trainer(**(values | changes))


def make_optimizer(name: OptimizerName = OptimizerName.adamw, **changes: Any) -> Optimizer:
    adam = name not in (OptimizerName.adafactor, OptimizerName.sgd, OptimizerName.lion_8bit)
    values: dict[str, Any] = {
        "lr": 1e-2,
        "weight_decay": 0.0,
        "betas": [0.9, 0.999] if adam or name is OptimizerName.lion_8bit else None,
        "eps": 1e-8 if adam else None,
        "momentum": 0.9 if name is OptimizerName.sgd else None,
    }
    return Optimizer(name=name, **(values | changes))


Logged = list[tuple[int, dict[str, float]]]


def run_fit(
    model: Any,
    rows: Sequence[EncodedExample],
    folder: Path,
    *,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    autocast: bool = False,
    seed: int = 0,
    resume: bool = False,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    prune: Callable[[], str | None] | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    **trainer: Any,
) -> tuple[FitResult, Logged]:
    """Train ``model``; returns the result and what was logged. ``trainer``: its settings."""
    logged: Logged = []

    def log(step: int, values: dict[str, float]) -> None:
        logged.append((step, values))
        if on_log is not None:
            on_log(step, values)

    result = fit(
        model,
        TOKENIZER,
        rows,
        trainer=make_trainer(**trainer),
        optimizer=optimizer or make_optimizer(),
        schedule=schedule or Schedule(name=ScheduleName.linear, warmup_ratio=0.0),
        autocast=autocast,
        seed=seed,
        folder=folder,
        log=log,
        resume=resume,
        evaluate=evaluate,
        prune=prune,
    )
    return result, logged


def trainable(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the trainable parameters by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
