from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dollyllama import embedded
from dollyllama.card import _loading_code
from dollyllama.config import LoraVariant, Upcast
from dollyllama.model.adapter import (
    attach_adapter,
    count_parameters,
    load_adapter,
    resolve_targets,
    save_adapter,
)
from dollyllama.model.load import load_tokenizer
from dollyllama.model.precision import dtype_census, upcast
from tests.model.build import LINEAR, NORMS, VOCABULARY, load, some_ids

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS = list(LoraVariant)


def attach(model: Any, *, variant: LoraVariant = LoraVariant.lora, **changes: Any) -> Any:
    settings: dict[str, Any] = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["all-linear"]}
    return attach_adapter(model, **(settings | {"variant": variant, "seed": 0} | changes))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(some_ids()).logits.float()


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.named_parameters() if "lora_" in name}


def as_if_trained(model: Any) -> Any:
    """Move every adapter weight, so that the adapter matters."""
    generator = torch.Generator().manual_seed(1)
    for weight in adapter_weights(model).values():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


# --- targets -------------------------------------------------------------------------------------


def test_all_linear_is_every_linear_layer_but_the_head(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, "nf4")
    assert resolve_targets(model, ["all-linear"]) == ALL
    assert resolve_targets(model, ["all-linear", "lm_head"]) == [*ALL, "lm_head"]
    assert resolve_targets(model, ["q_proj", "all-linear"]) == ALL


