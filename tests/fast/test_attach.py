"""A model on the fast path is the model on PEFT's: same loss, same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma2ForCausalLM,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from dollyllama.config import Upcast
from dollyllama.fast import attach, projections
from dollyllama.fast.attach import fast_inference, fast_path, left_out
from dollyllama.model.dense import dense_weight, dense_weights
from dollyllama.model.precision import upcast
from tests.model.build import load, make_tokenizer, some_ids, write_model

LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 259,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
}

Gradients = dict[str, torch.Tensor]


def adapt(base: Any, targets: Any = "all-linear", **settings: Any) -> Any:
    """Put an adapter on whose both matrices are random, so that every gradient is non-zero."""
    torch.manual_seed(5)
    values = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    base.requires_grad_(False)
    return get_peft_model(base, LoraConfig(target_modules=targets, **(values | settings))).train()


def make(kind: Any = LlamaForCausalLM, **settings: Any) -> Any:
    torch.manual_seed(0)
    return adapt(kind(kind.config_class(**LLAMA_LIKE)), **settings)


def step(
    model: Any, *, fast: bool, autocast: bool = False, seed: int = 9
) -> tuple[float, Gradients]:
    """The loss of some ids and what each trainable parameter gets of it."""
    ids = some_ids(rows=3, length=20)
    model.zero_grad()
    torch.manual_seed(seed)
    with (
        fast_path(model) if fast else nullcontext(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return loss.item(), gradients


def assert_same(model: Any, *, tolerance: float = 1e-5, **settings: Any) -> None:
    """tolerance: of the loss, and of each gradient relative to its norm."""
    slow_loss, slow = step(model, fast=False, **settings)
    fast_loss, fast = step(model, fast=True, **settings)
    assert fast_loss == pytest.approx(slow_loss, rel=tolerance)
    assert fast.keys() == slow.keys()
    assert fast
    for name, gradient in slow.items():
        assert gradient.norm() > 0, name
        assert (fast[name] - gradient).norm() < 10 * tolerance * gradient.norm(), name


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many layers each call of ``project`` computes."""
    calls: list[int] = []
    project = attach.project

    def spy(x: torch.Tensor, group: Any) -> Any:
        calls.append(len(group))
        return project(x, group)

    with monkeypatch.context() as patch:
        patch.setattr(attach, "project", spy)
        yield calls


