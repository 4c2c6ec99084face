"""``merge``: what it publishes, and that it publishes nothing that was refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dollyllama.__main__ import main

ROWS = ("--rows", "2", "evaluation=none")


def test_a_merge_within_the_tolerance_is_published_whole(small_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    assert main(["merge", str(small_run), "--output", str(output), *ROWS]) == 0
    record = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    assert 0 <= record["agreement"]["kl"] <= record["tolerance"]["max_kl"]
    assert f"{record['agreement']['kl']:.6g}" in (output / "README.md").read_text(encoding="utf-8")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_merge_beyond_the_tolerance_leaves_nothing(small_run: Path, tmp_path: Path) -> None:
    arguments = ["merge", str(small_run), "--output", str(tmp_path / "merged"), *ROWS]
    assert main([*arguments, "--max-kl", "0"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--max-kl", "0", "--publish-anyway"]) == 0
    assert (tmp_path / "merged/config.json").is_file()


def test_an_existing_output_is_refused_in_one_line(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(small_run), "--output", str(tmp_path), *ROWS]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error
    assert len(error.splitlines()) == 1
