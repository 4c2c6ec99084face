from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import GenerationConfig

from dollyllama import embedded
from dollyllama.model.load import load_tokenizer
from tests.model.build import (
    CPU,
    VOCABULARY,
    load,
    make_tokenizer,
    pickle_weights,
    some_ids,
    write_model,
)

ROOT = Path(__file__).resolve().parents[2]


def saved(folder: Path, extra: str | None = None, **special: str) -> str:
    make_tokenizer(extra, **special).save_pretrained(folder)
    return str(folder)


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- the tokenizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [{}, {"pad_token": "</s>"}, {"pad_token": "<unk>"}])
def test_padding_gets_a_token_that_means_nothing_else(
    tmp_path: Path, special: dict[str, str]
) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, **special), None)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", VOCABULARY)
    assert len(tokenizer) == VOCABULARY + 1
    assert tokenizer.eos_token_id == 1


def test_a_token_that_is_there_for_padding_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, "<|pad|>"), None)
    assert tokenizer.pad_token_id == VOCABULARY
    assert len(tokenizer) == VOCABULARY + 1


def test_a_pad_token_of_its_own_is_kept(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, "<filler>", pad_token="<filler>"), None)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<filler>", VOCABULARY + 1)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"no end-of-sequence token.*set eos_token"):
        load_tokenizer(folder, None)


def test_the_embedded_path_is_the_project_s_own_model(
    untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MODEL", untied)
    tokenizer = load_tokenizer("embedded", None)
    assert len(tokenizer) == VOCABULARY + 1
    assert load("embedded", tokenizer).config.hidden_size == 64


def test_importing_the_loader_imports_no_heavy_library() -> None:
    """bitsandbytes, which it imports first of all, is light without a compiler."""
    code = (
        "import sys, dollyllama.embedded, dollyllama.model.load, dollyllama.model.adapter\n"
        "print({'transformers', 'peft', 'torch._dynamo', 'datasets'} & set(sys.modules))"
    )
    assert in_fresh_process(code).stdout == "set()\n"


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_an_added_row_is_the_mean_and_other_logits_stay(
    kind: str, method: str, tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    model = load(folder, tokenizer, method, dtype="float32")
    as_it_was = load(folder, make_tokenizer(), method, dtype="float32")
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings.shape == head.shape == (VOCABULARY + 1, 64)
    assert (embeddings is head) == (kind == "tied")
    for weight in (embeddings, head):
        torch.testing.assert_close(weight[-1], weight[:-1].sum(0) / VOCABULARY)
    with torch.no_grad():
        logits, before = model(some_ids()).logits, as_it_was(some_ids()).logits
    torch.testing.assert_close(logits[..., :-1], before)
    torch.testing.assert_close(logits[..., -1], before.mean(-1))


def test_spare_rows_of_the_embeddings_stay(tmp_path: Path, tokenizer: Any) -> None:
    model = load(write_model(tmp_path, rows=320), tokenizer)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 320


def test_the_model_knows_the_tokenizer_s_special_tokens(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer)
    for settings in (model.config, model.generation_config):
        special = (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id)
        assert special == (0, 1, VOCABULARY)


def test_the_tokens_that_the_base_ends_with_stay(
    untied: Path, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(untied, folder)
    GenerationConfig(eos_token_id=[7, 1]).save_pretrained(folder)
    for _ in range(2):  # quantised, and as it was kept
        model = load(folder, tokenizer)
        assert model.generation_config.eos_token_id == [1, 7]
        assert model.config.eos_token_id == 1


def test_calls_keep_no_cache_and_generation_does(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer)
    assert model(some_ids()).past_key_values is None
    lengths = []
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].shape[1])
    )
    model.generate(some_ids(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert lengths == [12, 1, 1]


def test_the_base_comes_frozen_for_evaluation_with_sdpa(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, "nf4")
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    assert model.config._attn_implementation == "sdpa"


# --- quantisation --------------------------------------------------------------------------------

#: Dettmers et al. 2023, arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def nearest_nf4(weight: torch.Tensor) -> torch.Tensor:
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = (blocks / scale).unsqueeze(-1).sub(levels).abs().argmin(-1)
    return (levels[nearest] * scale).reshape(weight.shape)


@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-6), (True, 0.02)])
def test_weights_are_four_bit_normal_floats_on_a_cpu(
    untied: Path, tokenizer: Any, double: bool, tolerance: float
) -> None:
    full = load(untied, tokenizer, dtype="float32").model.layers[0].mlp.up_proj.weight
    weight = load(untied, tokenizer, "nf4", dtype="float32", double=double)
    weight = weight.model.layers[0].mlp.up_proj.weight
    assert isinstance(weight, bitsandbytes.nn.Params4bit)
    assert weight.nbytes * 2 == full.numel()
    assert weight.quant_state.nested is double
    found = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert (found - nearest_nf4(full)).abs().max() <= tolerance * full.abs().max()