@pytest.mark.parametrize(
    "kind",
    [
        LlamaForCausalLM,
        MistralForCausalLM,
        Qwen2ForCausalLM,
        Qwen3ForCausalLM,
        GemmaForCausalLM,
        Gemma2ForCausalLM,
    ],
)
def test_llama_like_models_get_the_same_step(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases (Qwen2), norms of queries and keys (Qwen3), norms that add one (Gemma)."""
    model = make(kind)
    assert left_out(model) == []
    with counted(monkeypatch) as calls:
        assert_same(model)
    assert sorted(calls) == [1, 1, 1, 1, 1, 2, 2, 3, 3]  # o, down and head; gate, up; q, k, v


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"targets": ["q_proj", "v_proj"]},
        {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        {"targets": ["down_proj", "lm_head"]},
        {"rank_pattern": {"k_proj": 2, "up_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        {"lora_bias": True},
    ],
)
def test_any_lora_gets_the_same_step(settings: dict[str, Any]) -> None:
    assert_same(make(**settings))


def test_what_is_no_plain_lora_is_left_out_and_named() -> None:
    assert left_out(make(use_dora=True)) == ["Dora"]
    assert left_out(make(lora_bias=True)) == ["LoRA with biases"]
    assert_same(make(use_dora=True))


@pytest.mark.parametrize("method", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("what", [Upcast.norms, Upcast.none, Upcast.all])
def test_quantised_bases_get_the_same_step_in_any_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, what: Upcast
) -> None:
    base = load(write_model(tmp_path), make_tokenizer(), method)
    upcast(base, what)
    model = adapt(base)
    assert left_out(model) == []
    for autocast in (True, False) if what is not Upcast.none else (True,):
        # Equal roundings, in bfloat16, then none at all but in the weights.
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert_same(model, autocast=autocast, tolerance=0.01)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert_same(model, autocast=autocast, tolerance=0.01)


def test_dense_weights_are_made_once_where_there_is_room_and_keep_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(load(write_model(tmp_path), make_tokenizer(), "nf4"))
    ids = some_ids(rows=3, length=20)
    made: list[Any] = []

    def spy(layer: Any, dtype: torch.dtype) -> torch.Tensor:
        made.append(layer)
        return dense_weight(layer, dtype)

    def gradients_of_two_passes(*, room: bool) -> list[torch.Tensor]:
        made.clear()
        model.zero_grad()
        monkeypatch.setattr(attach, "has_room_for", lambda size: room)
        with fast_path(model):
            for _ in range(2):
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    monkeypatch.setattr(projections, "dense_weight", spy)
    anew = gradients_of_two_passes(room=False)
    layers = set(made)
    # q, k and v of the first layer read the embeddings, which want no gradient.
    assert len(made) == 2 * (2 * len(layers) - 3)
    kept = gradients_of_two_passes(room=True)
    assert len(made) == len(set(made)) == len(layers)
    assert all(map(torch.equal, kept, anew))


def test_products_in_float32_are_nearer_to_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(write_model(tmp_path), make_tokenizer(), "nf4")
    upcast(base, Upcast.norms)
    model = adapt(base)
    with monkeypatch.context() as patch:
        # The truth: the same 4-bit weights, everything else in float32.
        for module in model.modules():
            if type(module) is Linear4bit:
                patch.setattr(module, "compute_dtype", torch.float32)
        _, truth = step(model, fast=False)

    def distance(gradients: Gradients) -> float:
        return max(
            float((gradients[name] - true).norm() / true.norm()) for name, true in truth.items()
        )

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    _, wide = step(model, fast=True, autocast=True)
    _, theirs = step(model, fast=False, autocast=True)
    assert distance(wide) < distance(theirs)


def test_int8_is_left_to_bitsandbytes_where_it_rounds_what_comes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(load(write_model(tmp_path), make_tokenizer(), "int8"), targets=["q_proj"])
    assert left_out(model) == []
    monkeypatch.setattr(attach, "trains_by_dense", lambda device: False)
    assert left_out(model) == ["LoRA on Linear8bitLt"]


def test_int8_trains_by_what_bitsandbytes_multiplies_by(tmp_path: Path) -> None:
    """Before and after the layer's first pass, which moves its scales."""
    (layer, *_) = (
        each
        for each in load(write_model(tmp_path), make_tokenizer(), "int8").modules()
        if type(each) is Linear8bitLt
    )
    x = torch.eye(layer.in_features)
    before = dense_weight(layer, torch.float32)
    theirs = layer.train()(x).t()
    assert torch.equal(before, theirs)
    assert torch.equal(dense_weight(layer, torch.float32), theirs)


class Masked(nn.Module):
    """Dropout of the places that another one drew."""

    def __init__(self, drawn: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.p = 0.3
        self.drawn = drawn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(x.numel())
        kept[self.drawn[x.shape[-1]]] = 0
        return x * kept.view(x.shape) / (1 - self.p)


def test_dropout_is_pefts_with_one_mask_for_layers_that_read_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One mask for each input width, on both paths, so that the steps can be compared."""
    model = make(lora_dropout=0.3)
    drawn: dict[int, torch.Tensor] = {}

    def draw(like: torch.Tensor, p: float) -> torch.Tensor:
        assert p == 0.3
        if like.shape[-1] not in drawn:
            drawn[like.shape[-1]] = (torch.rand(like.numel()) < p).nonzero().flatten()
        return drawn[like.shape[-1]]

    monkeypatch.setattr("dollyllama.fast.projections.draw_dropped", draw)
    _, fast = step(model, fast=True)
    assert drawn.keys() == {64, 96}
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Masked(drawn)
    _, slow = step(model, fast=False)
    for name, gradient in slow.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-3, atol=1e-5)


def test_biases_of_the_base_that_are_trained_are_left_to_peft() -> None:
    model = make(Qwen2ForCausalLM, bias="all")
    _, fast = step(model, fast=True)
    _, slow = step(model, fast=False)
    trained = [name for name in slow if name.endswith(".bias")]
    assert trained
    for name in trained:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_meets_the_same_dropout() -> None:
    model = make(lora_dropout=0.3)
    loss, plain = step(model, fast=True)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    again, checkpointed = step(model, fast=True)
    assert again == loss
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)
    other, _ = step(model, fast=True, seed=10)
    assert other != loss


def test_evaluation_and_what_comes_after_are_untouched() -> None:
    model = make(lora_dropout=0.3)
    ids = some_ids()
    before = model.eval()(input_ids=ids).logits
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    with fast_path(model):
        assert torch.equal(model(input_ids=ids).logits, before)
        model.train()
        model(input_ids=ids)
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards


def assert_answers_keep_their_bits(model: Any, *, through_peft: int = 0) -> None:
    """One token and many; ``through_peft``: how many layers are left to PEFT."""
    called: list[nn.Module] = []
    for name, module in model.eval().named_modules():
        if name.endswith("lora_dropout.default"):  # which PEFT asks in evaluation as well
            module.register_forward_hook(lambda module, *_: called.append(module))
    for ids in (some_ids(1, 1), some_ids(2, 20)):
        with torch.no_grad():
            with dense_weights(model):
                theirs = model(input_ids=ids).logits
            called.clear()
            with fast_inference(model):
                ours = model(input_ids=ids).logits
        assert len(called) == through_peft
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("what", [Upcast.norms, Upcast.none, Upcast.all])
@pytest.mark.parametrize("tiles", [True, False])
def test_answers_keep_their_bits_on_any_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, what: Upcast, tiles: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    base = load(write_model(tmp_path), make_tokenizer(), method)
    upcast(base, what)
    assert_answers_keep_their_bits(adapt(base, lora_dropout=0.3))


@pytest.mark.parametrize(
    ("settings", "through_peft"),
    [
        ({"use_rslora": True}, 0),
        ({"targets": ["q_proj", "down_proj", "lm_head"]}, 0),
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 3}}, 0),
        ({"targets": ["q_proj"], "lora_bias": True}, 2),
        ({"r": 2048}, 0),  # so large that dense weights pack LoRA's own
    ],
)
def test_answers_keep_their_bits_under_any_lora(
    settings: dict[str, Any], through_peft: int
) -> None:
    assert_answers_keep_their_bits(make(**settings), through_peft=through_peft)


def test_a_layer_that_lacks_the_active_adapter_is_left_to_peft() -> None:
    model = make(targets=["q_proj"])
    model.add_adapter("b", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    model.set_adapter("b")
    assert left_out(model) == ["the active adapter is not on the layer"]
    assert_answers_keep_their_bits(model)


def test_an_adapter_that_is_switched_off_stays_so_in_answers() -> None:
    model = make().eval()
    ids = some_ids()
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            alone = model(input_ids=ids).logits
            with fast_inference(model):
                assert torch.equal(model(input_ids=ids).logits, alone)
        with fast_inference(model):
            assert torch.equal(model(input_ids=ids).logits, adapted)
    assert not torch.equal(adapted, alone)


def test_layers_of_a_group_that_read_different_inputs_are_computed_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make()
    attention = model.base_model.model.model.layers[0].self_attn
    # A layer between input and keys, as no known model has it.
    attention.k_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    with counted(monkeypatch) as calls:
        assert_same(model)
        assert 3 in calls
        calls.clear()
        assert_same(model)
    assert calls.count(3) == 2  # the other layer, and a first attempt


def test_dropouts_that_differ_are_drawn_apart() -> None:
    model = make(lora_dropout=0.3)
    for layer in model.base_model.model.model.layers:
        layer.self_attn.q_proj.lora_dropout["default"] = nn.Dropout(0.0)
        layer.self_attn.k_proj.lora_dropout["default"] = nn.Identity()
    loss, gradients = step(model, fast=True)
    assert loss > 0
    assert all(each.isfinite().all() for each in gradients.values())
