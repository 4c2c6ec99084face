"""``merge``: what it publishes, and that it publishes nothing that was refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dollyllama.__main__ import main
from dollyllama.model import merge

ROWS = ("--rows", "2", "evaluation=none")


def test_a_merge_within_the_tolerance_is_published_whole(small_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    assert main(["merge", str(small_run), "--output", str(output), *ROWS]) == 0
    record = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    assert 0 <= record["agreement"]["kl"] <= record["tolerance"]["max_kl"]
    assert record["exceeded"] == []
    assert f"{record['agreement']['kl']:.6g}" in (output / "README.md").read_text(encoding="utf-8")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_merge_beyond_the_tolerance_leaves_nothing(small_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    arguments = ["merge", str(small_run), "--output", str(output), *ROWS]
    assert main([*arguments, "--max-kl", "0"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--max-kl", "0", "--publish-anyway"]) == 0
    assert (output / "config.json").is_file()
    record = json.loads((output / "merge.json").read_text(encoding="utf-8"))
    assert record["exceeded"] == ["max_kl"]
    assert "Beyond the tolerance" in (output / "README.md").read_text(encoding="utf-8")


def test_a_merge_that_computes_no_numbers_is_never_published(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(merge, "add", lambda weight, *_: weight.fill_(math.nan))
    arguments = ["merge", str(small_run), "--output", str(tmp_path / "merged"), *ROWS]
    assert main([*arguments, "--publish-anyway"]) == 2
    assert "computes no numbers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_merge_that_was_killed_looks_like_none_and_the_next_clears_it_away(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    arguments = ["merge", str(small_run), "--output", str(output), *ROWS]
    program = (
        "import threading\n"
        "from dollyllama.__main__ import main\n"
        "from dollyllama.model import merge\n"
        "def stop(*_):\n"
        "    print('half-way', flush=True)\n"
        "    threading.Event().wait()\n"
        "merge.add = stop\n"
        f"main({arguments!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half-way\n"
            # While it lives, nobody else makes the same, and what it has made stays.
            assert main(arguments) == 2
            assert "is being made by another process" in capsys.readouterr().err
        finally:
            process.kill()
    (left,) = tmp_path.glob(".merged.tmp/merged")
    assert list(left.glob("model-*.safetensors"))
    with pytest.raises(ValueError, match=r"in its config\.json"):
        AutoModelForCausalLM.from_pretrained(left)
    assert not output.exists()
    assert main(arguments) == 0
    assert f"removing {left}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_an_existing_output_is_refused_in_one_line(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(small_run), "--output", str(tmp_path), *ROWS]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error
    assert len(error.splitlines()) == 1