def test_a_name_may_say_the_layer_s_place(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer)
    targets = ["mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    assert resolve_targets(model, targets) == targets
    assert len(adapter_weights(attach(model, targets=targets))) == 2 * (2 + 1)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("q_prj", r"LlamaForCausalLM: 'q_prj'. Did you mean q_proj\?"),
        ("lmhead", r"'lmhead'. Did you mean lm_head\?"),
        ("all_linear", r"'all_linear'. Did you mean all-linear\?"),
        (
            "input_layernorm",
            r"'input_layernorm'. Its linear layers are q_proj, k_proj, .* lm_head;",
        ),
        ("proj", r"matches no linear layer"),
        ("", r"matches no linear layer"),
    ],
)
def test_a_name_without_a_linear_layer_is_refused(
    untied: Path, tokenizer: Any, target: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        resolve_targets(load(untied, tokenizer), ["v_proj", target])


def test_the_head_as_target_is_refused_where_embeddings_are_tied(
    tied: Path, tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match=r"lm_head shares its weight .*target_modules=all_linear"):
        attach(load(tied, tokenizer), targets=["all-linear", "lm_head"])


# --- a fresh adapter -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "nf4", "int8"])
def test_a_fresh_adapter_computes_what_the_base_does(
    untied: Path, tokenizer: Any, method: str
) -> None:
    model = load(untied, tokenizer, method)
    base = logits(model)
    assert torch.equal(logits(attach(model, targets=["all-linear", "lm_head"])), base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_variant_computes_what_the_base_does(
    untied: Path, tokenizer: Any, variant: LoraVariant
) -> None:
    model = load(untied, tokenizer, dtype="float32")
    base = logits(model)
    torch.testing.assert_close(logits(attach(model, variant=variant)), base, rtol=0, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_learns_and_leaves_the_base_alone(
    untied: Path, tokenizer: Any, variant: LoraVariant
) -> None:
    method = "none" if variant is LoraVariant.pissa else "nf4"
    model = load(untied, tokenizer, method)
    upcast(model, Upcast.norms)
    model = attach(model, variant=variant).train()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trainable = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(some_ids(), labels=some_ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    changed = {
        name for name, each in model.named_parameters() if not torch.equal(each, before[name])
    }
    assert changed == set(adapter_weights(model))


def test_the_variants_are_the_papers_formulas(untied: Path, tokenizer: Any) -> None:
    """W + (alpha / r) B A for LoRA, alpha / sqrt(r) for rsLoRA; DoRA scales rows of W + BA."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    for variant in (LoraVariant.lora, LoraVariant.rslora, LoraVariant.dora):
        model = load(untied, tokenizer, dtype="float32")
        weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
        model = as_if_trained(attach(model, variant=variant, alpha=8.0))
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        full = weight + (8 / 2 if variant is LoraVariant.rslora else 8 / 4) * b @ a
        if variant is LoraVariant.dora:
            magnitude = layer.lora_magnitude_vector["default"].weight
            full = magnitude[:, None] * full / full.norm(dim=1, keepdim=True)
        torch.testing.assert_close(layer(x), x @ full.T, rtol=1e-4, atol=1e-4)


def test_pissa_starts_from_the_first_singular_vectors(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, dtype="float32")
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    model = attach(model, variant=LoraVariant.pissa)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    found = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(found, u[:, :4] * s[:4] @ vh[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.base_layer.weight + found, weight, rtol=1e-4, atol=1e-5)


def test_the_adapter_depends_on_its_seed_alone(untied: Path, tokenizer: Any) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return adapter_weights(attach(load(untied, tokenizer), seed=seed))

    torch.manual_seed(3)
    first = drawn(0)
    state = torch.get_rng_state()
    model = load(untied, tokenizer)
    torch.set_rng_state(state)
    again = adapter_weights(attach(model, seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = drawn(1)
    assert all(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_adapter_weights_are_float32_on_a_half_precision_base(untied: Path, tokenizer: Any) -> None:
    model = attach(load(untied, tokenizer, "nf4"), variant=LoraVariant.dora)
    rank_four = 2 * 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    magnitudes = 2 * (64 * 2 + 32 * 2 + 128 * 2 + 64)
    assert dtype_census(model)["adapter"] == {
        "float32": {"parameters": rank_four + magnitudes, "tensors": 14 * 3}
    }


@pytest.mark.parametrize("method", ["none", "nf4", "int8"])
@pytest.mark.parametrize(("kind", "matrices"), [("tied", 1), ("untied", 2)])
def test_parameters_are_counted_as_by_hand(
    kind: str, matrices: int, method: str, tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model = attach(load(request.getfixturevalue(kind), tokenizer, method))
    adapter = 2 * 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    base = LINEAR + NORMS + matrices * (VOCABULARY + 1) * 64
    assert count_parameters(model) == (adapter, base + adapter)


def test_dora_on_eight_bits_is_refused_on_a_cpu(untied: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"lora=dora on quantization=int8 .*nf4_double"):
        attach(load(untied, tokenizer, "int8"), variant=LoraVariant.dora)


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_holds_adapter_and_tokenizer_alone(
    untied: Path, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "adapter"
    model = attach(load(untied, tokenizer), targets=["all-linear", "lm_head"])
    save_adapter(model, tokenizer, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert all("lora_A" in name or "lora_B" in name for name in file.keys())  # noqa: SIM118
        assert len(file.keys()) == 2 * 15
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_an_older_folder_is_replaced_whole(untied: Path, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "left.over").touch()
    save_adapter(attach(load(untied, tokenizer)), tokenizer, folder)
    assert not (folder / "left.over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("is_embedded", "name"), [(True, "dollyllama/embedded"), (False, "untied")]
)
def test_no_path_of_this_machine_is_saved(
    untied: Path,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_embedded: bool,
    name: str,
) -> None:
    if is_embedded:
        monkeypatch.setattr(embedded, "MODEL", untied)
    path = "embedded" if is_embedded else untied
    save_adapter(attach(load(path, tokenizer)), tokenizer, tmp_path / "adapter")
    texts = [path.read_text() for path in (tmp_path / "adapter").glob("*.json")]
    assert len(texts) == 3
    assert not any(str(untied.parent) in text for text in texts)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == name
    assert settings["target_modules"] == sorted(ALL)


def test_a_loaded_adapter_computes_what_the_saved_one_did(
    untied: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = load(untied, tokenizer, "nf4")
    upcast(model, Upcast.norms)
    model = as_if_trained(attach(model))
    save_adapter(model, tokenizer, tmp_path / "adapter")
    again = load_tokenizer(str(tmp_path / "adapter"), None)
    assert (len(again), again.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    base = load(untied, again, "nf4")
    upcast(base, Upcast.norms)
    loaded = load_adapter(base, tmp_path / "adapter")
    assert not loaded.training
    assert count_parameters(loaded)[0] == 0
    assert torch.equal(logits(loaded), logits(model))


def test_a_folder_that_holds_no_fitting_adapter_is_refused(
    untied: Path, tied: Path, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter: it has no adapter_config\.json"):
        load_adapter(load(untied, tokenizer), tmp_path)
    folder = tmp_path / "adapter"
    save_adapter(attach(load(untied, tokenizer), targets=["lm_head"]), tokenizer, folder)
    model = load(untied, tokenizer)
    model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match=r"does not fit this LlamaForCausalLM .*size mismatch"):
        load_adapter(model, folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read .*copy the folder again"):
        load_adapter(load(untied, tokenizer), folder)


# --- a fresh process, with the code that the model card shows -------------------------------------

#: name: base, quantisation, variant, targets, largest difference of a logit.
CASES = {
    "head": ("untied", "none", LoraVariant.lora, ["all-linear", "lm_head"], 0.0),
    "tied": ("tied", "none", LoraVariant.dora, ["all-linear"], 0.0),
    "pissa": ("untied", "none", LoraVariant.pissa, ["all-linear"], 0.02),
    # Where bitsandbytes repacks weights (see load.py), it rounds their scales to bfloat16.
    "nf4": ("untied", "nf4", LoraVariant.rslora, ["all-linear", "lm_head"], 0.1),
}


@pytest.fixture(scope="module")
def reloaded(
    untied: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Logits before saving and, from another process, after loading; one process for all cases."""
    root = tmp_path_factory.mktemp("reloaded")
    before = {}
    scripts = []
    for name, (kind, method, variant, targets, _) in CASES.items():
        path = untied if kind == "untied" else tied
        tokenizer = load_tokenizer(str(path), None)
        model = attach(load(path, tokenizer, method), variant=variant, targets=targets)
        save_adapter(as_if_trained(model), tokenizer, root / name)
        before[name] = logits(model)
        settings = {
            "model": {"path": str(path), "revision": None, "dtype": "bfloat16"},
            "quantization": {"method": method, "double": True, "compute_dtype": "bfloat16"},
            "decoding": {"max_new_tokens": 4},
        }
        code = _loading_code(settings).partition("\ninstruction = ")[0]
        scripts.append(
            code.replace(f'base = "{path.name}"', f"base = {str(path)!r}").replace(
                'adapter = "."', f"adapter = {str(root / name)!r}"
            )
            + f"\nassert len(tokenizer) == {VOCABULARY + 1}, tokenizer"
            "\nwith torch.no_grad():"
            "\n    logits = model(some_ids()).logits.float()"
            f"\ntorch.save(logits, {str(root / f'{name}.pt')!r})\n"
        )
    script = "from tests.model.build import some_ids\n" + "\n".join(scripts)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: (before[name], torch.load(root / f"{name}.pt")) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_computes_the_same_with_the_card_s_code(
    reloaded: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str
) -> None:
    before, after = reloaded[name]
    tolerance = CASES[name][-1] * before.std()
    assert before.shape == after.shape == (2, 12, VOCABULARY + 1)
    assert (before - after)[..., :-1].abs().max() <= tolerance
    # transformers draws the pad token's row a hair beside the mean.
    assert (before - after)[..., -1].abs().max() <= tolerance + 0.02 * before.std()
