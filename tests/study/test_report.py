"""The files and the table that a study is told in."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dollyllama.study.analyse import analyse
from dollyllama.study.page import page
from dollyllama.study.records import read_sweep
from dollyllama.study.report import cells_csv, effects_csv, markdown, terminal_table, write_report
from dollyllama.verbs import report as verb
from tests.study import record as study_record

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "attention_only": {"shift": 0.2, "settings": {"lora__target_modules": ["q_proj"]}},
    "rank_8": {"shift": 0.001, "settings": {"lora__r": 8}},
    "wild": {"status": "diverged", "error": "the loss is | nan", "settings": {"lora__r": 99}},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return study_record.write_sweep(
        tmp_path / "sweep",
        VARIANTS,
        tips={"attention_only": "adapt all linear layers"},
        left_out={"with_head": "the head is tied"},
    )


FILES = ("report.html", "report.md", "report.csv", "cells.csv")


def test_the_report_depends_on_the_folders_contents_alone(sweep: Path, tmp_path: Path) -> None:
    """Not on their order, the time, or the order in which this process hashes."""
    texts = []
    cells = sorted(sweep.glob("*.seed_*"))
    for number, folders in enumerate(([sweep], [*cells, sweep, sweep], [sweep, *reversed(cells)])):
        output = tmp_path / f"out_{number}"
        code = (
            "import sys; from pathlib import Path\n"
            "from dollyllama.study.report import write_report\n"
            "write_report(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(output), *map(str, folders)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(number + 1)},
        )
        texts.append({name: (output / name).read_text(encoding="utf-8") for name in FILES})
    assert texts[0] == texts[1] == texts[2]


def test_the_effects_are_a_tidy_table(sweep: Path) -> None:
    study = analyse(*read_sweep([sweep]))
    rows = list(csv.DictReader(effects_csv(study).splitlines()))
    compared = {(row["variant"], row["metric"]): row for row in rows}
    assert len(compared) == len(rows)
    row = compared["attention_only", "loss/all"]
    comparison = study.comparisons[0]
    assert comparison.effect is not None
    assert float(row["value"]) == comparison.effect.value
    assert float(row["corrected_p"]) == comparison.corrected_p
    assert (row["role"], row["verdict"], row["standing"]) == ("primary", "supported", "worse")
    other = compared["attention_only", "loss/sql"]
    assert (other["role"], other["corrected_p"], other["verdict"]) == ("exploratory", "", "")
    # Supported and contradicted are words about a claim, which rank_8 does not make.
    assert study.comparisons[1].verdict is not None
    assert compared["rank_8", "loss/all"]["verdict"] == ""
    assert compared["wild", "loss/all"]["missing"] == "it has no finished cell"


def test_what_variants_do_together_is_told_everywhere(tmp_path: Path) -> None:
    shifts = {"baseline": 0.0, "a": 0.05, "b": 0.08, "a+b": 0.33}
    variants = {
        name: {"shift": shift, "settings": {"lora__r": place + 1}}
        for place, (name, shift) in enumerate(shifts.items())
    }
    study = analyse(*read_sweep([study_record.write_sweep(tmp_path, variants)]))
    rows = list(csv.DictReader(effects_csv(study).splitlines()))
    (row,) = (row for row in rows if row["role"] == "interaction")
    assert row["variant"] == "a × b"
    for text in (markdown(study), terminal_table(study)):
        assert "a × b: loss/all is higher by 0." in text
    assert "Interactions" in page(study)


def test_the_cells_are_a_table_too(sweep: Path) -> None:
    rows = list(csv.DictReader(cells_csv(analyse(*read_sweep([sweep]))).splitlines()))
    assert len(rows) == 12
    first = rows[0]
    assert (first["folder"], first["variant"], first["seed"]) == (
        *("baseline.seed_0", "baseline", "0"),
    )
    assert float(first["training_seconds"]) == 60
    assert float(first["loss/all"]) > 0
    wild = [row for row in rows if row["variant"] == "wild"]
    assert {(row["status"], row["reason"], row["loss/all"]) for row in wild} == {
        ("diverged", "the loss is | nan", "")
    }


def test_markdown_and_terminal_tell_the_same(sweep: Path) -> None:
    study = analyse(*read_sweep([sweep]))
    for text in (markdown(study), terminal_table(study)):
        assert "adapt all linear layers — supported: without it loss/all is higher by 0.2" in text
        assert "the head is tied" in text
        order = [
            "Worse than the baseline",
            "attention_only",
            "Not told apart from the baseline",
            "rank_8",
        ]
        places = [text.index(each, text.index("against the baseline")) for each in order]
        assert places == sorted(places)
    assert "the loss is \\| nan" in markdown(study)
    assert "wild.seed_1: diverged: the loss is | nan" in terminal_table(study)


def test_a_baseline_that_was_selected_is_told(sweep: Path, tmp_path: Path) -> None:
    write_report(tmp_path, [sweep], baseline="rank_8", selected=True)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the baseline rank_8 is the best of these very cells: it is lucky as well" in text
    write_report(tmp_path, [sweep])
    assert "lucky" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_study_of_which_nothing_is_done_has_a_report(tmp_path: Path) -> None:
    sweep = study_record.write_sweep(tmp_path, {"baseline": {"status": "running"}}, seeds=(0,))
    write_report(tmp_path, [sweep])
    assert "nothing can be compared" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_verb_prints_the_verdicts_and_writes_beside_the_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.main([str(sweep)])
    printed = capsys.readouterr().out
    assert "attention_only" in printed
    assert str(sweep / "report.html") in printed
    assert {path.name for path in sweep.iterdir() if path.is_file()} == {*FILES, "sweep.json"}


def test_runs_are_compared_where_the_verb_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        study_record.write_cell(tmp_path / str(r), settings={"lora__r": r}, shift=r / 100)
        for r in (16, 8)
    ]
    monkeypatch.chdir(tmp_path)
    verb.main([*map(str, runs), "--primary", "score/all", "--baseline", "lora.r=8"])
    assert "baseline lora.r=8; score/all decides" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()
    verb.main([*map(str, runs), "--output", "elsewhere"])
    assert (tmp_path / "elsewhere" / "report.csv").is_file()


def test_a_metric_that_nobody_measured_is_refused(sweep: Path) -> None:
    with pytest.raises(ValueError, match="measured los/all: did you mean loss/all"):
        verb.main([str(sweep), "--primary", "los/all"])
