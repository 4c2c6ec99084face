"""``evaluate`` on held-out data and on files: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dollyllama import embedded, launch, preflight
from dollyllama.__main__ import main
from dollyllama.data.prompt import Stretches, text_of
from dollyllama.decoding.generate import Completion, StoppedBy
from dollyllama.evaluation import suite
from dollyllama.evaluation.sandbox import available
from dollyllama.files import read_json_lines

MEASURED = ("evaluation=quick", "evaluation.loss_examples=2", "evaluation.generate_examples=2")


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


FILE = ("evaluation=quick", "--file", "rows.jsonl", "--format", "gsm8k")
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


def test_the_merged_model_is_what_is_measured_where_asked_for(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dollyllama import restore, run

    measured, merged = [], []
    measure, restore_merged = run.measure, restore.restore_merged
    monkeypatch.setattr(
        restore,
        "restore_merged",
        lambda *given: merged.append(restore_merged(*given)) or merged[-1],
    )
    monkeypatch.setattr(
        run,
        "measure",
        lambda config, model, *rest: measured.append(model) or measure(config, model, *rest),
    )
    only = [*MEASURED, "evaluation.generate_examples=0", "evaluation.merged=true"]
    assert main(["evaluate", str(small_run), *only, "--output", str(tmp_path / "out")]) == 0
    assert measured == merged
    assert len(merged) == 1
    assert not hasattr(merged[0], "peft_config")


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
    said = capsys.readouterr()
    assert "exact/sums" in said.out
    assert f"left out: {file} row 3: empty_response" in said.out
    assert f"3 of 4 rows of {file} could be asked" in said.out
    assert f"warning: 3 rows of {file} are left to score" in said.err
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert record["file"] == "sums.jsonl"
    counts = {metric["name"]: metric["n"] for metric in record["metrics"]}
    assert counts["loss/sums"] == counts["exact/sums"] == counts["stops/sums"] == 2


def test_rows_whose_reference_does_not_run_are_counted(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"context": "CREATE TABLE a (b INTEGER)", "answer": "SELECT b FROM a"}
    rows = [row | {"question": "What?"}, row | {"question": "Which?", "answer": "SELECT c FROM a"}]
    file = write(tmp_path / "sql.jsonl", rows)
    arguments = ["evaluate", str(small_run), *MEASURED, "--file", str(file)]
    arguments += ["--format", "sql_create_context", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = "not scored, for their references: executes/sql 1 of 2, execution/sql 1 of 2"
    assert said in capsys.readouterr().out
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert record["unscored"] == {"sql": {"the reference does not run on its schema": 1}}


def test_damaged_lines_are_named_and_the_others_measured(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps(row).encode() for row in GSM8K]
    file = tmp_path / "sums.jsonl"
    file.write_bytes(b"\n".join([good[0], b"{", b"", b"[1]", b'{"question": "\xff"}', *good[1:]]))
    arguments = ["evaluate", str(small_run), "evaluation=loss_only", "--file", str(file)]
    assert main([*arguments, "--format", "gsm8k", "--output", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert f"{file} line 2 is not JSON" in text
    assert f"{file} line 4 is a list, not an object" in text
    assert f"{file} line 5 is not UTF-8" in text
    assert f"3 of 6 rows of {file} could be asked" in text
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert {metric["name"]: metric["n"] for metric in record["metrics"]}["loss/sums"] == 3
    assert [each["number"] for each in record["damaged"]] == [2, 4, 5]


def test_prompts_are_limited_by_the_models_positions_and_not_by_training(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = launch.reopen_run(small_run, [], sections=()).data.max_length
    about = json.loads((embedded.MODEL / "config.json").read_text(encoding="utf-8"))
    positions = about["max_position_embeddings"]
    words = (trained + 1, positions - 150, positions)  # a token each, the template beside them
    assert words[0] < words[1]
    rows = [{"instruction": "1 " * count, "output": "A word."} for count in words]
    file = write(tmp_path / "long.jsonl", rows)
    arguments = ["evaluate", str(small_run), "--file", str(file), "--format", "alpaca"]

    def lengths_left_out(*overrides: str) -> dict[int, str]:
        output = tmp_path / f"out{len(overrides)}"
        assert main([*arguments, *overrides, "--output", str(output)]) == 0
        record = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        counts = {metric["name"]: metric["n"] for metric in record["metrics"]}
        assert counts["loss/long"] == len(rows) - len(record["rejected"])
        return {each["row"]: each["detail"] for each in record["rejected"]}

    assert list(lengths_left_out("evaluation=loss_only")) == [2]
    left_out = lengths_left_out(
        "evaluation=quick", "evaluation.generate_examples=1", "decoding.max_new_tokens=150"
    )
    assert list(left_out) == [1, 2]
    assert f"decoding.max_new_tokens=150 are more than the model's {positions}" in left_out[1]
    text = capsys.readouterr().out
    assert f"left out: {file} row 1: prompt_too_long, {left_out[1]}" in text
    assert f"1 of 3 rows of {file} could be asked" in text
    too_long = ["evaluation=quick", f"decoding.max_new_tokens={positions}"]
    assert main([*arguments, *too_long]) == 2
    assert "none of its rows can be asked (row 0: prompt_too_long" in capsys.readouterr().err


def test_a_file_is_read_and_graded_as_a_source_of_the_run(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"INSTRUCTION": f"What is {n} plus 1?", "RESPONSE": f"It is {n + 1}."} for n in range(3)
    ]
    file = write(tmp_path / "sums.jsonl", rows)
    arguments = ["evaluate", str(small_run), *MEASURED, "--file", str(file), "--source"]
    output = tmp_path / "out"
    own = ["evaluation.primary=exact/maths", "--output", str(output)]
    assert main([*arguments, "maths", *own]) == 0
    record = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert record["graders"] == {"maths": "maths"}
    counts = {metric["name"]: metric["n"] for metric in record["metrics"]}
    assert (counts["loss/maths"], counts["exact/maths"]) == (2, 2)
    capsys.readouterr()
    assert main([*arguments, "math"]) == 2
    assert "did you mean maths?" in capsys.readouterr().err
    assert main([*arguments, "code"]) == 2
    assert "instruction" in capsys.readouterr().err
    assert main([*arguments, "maths", "--format", "alpaca"]) == 2
    assert "--file goes with --source NAME" in capsys.readouterr().err


HALF = {
    "prompt": "def half(x):\n",
    "canonical_solution": "    return x // 2\n",
    "test": "def check(half):\n    assert half(4) == 2\n",
    "entry_point": "half",
}


def half(number: int, **changes: str) -> dict[str, str]:
    return HALF | {"prompt": f"def half(x):\n    # Halve {number}.\n"} | changes


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_answers_to_humaneval_are_run_where_asked_for(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(
        _: Any, __: Any, prompts: list[Stretches], *___: Any, **____: Any
    ) -> list[Completion]:
        """The first of two answers is right, but to Halve 2, which gets none."""
        texts = [
            "return x // 2" if number % 2 == 0 and "Halve 2" not in text_of(prompt) else "return x"
            for number, prompt in enumerate(prompts)
        ]
        return [Completion(text, 1, StoppedBy.end_marker) for text in texts]

    monkeypatch.setattr(suite, "generate", answer)
    file = write(tmp_path / "humaneval.jsonl", [half(0), half(1), half(2), half(3, test=" ")])
    arguments = ["evaluate", str(small_run), "--file", str(file), "--format", "humaneval"]
    drawn = ["evaluation=full", "evaluation.answers=2", "decoding=nucleus"]
    drawn += ["decoding.max_new_tokens=8", "evaluation.primary=pass@1/humaneval"]
    run_code = ["evaluation.run_code=true", "--output", str(tmp_path / "out")]
    assert main([*arguments, *drawn, *run_code]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("pass@1/humaneval")
    assert "not run: 1 rows of humaneval have no tests" in text
    record = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    metrics = {metric["name"]: (metric["value"], metric["n"]) for metric in record["metrics"]}
    # A half, a half and none of the answers.
    assert metrics["passes/humaneval"] == metrics["pass@1/humaneval"] == (pytest.approx(1 / 3), 3)
    assert metrics["parses/humaneval"] == (1.0, 4)
    assert "pass@5/humaneval" not in metrics
    assert record["untested"] == {"humaneval": 1}
    assert main([*arguments, *drawn]) == 2
    assert "pass@1/humaneval is not measured" in capsys.readouterr().err


def test_code_that_cannot_be_run_is_refused_before_anything_is_loaded(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(preflight.sandbox, "available", lambda: "no namespaces")
    monkeypatch.setattr("dollyllama.restore.restore", lambda *_: pytest.fail("was loaded"))
    file = write(tmp_path / "humaneval.jsonl", [half(0)])
    arguments = ["evaluate", str(small_run), *MEASURED, "--file", str(file)]
    assert main([*arguments, "--format", "humaneval", "evaluation.run_code=true"]) == 2
    assert "programs cannot be run here: no namespaces" in capsys.readouterr().err


def test_a_file_may_be_called_as_no_source_may(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "all.jsonl", GSM8K)
    arguments = ["evaluate", str(small_run), "evaluation=loss_only", "--file", str(file)]
    assert main([*arguments, "--format", "gsm8k", "--output", str(tmp_path / "out")]) == 0
    assert "loss/file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--file", "rows.jsonl"], "--file goes with"),
        (["--grader", "sql"], "--grader is for --file"),
        (["--file", "absent.jsonl", "--format", "gsm8k"], "absent.jsonl is not there"),
        (["evaluation=quick", "--file", "rows.jsonl", "--format", "alpaca"], "--format gsm8k"),
        (["lora.r=8"], "cannot be changed"),
        (["decodin.k=1"], "did you mean decoding?"),
        (["--output", "."], "exists already"),
        (["--format", "dolly"], "dolly is none of sql_create_context, "),
        (["--format", "columns"], "jq -c '{instruction: .q, output: .a}' FILE > NEW.jsonl"),
        (["--format", "turns"], "others are written as one of these first"),
        (["--file", ".", "--format", "gsm8k"], "is a folder"),
        (["evaluation=quick", "evaluation.primary=exact/prose"], "is not measured"),
        (["evaluation=quick", "evaluation.answers=3"], "decoding=nucleus"),
        (["evaluation=none"], "add evaluation=quick"),
        ([], "add evaluation=quick"),
        (["evaluation=quick", "evaluation.run_code=true"], "no source has rows with tests"),
        ([*FILE, "--grader", "sql"], "--grader sql runs queries on a row's schema, and rows of"),
        ([*FILE, "--grader", "code"], "the grader code can judge no row of rows.jsonl"),
        ([*FILE, "evaluation.primary=exact/maths"], "did you mean exact/rows?"),
        ([*FILE, "evaluation.run_code=true"], "no source has rows with tests"),
        (
            ["evaluation=quick", "--file", "a.txt", "--format", "gsm8k"],
            "error: --file a.txt is none",
        ),
        (
            ["evaluation=quick", "--file", "0.jsonl", "--format", "gsm8k"],
            "--file 0.jsonl has no rows",
        ),
        (
            ["evaluation=quick", "--file", "bad.jsonl", "--format", "gsm8k"],
            "error: --file bad.jsonl line 1 is not JSON",
        ),
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
    monkeypatch.setattr("dollyllama.restore.restore", lambda *_: pytest.fail("was loaded"))
    write(tmp_path / "rows.jsonl", GSM8K)
    write(tmp_path / "0.jsonl", [])
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("{\n", encoding="utf-8")
    assert main(["evaluate", str(small_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
