from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dollyllama.config import Upcast
from dollyllama.model.precision import dtype_census, upcast
from tests.model.build import LINEAR, NORMS, VOCABULARY, load, some_ids

EMBEDDING = (VOCABULARY + 1) * 64  # with the added pad token's row


def count(parameters: int, tensors: int) -> dict[str, int]:
    return {"parameters": parameters, "tensors": tensors}


def state(model: Any) -> dict[str, tuple[torch.dtype, torch.Tensor]]:
    return {name: (each.dtype, each.detach().clone()) for name, each in model.named_parameters()}


@pytest.mark.parametrize("method", ["none", "nf4", "int8"])
def test_upcasting_norms_changes_their_dtype_and_nothing_else(
    untied: Path, tokenizer: Any, method: str
) -> None:
    model = load(untied, tokenizer, method)
    before = state(model)
    upcast(model, Upcast.norms)
    changed = set()
    for name, (dtype, value) in state(model).items():
        assert torch.equal(value.to(before[name][0]), before[name][1])
        if dtype is not before[name][0]:
            assert dtype is torch.float32
            changed.add(name)
    assert changed == {
        "model.norm.weight",
        *(
            f"model.layers.{layer}.{norm}.weight"
            for layer in (0, 1)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ),
    }


def test_the_census_proves_the_norms_upcast(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, "nf4")
    expected: dict[str, Any] = {
        "norms": {"bfloat16": count(NORMS, 5)},
        "quantised": {"nf4": count(LINEAR, 14)},
        "other": {"bfloat16": count(2 * EMBEDDING, 2)},
    }
    assert dtype_census(model) == expected
    upcast(model, Upcast.norms)
    assert dtype_census(model) == expected | {"norms": {"float32": count(NORMS, 5)}}


def test_upcasting_all_leaves_quantised_weights_alone(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, "int8")
    upcast(model, Upcast.all)
    assert dtype_census(model) == {
        "norms": {"float32": count(NORMS, 5)},
        "quantised": {"int8": count(LINEAR, 14)},
        "other": {"float32": count(2 * EMBEDDING, 2)},
    }


def test_upcasting_none_changes_nothing(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer)
    before = dtype_census(model)
    upcast(model, Upcast.none)
    assert dtype_census(model) == before


def test_tied_weights_are_counted_once_and_stay_tied(tied: Path, tokenizer: Any) -> None:
    model = load(tied, tokenizer, "nf4")
    upcast(model, Upcast.all)
    assert dtype_census(model)["other"] == {"float32": count(EMBEDDING, 1)}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("what", list(Upcast))
@pytest.mark.parametrize("method", ["none", "nf4", "fp4", "int8"])
def test_every_precision_computes_with_and_without_autocast(
    untied: Path, tokenizer: Any, method: str, what: Upcast
) -> None:
    ids = some_ids()
    full = load(untied, tokenizer, dtype="float32")
    model = load(untied, tokenizer, method)
    upcast(model, what)
    with torch.no_grad():
        expected = full(ids).logits
        plain = model(ids).logits.float()
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(ids).logits.float()
    scale = expected.std()
    # bfloat16 keeps 8 bits, which int8 rounds to other levels of its inputs; the quantised weights
    # themselves are off by more.
    assert (plain - autocast).std() < (0.03 if method == "int8" else 0.02) * scale
    tolerance = {"none": 0.02, "int8": 0.03, "nf4": 0.3, "fp4": 0.4}[method]
    assert (plain - expected).std() < tolerance * scale


def test_a_model_without_norms_is_refused(untied: Path) -> None:
    with pytest.raises(ValueError, match=r"precision\.upcast=norms, but Linear has no norm"):
        upcast(torch.nn.Linear(2, 2), Upcast.norms)
