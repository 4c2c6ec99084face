"""Dense weights change the time of a pass and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dollyllama.config import Upcast
from dollyllama.model import dense
from dollyllama.model.dense import dense_weights
from dollyllama.model.precision import upcast
from tests.model.build import load, make_tokenizer, some_ids, write_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for each weight that is made dense, by us or by bitsandbytes."""
    made: list[int] = []

    def spy(*given: Any, **named: Any) -> Any:
        made.append(1)
        return dequantize(*given, **named)

    dequantize = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", spy)
    return made


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("what", [Upcast.norms, Upcast.none])
def test_answers_keep_their_bits_and_each_weight_is_made_once(
    tmp_path: Path, calls: list[int], method: str, double: bool, what: Upcast
) -> None:
    model = load(write_model(tmp_path), make_tokenizer(), method, double=double)
    upcast(model, what)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    ids = some_ids()
    before = model(input_ids=ids).logits
    with dense_weights(model):
        for _ in range(3):
            assert torch.equal(model(input_ids=ids).logits, before)
        assert len(calls) == 14
    assert torch.equal(model(input_ids=ids).logits, before)
    assert len(calls) == 14


def test_without_room_nothing_is_kept(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_model(tmp_path), make_tokenizer(), "nf4")
    room = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr(dense, "psutil", room)
    with dense_weights(model):
        model(input_ids=some_ids())
    assert calls == []


def test_a_model_without_4_bit_layers_is_left_alone(tmp_path: Path) -> None:
    model = load(write_model(tmp_path), make_tokenizer(), "none")
    before = model(input_ids=some_ids()).logits
    with dense_weights(model):
        assert torch.equal(model(input_ids=some_ids()).logits, before)
