"""What a model's config.json says against a run is said before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dollyllama import config, launch, preflight

LLAMA = {"model_type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes), encoding="utf-8")
    return folder


def composed(path: Path | str, *overrides: str) -> config.Run:
    return launch.compose_run(["model=local", f"model.path={path}", *overrides])


def test_a_model_that_fits_passes(model: Path) -> None:
    preflight.check(composed(model, "data.max_length=512", "target_modules=all_linear_and_head"))


def test_max_length_beyond_the_positions_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.max_length=513 is beyond the 512 positions"):
        preflight.check(composed(model, "data.max_length=513"))


def test_the_head_of_a_tied_model_is_refused(tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied", tie_word_embeddings=True)
    preflight.check(composed(tied))
    with pytest.raises(ValueError, match=r"lm_head.*ties its head.*target_modules=all_linear"):
        preflight.check(composed(tied, "target_modules=all_linear_and_head"))


def test_a_target_without_a_linear_layer_is_refused_with_the_nearest(model: Path) -> None:
    preflight.check(composed(model, "lora.target_modules=[layers.0.self_attn.q_proj]"))
    with pytest.raises(ValueError, match=r"matches no linear layer.*q_prj; did you mean q_proj\?"):
        preflight.check(composed(model, "lora.target_modules=[v_proj,q_prj]"))


def test_targets_of_another_family_are_left_to_the_loaded_model(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", model_type="gpt_neox")
    preflight.check(composed(other, "lora.target_modules=[query_key_value]"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/model", "there is no such folder"),
        ("./model", "there is no such folder"),
        ("llama", "a Hub id as OWNER/NAME"),
    ],
)
def test_a_model_that_is_not_there_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preflight.check(composed(path))


def test_a_folder_without_a_whole_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        preflight.check(composed(tmp_path / "empty"))
    damaged = write_model(tmp_path / "damaged")
    (damaged / "config.json").write_text('{"model_type": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        preflight.check(composed(damaged))


def test_a_revision_of_a_local_folder_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.revision=v1 has no effect"):
        preflight.check(composed(model, "model.revision=v1"))


def test_a_model_of_the_hub_is_checked_where_it_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    preflight.check(composed("someone/small", "data.max_length=513"))
    repository = tmp_path / "models--someone--small"
    write_model(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    with pytest.raises(ValueError, match="513 is beyond the 512 positions of someone/small"):
        preflight.check(composed("someone/small", "data.max_length=513"))


TESTED = ("+source@data.sources.humaneval=humaneval", "evaluation.run_code=true")


def test_code_that_cannot_be_run_here_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight.sandbox, "available", lambda: "no namespaces")
    preflight.check_sandbox(launch.compose_run([]))
    with pytest.raises(ValueError, match=r"run_code=true, .* no namespaces: .*run_code=false"):
        preflight.check_sandbox(launch.compose_run(TESTED))
    monkeypatch.setattr(preflight.sandbox, "available", lambda: None)
    preflight.check_sandbox(launch.compose_run(TESTED))


def test_a_data_folder_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=/nowhere: there is no such folder"):
        preflight.check(composed(model, "data.root=/nowhere"))
