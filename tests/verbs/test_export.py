"""``export``: an MLflow model that answers by itself as this project does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dollyllama.__main__ import main
from dollyllama.config import Decoding, Strategy
from dollyllama.data.prompt import format_prompt
from dollyllama.decoding.generate import generate

ROWS = ("--rows", "2", "evaluation=none")
INSTRUCTIONS = ["Name a bird.", "What is 3 plus 4?"]


def export(run: Path, output: Path, *more: str) -> int:
    return main(["export", str(run), "--format", "mlflow", "--output", str(output), *ROWS, *more])


@pytest.fixture(scope="module")
def exported(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert export(small_run, folder / "model") == 0
    assert [path.name for path in folder.iterdir()] == ["model"]
    return folder / "model"


@pytest.fixture(scope="module")
def loaded(exported: Path) -> Any:
    return mlflow.pyfunc.load_model(str(exported))


@pytest.fixture(scope="module")
def merged(exported: Path) -> tuple[Any, Any]:
    """The weights in it as anybody would load them: model and tokenizer."""
    folder = exported / "data" / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval(), tokenizer


def test_its_answers_are_those_of_transformers_on_the_merged_weights(
    loaded: Any, merged: tuple[Any, Any]
) -> None:
    model, tokenizer = merged
    expected = []
    for instruction in INSTRUCTIONS:
        ids = tokenizer(format_prompt(instruction), return_tensors="pt").input_ids
        ids = ids[:, :-1] if ids[0, -1] == tokenizer.eos_token_id else ids
        with torch.no_grad():
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
            )[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        expected.append(text.partition("### End")[0].strip())
    assert loaded.predict(INSTRUCTIONS) == expected
    assert loaded.predict(pd.DataFrame({"instruction": INSTRUCTIONS})) == expected
    assert any(expected)


def test_params_choose_the_decoding_of_one_prediction(loaded: Any, merged: tuple[Any, Any]) -> None:
    params = {"strategy": "contrastive", "alpha": 0.6, "k": 5, "max_new_tokens": 12}
    nothing = dict.fromkeys(("temperature", "top_p", "repetition_penalty", "q"))
    decoding = Decoding(**{**nothing, **params, "strategy": Strategy.contrastive})
    prompts = [format_prompt(each) for each in INSTRUCTIONS]
    expected = generate(*merged, prompts, decoding, batch_size=1, seed=0)
    answers = loaded.predict(INSTRUCTIONS, params=params)
    assert answers == [each.text for each in expected]
    assert answers != loaded.predict(INSTRUCTIONS)
    with pytest.raises(ValueError, match=r"decoding\.alpha is needed"):
        loaded.predict(INSTRUCTIONS, params={"strategy": "contrastive"})


@pytest.mark.slow
def test_it_is_whole_without_the_checkout_and_without_pickle(exported: Path, loaded: Any) -> None:
    """In another process, its own code is loaded, and no package that it does not require."""
    suffixes = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".md", ".py", ".safetensors", ".txt", ".yaml"}
    absent = ["hydra", "datasets", "wandb", "matplotlib", "sqlglot", "rapidfuzz", "bitsandbytes"]
    program = (
        f"import json, sys\nfor name in {absent}: sys.modules[name] = None\n"
        f"import mlflow.pyfunc\n"
        f"answers = mlflow.pyfunc.load_model({str(exported)!r}).predict({INSTRUCTIONS})\n"
        f"import dollyllama\nprint(json.dumps([dollyllama.__file__, answers]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=exported.parent,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    code, answers = json.loads(done.stdout)
    assert Path(code) == exported / "code" / "dollyllama" / "__init__.py"
    assert answers == loaded.predict(INSTRUCTIONS)


def test_the_record_of_the_merge_and_the_true_size_are_in_it(exported: Path, loaded: Any) -> None:
    record = json.loads((exported / "data/merged/merge.json").read_text(encoding="utf-8"))
    assert record["agreement"]["kl"] <= record["tolerance"]["max_kl"]
    weights = (exported / "data/merged/model-00001-of-00001.safetensors").stat().st_size
    assert loaded.metadata.model_size_bytes > weights


def test_what_stops_on_its_way_leaves_nothing(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(small_run, tmp_path / "model", "--max-kl", "0") == 1
    assert list(tmp_path.iterdir()) == []

    def stop(*_: Any, **__: Any) -> None:
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.pyfunc, "save_model", stop)
    assert export(small_run, tmp_path / "model") == 130
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_in_one_line(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export(small_run, tmp_path) == 2
    assert "exists already: name another folder" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name)
    )
    assert export(small_run, tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert error == "error: export --format mlflow needs mlflow: pip install -e '.[mlflow]'\n"
