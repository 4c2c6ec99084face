"""A run can be read from its folder at any moment, without what made it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dollyllama.summary import summary
from tests import run_record


def test_a_finished_run_tells_settings_data_metrics_cost_and_samples(tmp_path: Path) -> None:
    text = summary(run_record.write(tmp_path / "run"))
    for part in (
        "run: finished in 1 min 23 s",
        "dollyllama/embedded, bfloat16",
        "exact/sql",
        "42.5 ± 7.8 %",
        "300 steps, 123,456 tokens in 1 min 1 s, 2,024 tokens/s",
        "812 MiB",
        "250,000 of 5,000,000 (5.00%)",
        "late answer",
        "python -m dollyllama evaluate",
    ):
        assert part in text
    assert "early" not in text  # a later sample of the same source is there
    assert all(len(line) < 200 for line in text.splitlines())


def test_the_data_table_adds_up(tmp_path: Path) -> None:
    text = summary(run_record.write(tmp_path))
    (total,) = [line.split() for line in text.splitlines() if line.startswith("total")]
    assert total == ["total", "120", "5", "201", "29", "9,000", "4,000"]


def test_a_run_without_evaluation_before_training_shows_that_after(tmp_path: Path) -> None:
    result = run_record.result()
    del result["metrics"]["before"]
    assert "42.5 ± 7.8 %" in summary(run_record.write(tmp_path, result=result))


def test_a_run_without_any_evaluation_can_be_read(tmp_path: Path) -> None:
    result = {**run_record.result(), "metrics": {"before": [], "after": []}}
    assert "exact/sql" not in summary(run_record.write(tmp_path, result=result))


def test_a_failed_run_tells_its_error_and_how_to_resume(tmp_path: Path) -> None:
    failed = run_record.result("failed", "ValueError: no such model")
    failed.update(train=None, metrics={}, parameters={}, seconds={})
    text = summary(run_record.write(tmp_path, result=failed))
    assert ": failed\nValueError: no such model" in text
    assert f"python train.py resume={tmp_path}" in text
    assert "step 300, loss 0.01" in text


def test_a_run_that_has_only_begun_can_be_read(tmp_path: Path) -> None:
    run_record.write(tmp_path)
    for name in ("data.json", "result.json", "metrics.jsonl", "samples.jsonl", "provenance.json"):
        (tmp_path / name).unlink()
    assert re.search(r": running, last written \d+ s ago", summary(tmp_path))


def test_a_run_that_fell_silent_is_said_to_have_stopped(tmp_path: Path) -> None:
    running = {**run_record.result("running"), "train": None}
    run_record.write(tmp_path, result=running)
    past = time.time() - 7200
    for path in tmp_path.iterdir():
        os.utime(path, (past, past))
    assert ": stopped without a result: nothing written for 2 h 0 min" in summary(tmp_path)


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    run_record.write(tmp_path, result={**run_record.result("running"), "train": None})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    assert "step 300" in summary(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", '{"status": ', r"result\.json is damaged"),
        ("result.json", "[]", r"result\.json is damaged: it holds no JSON object"),
        ("data.json", "", r"data\.json is damaged"),
        ("config.yaml", "a: [", r"config\.yaml is damaged"),
        ("config.yaml", "a: 1", r"config\.yaml is no config of a run"),
        ("samples.jsonl", "{}\nx\n{}\n", r"samples\.jsonl is damaged in line 2"),
        ("config.yaml", "a: \x00", r"config\.yaml is damaged"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    run_record.write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        summary(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        summary(tmp_path / "absent")


def test_a_run_of_another_machine_can_be_read(tmp_path: Path) -> None:
    """Its config may name an optimizer that this machine could not run."""
    run_record.write(tmp_path, config=run_record.config("optimizer=paged_adamw_8bit"))
    assert "paged_adamw_8bit" in summary(tmp_path)


def test_reading_a_run_imports_nothing_heavy(tmp_path: Path) -> None:
    run_record.write(tmp_path)
    code = (
        "import sys, pathlib; from dollyllama.summary import summary;"
        "summary(pathlib.Path(sys.argv[1]));"
        "print(sorted({'torch', 'hydra', 'transformers', 'wandb', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
