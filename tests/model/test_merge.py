"""A merged model, loaded with plain transformers, computes what the adapter did on its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from dollyllama.config import Dtype, LoraVariant
from dollyllama.model import merge, quantised
from dollyllama.model.adapter import attach_adapter, save_adapter
from dollyllama.model.merge import Base, write_merged
from dollyllama.model.shards import list_tensors, plan_shards, read_tensor
from tests.model.build import load, quantization, some_ids, write_model


def train(path: Path, folder: Path, tokenizer: Any, method: str, variant: str, target: str) -> Any:
    """A saved adapter whose weights are no longer those of a fresh one, and its model."""
    model = attach_adapter(
        load(path, tokenizer, method, dtype="float32"),
        r=4,
        alpha=8.0,
        dropout=0.0,
        variant=LoraVariant(variant),
        targets=target.split(),
        seed=0,
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data *= 1.0 + 0.2 * torch.rand_like(parameter)
    save_adapter(model, tokenizer, folder)
    return model.eval()


def write(
    path: Path, adapter: Path, output: Path, tokenizer: Any, method: str, **more: Any
) -> None:
    settings: dict[str, Any] = {
        "base": Base.quantised,
        "base_dtype": Dtype.float32,
        "dtype": Dtype.float32,
        "max_shard_bytes": 100_000,
    }
    write_merged(
        path,
        adapter,
        output,
        tokenizer=tokenizer,
        quantization=quantization(method),
        **(settings | more),
    )


@pytest.mark.parametrize(
    ("base", "method", "variant", "target"),
    [
        ("untied", "none", "lora", "all-linear"),
        ("untied", "none", "rslora", "all-linear"),
        ("untied", "none", "dora", "all-linear"),
        ("untied", "none", "lora", "lm_head q_proj"),
        ("untied", "nf4", "lora", "q_proj"),
        ("untied", "nf4", "dora", "all-linear"),
        ("untied", "fp4", "lora", "all-linear"),
        ("untied", "none", "pissa", "all-linear"),
        ("untied", "none", "pissa", "lm_head q_proj"),
        ("tied", "none", "lora", "all-linear"),
        ("tied", "nf4", "lora", "all-linear"),
    ],
)
def test_the_merged_model_gives_the_logits_of_the_adapter(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tokenizer: Any,
    base: str,
    method: str,
    variant: str,
    target: str,
) -> None:
    path = request.getfixturevalue(base)
    model = train(path, tmp_path / "adapter", tokenizer, method, variant, target)
    write(path, tmp_path / "adapter", tmp_path / "merged", tokenizer, method)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    assert merged.config.vocab_size == len(tokenizer)  # with the added pad token
    assert merged.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        with model.disable_adapter():
            before = model(some_ids()).logits
        expected, got = model(some_ids()).logits, merged(some_ids()).logits
    assert (expected - before).abs().max() > 0.1
    # The 4-bit layers of the adapter's model compute in bfloat16.
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-2 if method != "none" else 1e-4)
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    names = {each.name for each in list_tensors(tmp_path / "merged")}
    assert ("lm_head.weight" in names) is (base == "untied")


def test_the_merged_model_ends_with_the_tokens_of_its_base(
    untied: Path, tmp_path: Path, tokenizer: Any
) -> None:
    base = tmp_path / "chat"
    shutil.copytree(untied, base)
    GenerationConfig(eos_token_id=[7, 1]).save_pretrained(base)
    train(base, tmp_path / "adapter", tokenizer, "none", "lora", "q_proj")
    write(base, tmp_path / "adapter", tmp_path / "merged", tokenizer, "none")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [1, 7]


def test_a_kept_base_is_merged_into_without_being_quantised_again(
    untied: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(untied, tmp_path / "adapter", tokenizer, "nf4", "dora", "all-linear")
    write(untied, tmp_path / "adapter", tmp_path / "quantised", tokenizer, "nf4")
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantised, "MIN_BYTES", 0)
    load(untied, tokenizer, "nf4", dtype="float32")
    monkeypatch.setattr(merge, "requantise", None)
    write(untied, tmp_path / "adapter", tmp_path / "kept", tokenizer, "nf4")
    files = sorted(path.name for path in (tmp_path / "quantised").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "kept").iterdir())
    for name in files:
        one, other = (tmp_path / folder / name for folder in ("quantised", "kept"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("method", "variant"), [("none", "lora"), ("none", "pissa"), ("nf4", "dora"), ("int8", "lora")]
)
def test_parts_of_any_size_make_the_same_weights(
    untied: Path,
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    variant: str,
    kept: bool,
) -> None:
    """A part takes the memory of the one before."""
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantised, "MIN_BYTES", 0 if kept else 2**62)
    train(untied, tmp_path / "adapter", tokenizer, method, variant, "all-linear")
    for name, numbers in {"whole": 2**20, "parts": 5 * 64}.items():
        monkeypatch.setattr(merge, "_PART", numbers)
        write(untied, tmp_path / "adapter", tmp_path / name, tokenizer, method)
    one, other = (
        {each.name: read_tensor(each) for each in list_tensors(tmp_path / name)}
        for name in ("whole", "parts")
    )
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-6)


def test_the_original_weights_are_not_what_a_4_bit_adapter_saw(
    untied: Path, tmp_path: Path, tokenizer: Any
) -> None:
    model = train(untied, tmp_path / "adapter", tokenizer, "nf4", "lora", "all-linear")
    write(untied, tmp_path / "adapter", tmp_path / "merged", tokenizer, "nf4", base=Base.original)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert (merged(some_ids()).logits - model(some_ids()).logits).abs().max() > 5e-2


def test_an_adapter_of_another_model_is_refused(
    untied: Path, tmp_path: Path, tokenizer: Any
) -> None:
    train(untied, tmp_path / "adapter", tokenizer, "none", "lora", "q_proj")
    other = write_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file(weights | {name: weights[name][:32].clone()}, other / "model.safetensors")
    with pytest.raises(ValueError, match=f"does not fit {name}"):
        write(other, tmp_path / "adapter", tmp_path / "first", tokenizer, "none")
    del weights[name]
    save_file(weights, other / "model.safetensors")
    with pytest.raises(ValueError, match=f"changes {name}"):
        write(other, tmp_path / "adapter", tmp_path / "second", tokenizer, "none")


def test_shards_hold_at_most_what_was_asked_or_one_tensor() -> None:
    assert plan_shards([3, 3, 9, 1, 4], 6) == [[0, 1], [2], [3, 4]]


def test_a_merge_that_stops_half_way_has_no_config(
    untied: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(untied, tmp_path / "adapter", tokenizer, "none", "lora", "all-linear")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merge, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        write(untied, tmp_path / "adapter", tmp_path / "merged", tokenizer, "none")
    assert not (tmp_path / "merged/config.json").exists()
