"""What a saved adapter does to its base, against PEFT's own merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dollyllama.model.merge import add
from dollyllama.model.shards import list_tensors, read_tensor
from dollyllama.model.updates import read_updates


def save(base: Path, folder: Path, **settings: Any) -> None:
    """An adapter of PEFT's own making, with weights drawn at random."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", **({"target_modules": "all-linear"} | settings)),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6},
    # Of several that match, the first counts.
    "alpha_pattern": {
        "model.layers.0.mlp.up_proj": 40,
        "layers.1.self_attn.o_proj": 5,
        ".*_proj": 7,
    },
}


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("patterns", [{}, PATTERNS])
def test_added_updates_are_what_peft_merges(
    untied: Path, tmp_path: Path, patterns: dict[str, Any], more: dict[str, Any]
) -> None:
    save(untied, tmp_path, r=4, lora_alpha=8, **patterns, **more)
    base = AutoModelForCausalLM.from_pretrained(untied)
    merged = PeftModel.from_pretrained(base, str(tmp_path)).merge_and_unload().state_dict()
    updates = read_updates(tmp_path)
    assert len(updates) == 14
    if patterns:
        assert {len(each.a) for each in updates.values()} == {2, 4, 6}
    for stored in list_tensors(untied):
        if stored.name in updates:
            weight = read_tensor(stored)
            got = weight.to(torch.float32, copy=True)
            add(got, updates[stored.name], slice(None))
            torch.testing.assert_close(got, merged[stored.name], rtol=0, atol=1e-5)
            assert (got - weight).abs().max() > 1e-3


def test_a_corrupt_adapter_is_refused(untied: Path, tmp_path: Path) -> None:
    save(untied, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        read_updates(tmp_path)


def test_an_adapter_without_one_of_its_weights_is_refused(untied: Path, tmp_path: Path) -> None:
    save(untied, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"lacks .*up_proj\.lora_B"):
        read_updates(tmp_path)


def test_an_adapter_that_holds_whole_modules_is_refused(untied: Path, tmp_path: Path) -> None:
    save(untied, tmp_path, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"lm_head\.weight, which is no low-rank update"):
        read_updates(tmp_path)


@pytest.mark.parametrize("start", ["olora", "pissa_niter_4", "corda"])
def test_a_base_that_cannot_be_made_again_is_refused(
    untied: Path, tmp_path: Path, start: str
) -> None:
    save(untied, tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"init_lora_weights": start}
    path.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=f"init_lora_weights={start}"):
        read_updates(tmp_path)
