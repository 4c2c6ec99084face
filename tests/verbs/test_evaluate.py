"""``evaluate`` on held-out data and on files: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dollyllama.__main__ import main
from dollyllama.files import read_json_lines

MEASURED = ("evaluation=quick", "evaluation.loss_examples=2", "evaluation.generate_examples=2")


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


GSM8K = [
    {"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(3)
]


def test_held_out_data_is_measured_and_kept(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_run), *MEASURED, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    names = {metric["name"] for metric in record["metrics"]}
    assert {"loss/all", "loss/sql", "execution/sql", "exact_strict/maths"} <= names
    assert text.splitlines()[1].startswith("loss/all")
    assert len(read_json_lines(tmp_path / "out/samples.jsonl")) == 8
    assert record["evaluation"]["generate_examples"] == 2


def test_without_an_output_the_record_is_in_the_run_folder(small_run: Path) -> None:
    assert main(["evaluate", str(small_run), "evaluation=loss_only"]) == 0
    (made,) = (small_run / "evaluations").iterdir()
    assert {path.name for path in made.iterdir()} == {"metrics.json", "samples.jsonl"}


def test_a_file_is_graded_by_what_its_format_is_about(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*GSM8K, {"question": "And now?", "answer": ""}]
    file = write(tmp_path / "sums.jsonl", rows)
    arguments = ["evaluate", str(small_run), *MEASURED, "--file", str(file), "--format", "gsm8k"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "exact/sums" in text
    assert "left out: row 3" in text
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert record["file"] == "sums.jsonl"
    counts = {metric["name"]: metric["n"] for metric in record["metrics"]}
    assert counts["loss/sums"] == counts["exact/sums"] == counts["stops/sums"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--file", "rows.jsonl"], "go together"),
        (["--grader", "sql"], "--grader is for --file"),
        (["--file", "absent.jsonl", "--format", "gsm8k"], "absent.jsonl is not there"),
        (["--file", "rows.jsonl", "--format", "alpaca"], "--format gsm8k"),
        (["lora.r=8"], "cannot be changed"),
        (["decodin.k=1"], "did you mean decoding?"),
        (["--output", "."], "exists already"),
        (["--format", "dolly"], "choose from 'sql_create_context'"),
        (["--file", ".", "--format", "gsm8k"], "is a folder"),
        (["evaluation=quick", "evaluation.primary=exact/prose"], "is not measured"),
        (["evaluation=quick", "evaluation.answers=3"], "decoding=nucleus"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", GSM8K)
    assert main(["evaluate", str(small_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
