"""Files of strangers run no code of theirs: docs/security.md has a line for each test here."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dollyllama import config, embedded, launch, preflight
from dollyllama.files import digest, write_json
from dollyllama.model.adapter import load_adapter
from dollyllama.model.load import load_merged, load_tokenizer
from dollyllama.model.shards import list_tensors
from dollyllama.restore import restore
from dollyllama.run import run
from dollyllama.training.checkpoints import load_newest
from tests.model.build import load as load_model
from tests.model.build import pickle_weights
from tests.test_run import UNMEASURED

OPTED_IN = ("model=local", "model.pickled_weights=true")


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
    run(launch.compose_run([*UNMEASURED, *overrides]), folder, expect_memory=False)
    return folder


def load(folder: Path, **more: Any) -> Any:
    return load_model(folder, load_tokenizer(str(folder), None), dtype="float32", **more)


def test_the_payload_does_what_it_says(flag: Path) -> None:
    pickle.loads(pickle.dumps(Payload(flag)))
    assert flag.exists()


def test_a_pickled_model_is_refused_and_not_run(model_folder: Path, flag: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(flag)}, model_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is pickled") as caught:
        load(model_folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickled objects") as caught:
        load(model_folder, pickled_weights=True)
    assert "\n" not in str(caught.value)
    assert not flag.exists()


def test_an_index_of_safetensors_brings_in_no_pickle(model_folder: Path, flag: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(flag)}, model_folder / "model-1.bin")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-1.bin"}}
    write_json(model_folder / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match=r"model-1\.bin is pickled"):
        load(model_folder)
    with pytest.raises(ValueError, match=r"model-1\.bin is pickled"):
        load_merged(model_folder, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"model-1\.bin is pickled"):
        list_tensors(model_folder)
    assert not flag.exists()


def test_an_index_reaches_no_file_outside_its_folder(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder.parent / "private.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../private.safetensors"}}
    write_json(model_folder / "model.safetensors.index.json", index)
    run_config = launch.compose_run(["model=local", f"model.path={model_folder}"])
    for refused in (load, list_tensors, lambda _: preflight.check(run_config)):
        with pytest.raises(ValueError, match=r"index\.json is damaged \('\.\./private") as caught:
            refused(model_folder)
        assert "\n" not in str(caught.value)


def test_settings_nested_without_end_are_refused(model_folder: Path) -> None:
    run_config = launch.compose_run(["model=local", f"model.path={model_folder}"])
    (model_folder / "config.json").write_text('{"a":' + "[" * 200_000)
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is nested too deeply"):
        preflight.check(run_config)


def test_a_run_sends_what_it_reads_where_the_user_says_alone(tmp_path: Path) -> None:
    """Resumed, a folder may come from anybody, and the user's credentials are here."""
    mirrored = launch.compose_run([*UNMEASURED, "tracking.mirror=s3://loot/runs"])
    config.save(mirrored, tmp_path / "run" / "config.yaml")
    command = [sys.executable, "train.py", f"resume={tmp_path / 'run'}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 2
    assert "sends a copy of the run to s3://loot/runs: add tracking.mirror=s3://loot/runs" in (
        said.stderr
    )
    assert said.stderr.count("\n") == 1


def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(model_folder).state_dict()
    pickle_weights(model_folder)
    run_config = launch.compose_run(["model=local", f"model.path={model_folder}"])
    with pytest.raises(ValueError, match=r"pickled_weights=true") as caught:
        preflight.check(run_config)  # with nothing heavy loaded
    assert "\n" not in str(caught.value)
    for refused in (load, list_tensors):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is pickled"):
            refused(model_folder)
    preflight.check(launch.compose_run([*OPTED_IN, f"model.path={model_folder}"]))
    assert_equal(load(model_folder, pickled_weights=True).state_dict(), before)

    command = shlex.split(str(caught.value).split("`")[1])
    assert command[0] == "python"
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True, timeout=120)
    converted = tmp_path / command[-1]
    assert not list(converted.glob("*.bin"))
    assert_equal(load(converted).state_dict(), before)
    # Beside the pickles, as merging asks, safetensors are what is read.
    shutil.copy(converted / "model.safetensors", model_folder)
    (model_folder / "pytorch_model.bin").write_bytes(b"no longer read")
    assert_equal(load(model_folder, pickled_weights=True).state_dict(), before)
    assert {each.path.name for each in list_tensors(model_folder)} == {"model.safetensors"}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_does_not_send_on_to_another(model_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model_folder, tmp_path / "other")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(other), "r": 1}
    write_json(model_folder / "adapter_config.json", settings)
    for refused in (load, lambda folder: load_merged(folder, torch.device("cpu"))):
        with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config\.json\)"):
            refused(model_folder)


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


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "own", None])
def test_an_adapter_of_another_type_is_not_loaded(
    finished: Path, tmp_path: Path, kind: str | None
) -> None:
    adapter = Path(shutil.copytree(finished / "adapter", tmp_path / "adapter"))
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**settings, "peft_type": kind})
    with pytest.raises(ValueError, match=rf"of type {kind!r}: only LORA") as caught:
        load_adapter(load(embedded.MODEL), adapter)
    assert "\n" not in str(caught.value)


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