@pytest.mark.parametrize(
    ("method", "stored"), [("nf4", "Params4bit"), ("fp4", "Params4bit"), ("int8", "Int8Params")]
)
def test_every_linear_layer_is_quantised_but_the_head(
    untied: Path, tokenizer: Any, method: str, stored: str
) -> None:
    model = load(untied, tokenizer, method)
    kinds = {
        name: type(each.weight).__name__
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear)
    }
    assert kinds.pop("lm_head") == "Parameter"
    assert len(kinds) == 14
    assert set(kinds.values()) == {stored}


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_an_evaluation_before_training_changes_no_gradient(
    untied: Path, tokenizer: Any, method: str
) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes would repack 4-bit weights and pass no gradient."""

    def gradient(model: Any) -> torch.Tensor:
        embedded_ids = model.get_input_embeddings()(some_ids()).detach().requires_grad_()
        model.train()(inputs_embeds=embedded_ids, labels=some_ids()).loss.backward()
        assert embedded_ids.grad is not None
        return embedded_ids.grad

    fresh, evaluated = load(untied, tokenizer, method), load(untied, tokenizer, method)
    with torch.no_grad():
        evaluated(some_ids())
    assert torch.equal(gradient(evaluated), gradient(fresh))


# --- what reaches the user -----------------------------------------------------------------------


def in_the_hub_s_layout(model: Path, cache: Path, name: str = "tiny") -> Path:
    snapshot = cache / f"models--someone--{name}" / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_hub_id_loads_from_the_cache_in_silence(untied: Path, tmp_path: Path) -> None:
    in_the_hub_s_layout(untied, tmp_path)
    pickle_weights(in_the_hub_s_layout(untied, tmp_path, "pickled"))
    code = """
import torch
from dollyllama import config
from dollyllama.model.adapter import attach_adapter
from dollyllama.model.load import load_base, load_tokenizer
from tests.model.build import quantization, some_ids
tokenizer = load_tokenizer("someone/tiny", "main")
for method in ("nf4", "int8"):
    model = load_base(
        "someone/tiny", "main", pickled_weights=False, dtype=config.Dtype.bfloat16,
        quantization=quantization(method),
        device=torch.device("cpu"), tokenizer=tokenizer,
    )
    model = attach_adapter(
        model, r=2, alpha=4.0, dropout=0.0, variant=config.LoraVariant.lora,
        targets=["all-linear", "lm_head"], seed=0,
    )
    model.generate(some_ids(), max_new_tokens=2)
try:
    load_base(
        "someone/pickled", None, pickled_weights=False, dtype=config.Dtype.bfloat16,
        quantization=quantization("none"), device=torch.device("cpu"), tokenizer=tokenizer,
    )
except ValueError as error:
    assert str(error).startswith("model.path=someone/pickled: pytorch_model.bin is pickled"), error
else:
    raise AssertionError("it was loaded")
"""
    done = in_fresh_process(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert (done.stdout, done.stderr) == ("", "")


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def leave_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "cannot be read .*file not fully covered.*copy the folder again"),
        (leave_a_pointer, "cannot be read .*header too large.*copy the folder again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (change_config(model_type="llamma"), "does not recognize this architecture"),
        (change_config(num_hidden_layers=3), r"weights are missing .*layers\.2.* and 8 more"),
        (change_config(intermediate_size=192), "weights have another shape than config.json says"),
    ],
)
def test_a_folder_without_a_whole_model_is_refused_in_one_line(
    untied: Path, tokenizer: Any, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(untied, folder)
    damage(folder)
    with pytest.raises(ValueError, match=says) as refused:
        load(folder, tokenizer)
    assert str(refused.value).startswith(f"model.path={folder}: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + 2 * len(str(folder))


def test_a_folder_that_is_not_there_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.path=\./nowhere: there is no folder nowhere"):
        load_tokenizer("./nowhere", None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name the folder"):
        load(tmp_path / "file", tokenizer)


def test_a_folder_without_a_tokenizer_is_refused(untied: Path, tmp_path: Path) -> None:
    shutil.copy(untied / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer\.json, .*\): copy"):
        load_tokenizer(str(tmp_path), None)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be read") as refused:
        load_tokenizer(str(tmp_path), None)
    assert "\n" not in str(refused.value)


def test_a_revision_of_a_local_folder_is_refused(untied: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.revision=v1 has no effect on a local folder"):
        load_tokenizer(str(untied), "v1")


def test_a_hub_that_does_not_answer_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dollyllama.model.load.hub_answers", lambda endpoint: False)
    with pytest.raises(ValueError, match=r"tokenizer at revision v1 .*not answer") as refused:
        load_tokenizer("nobody/nothing-of-that-name", "v1")
    assert "\n" not in str(refused.value)


# --- real inputs ---------------------------------------------------------------------------------


def test_open_llama_s_tokenizer_gets_a_pad_token_beside_its_end(shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "open_llama_v2"), None)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (32000, 2, 32001)
    assert tokenizer("\n", add_special_tokens=False).input_ids[-1] == 13


@pytest.mark.parametrize("method", ["none", "nf4"])
def test_stories_260k_tells_its_story(shared: Path, method: str) -> None:
    """llama2.c's doc/stories260K.md has the text; 4-bit weights keep at least its beginning."""
    path = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(str(path), None)
    model = load(path, tokenizer, method, dtype="float32")
    assert model.get_input_embeddings().num_embeddings == 513
    start = torch.tensor([[tokenizer.bos_token_id]], device=CPU)
    ids = model.generate(start, max_new_tokens=40, do_sample=False)
    story = "Once upon a time, there was a little girl named Lily. She loved to play"
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip().startswith(story)
