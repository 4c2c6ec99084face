"""The verbs of ``python -m dollyllama``: what they print, write and refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dollyllama.__main__ import VERBS, main
from tests.model.build import write_model


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model and forty rows of SQL, one of them empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "model")
    rows = [
        {
            "question": f"Get {number}",
            "context": f"CREATE TABLE t{number} (a INT)",
            "answer": f"SELECT a FROM t{number}" if number else "",
        }
        for number in range(40)
    ]
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "sql_create_context.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return tmp_path


OVERRIDES = [
    *("model=local", "model.path=model", "data=sql", "data.root=rows", "data.max_length=250"),
    "data.held_out=0.3",
]


def test_prepare_counts_shows_the_mask_and_writes_the_manifest(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *OVERRIDES, "--output", "out", "--examples", "1"]) == 0
    text = capsys.readouterr().out
    manifest = json.loads((workshop / "out/data.json").read_text(encoding="utf-8"))
    assert manifest["total"]["rows"]["read"] == 40
    assert "= trained on" in text
    # The prompt is masked, the response with its end marker is not.
    assert text.count("‹") == 1
    assert "### Response:\n›SELECT a FROM t" in text
    (rejected,) = (workshop / "out/rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rejected)["row"] == 0


def test_prepare_takes_options_between_overrides_and_a_folder_of_its_own(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", OVERRIDES[0], "--examples=0", *OVERRIDES[1:]]) == 0
    (made,) = (workshop / "runs/prepared").iterdir()
    assert sorted(path.name for path in made.iterdir()) == [
        "clusters.jsonl",
        "contamination.jsonl",
        "data.json",
        "rejected.jsonl",
    ]
    assert "‹" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prepre"], "there is no verb prepre: did you mean prepare?"),
        (["xyz"], "there is no verb xyz: there are prepare, plan, show, evaluate, generate"),
        (["prepare", "lora.rnk=8"], "did you mean lora.r?"),
        (["prepare", "data=sqll"], "did you mean data=sql?"),
        (["prepare", "--outpt=x"], "unrecognized arguments: --outpt=x"),
        (["prepare", *OVERRIDES, "data.root=nowhere"], "there is no such folder"),
        (["show"], "the following arguments are required: run"),
        (["show", "nowhere"], "nowhere is no folder"),
        (["evaluate", "nowhere"], "nowhere is no folder"),
        (["prepare", "--output", "s3://bucket/out"], "s3://bucket/out is no place here"),
        (["merge", ".", "--output", "host:/out"], "host:/out is no place here"),
        (["generate", "."], "is no run folder: it has no config.yaml"),
    ],
)
@pytest.mark.usefixtures("workshop")
def test_a_bad_argument_ends_in_one_line_and_status_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    written = capsys.readouterr()
    (only,) = written.err.splitlines()
    assert only.startswith("error: ")
    assert line in only
    assert written.out == ""


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n  {verb} " not in text] == []


@pytest.mark.slow
def test_a_trained_run_is_shown_evaluated_and_asked(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dollyllama import launch
    from dollyllama.run import run

    overrides = ["trainer=smoke", "evaluation=none", "tracking=files", "decoding.max_new_tokens=4"]
    run(launch.compose_run([*OVERRIDES, *overrides]), Path("done"))
    capsys.readouterr()

    assert main(["show", "done"]) == 0
    assert "finished" in capsys.readouterr().out
    changes = ["evaluation=loss_only", "evaluation.loss_examples=2"]
    assert main(["evaluate", "done", *changes]) == 0
    assert "loss/sql" in capsys.readouterr().out

    assert main(["generate", "done", "--instruction", "Say it."]) == 0
    greedy = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("Say it.\n"))
    assert main(["generate", "done"]) == 0
    assert capsys.readouterr().out == greedy
    assert main(["generate", "done", "--instruction", "Say it.", "decoding.max_new_tokens=1"]) == 0
    assert capsys.readouterr().out != greedy

    assert main(["generate", "done", "lora.r=8"]) == 2
    assert "lora.r=8 cannot be changed for a run that is done" in capsys.readouterr().err
