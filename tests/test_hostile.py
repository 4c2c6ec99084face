"""Files of strangers run no code of theirs: docs/security.md has a line for each test here."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dollyllama import config, embedded, launch
from dollyllama.files import digest, write_json
from dollyllama.model.adapter import load_adapter
from dollyllama.model.load import load_tokenizer
from dollyllama.run import restore, run
from dollyllama.training.checkpoints import load_newest
from tests.model.build import load as load_model
from tests.test_run import UNMEASURED


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __reduce__(self) -> Any:
        return Path.touch, (self._flag,)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded.MODEL, tmp_path / "model"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    overrides = ("trainer.checkpoint_steps=1", "trainer.keep_checkpoints=1")
    run(launch.compose_run([*UNMEASURED, *overrides]), folder)
    return folder


def load(folder: Path) -> Any:
    return load_model(folder, load_tokenizer(str(folder), None), dtype="float32")


def test_the_payload_does_what_it_says(flag: Path) -> None:
    pickle.loads(pickle.dumps(Payload(flag)))
    assert flag.exists()


def test_a_pickled_model_is_refused_and_not_run(model_folder: Path, flag: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(flag)}, model_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin") as caught:
        load(model_folder)
    assert "\n" not in str(caught.value)
    assert not flag.exists()


def test_a_models_own_code_is_refused_and_not_run(model_folder: Path, flag: Path) -> None:
    code = f"from pathlib import Path\nPath({str(flag)!r}).touch()\n"
    (model_folder / "modeling_own.py").write_text(code, encoding="utf-8")
    classes = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoTokenizer": ["modeling_own.OwnTokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((model_folder / name).read_text(encoding="utf-8"))
        values["auto_map"] = classes
        values["model_type"] = "own"
        values["tokenizer_class"] = "OwnTokenizer"
        write_json(model_folder / name, values)
    with pytest.raises(ValueError, match="code") as caught:
        load(model_folder)
    assert "\n" not in str(caught.value)
    assert not flag.exists()


def test_a_pickled_adapter_is_not_loaded(finished: Path, tmp_path: Path, flag: Path) -> None:
    adapter = Path(shutil.copytree(finished / "adapter", tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"lora_A.weight": Payload(flag)}, adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model"):
        load_adapter(load(embedded.MODEL), adapter)
    assert not flag.exists()


def test_an_adapter_names_no_class_to_import(finished: Path, tmp_path: Path, flag: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (tmp_path / "own.py").write_text(f"open({str(flag)!r}, 'w')", encoding="utf-8")
    path = folder / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["auto_mapping"] = {"base_model_class": "Own", "parent_library": "own"}
    write_json(path, settings)
    with pytest.raises(ValueError, match=r"adapter_config\.json differs"):
        restore(config.load(folder / "config.yaml"), folder)
    origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    origin["adapter"]["adapter_config.json"] = digest(path)
    write_json(folder / "provenance.json", origin)
    restore(config.load(folder / "config.yaml"), folder)
    assert not flag.exists()


def test_a_pickled_checkpoint_is_set_aside_and_not_run(
    finished: Path, tmp_path: Path, flag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Path(shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints"))
    (newest,) = checkpoints.iterdir()
    torch.save({"step": Payload(flag)}, newest / "state.pt")
    write_json(newest / "digests.json", {"state.pt": digest(newest / "state.pt")})
    assert load_newest(checkpoints) is None
    assert "state.pt" in capsys.readouterr().err
    assert not flag.exists()


@pytest.mark.parametrize(
    "line",
    [
        "!!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/object/apply:os.system ['touch {path}']",
        "{{_target_: os.system, command: 'touch {path}'}}",
    ],
)
def test_a_runs_config_calls_nothing(tmp_path: Path, flag: Path, line: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: {line.format(path=flag)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        config.load(path)
    assert not flag.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.project", "${oc.env:PLANTED}"),
        ("tracking.tags", ["a", "${oc.env:PLANTED}"]),
        ("tracking", "${oc.env:PLANTED}"),
        ("model.path", "/models/${oc.env:PLANTED}"),
        ("tracking.project", r"x\\${oc.env:PLANTED}"),
    ],
)
def test_a_runs_config_reads_no_environment(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    monkeypatch.setenv("PLANTED", "something of mine")
    values = OmegaConf.load(finished / "config.yaml")
    OmegaConf.update(values, key, value, merge=False)
    path = tmp_path / "config.yaml"
    OmegaConf.save(values, path)
    with pytest.raises(ValueError, match=rf"config\.yaml: {key} is .* no interpolation") as caught:
        config.load(path)
    assert "something of mine" not in str(caught.value)
