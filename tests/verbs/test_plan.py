"""``plan``: what it says of a run that is to come or was, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dollyllama.__main__ import main
from dollyllama.summary import cost_rows


def mib(text: str, label: str) -> int:
    found = re.search(rf"^{label} +([\d,]+) MiB", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def test_a_run_is_planned_from_its_own_rows_and_compared_with_what_it_took(
    small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((small_run / "result.json").read_text(encoding="utf-8"))
    assert main(["plan", str(small_run)]) == 0
    said = capsys.readouterr().out
    assert "(the largest of the data)" in said
    parts = ("weights", "adapter", "optimizer", "activations", "freed, but held", "libraries")
    # Each part is rounded by itself.
    assert abs(sum(mib(said, part) for part in parts) - mib(said, "peak memory")) <= 3
    assert mib(said, "measured") == round(result["train"]["peak_memory_mib"])
    rows = int(re.search(r"trainer.batch_size=(\d+) is the largest", said)[1])  # type: ignore[index]
    assert 1 <= rows <= 32

    assert main(["plan", str(small_run), "trainer.batch_size=1"]) == 0
    smaller = capsys.readouterr().out
    assert smaller.startswith("micro-batch      1 rows")
    assert mib(smaller, "activations") < mib(said, "activations")


def test_without_prepared_data_the_worst_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path))
    overrides = ["trainer.batch_size=3", "data.max_length=50", "optimizer=paged_adamw_32bit"]
    assert main(["plan", *overrides, "--gpu", "0.6"]) == 0
    said = capsys.readouterr().out
    assert "3 rows, 150 tokens (data.max_length each: no data prepared)" in said
    assert "of 102 MiB free" in said  # 0.6 GiB, less what the driver and libraries take
    assert "libraries" not in said
    size = int(re.search(r"trainer.batch_size=(\d+) is the largest", said)[1])  # type: ignore[index]
    assert main(["plan", *overrides[1:], f"trainer.batch_size={size}", "--gpu", "0.6"]) == 0
    said = capsys.readouterr().out
    assert mib(said, "peak memory") <= 102 / 1.1
    assert main(["plan", *overrides, "--gpu", "0.501"]) == 0
    assert "not even trainer.batch_size=1 fits" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["one", "two"], "plan is for one run, not one and two"),
        (["lora.rnk=8"], "did you mean lora.r?"),
        (["--gpu", "0"], "--gpu must be a number of GiB above 0, not 0"),
        (["optimizer=paged_adamw_32bit", "device=cpu"], "this run is on a CPU"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    written = capsys.readouterr()
    (only,) = written.err.splitlines()
    assert line in only
    assert written.out == ""


def test_a_runs_summary_has_the_estimate_beside_the_truth(small_run: Path) -> None:
    result = json.loads((small_run / "result.json").read_text(encoding="utf-8"))
    expected, measured = result["expected_memory_mib"], result["train"]["peak_memory_mib"]
    assert expected == pytest.approx(measured, rel=0.3)
    told = dict(cost_rows(result))["peak memory"]
    assert told == f"{measured:,.0f} MiB (estimated {expected:,.0f})"
    del result["expected_memory_mib"]  # a run of before
    assert dict(cost_rows(result))["peak memory"] == f"{measured:,.0f} MiB"
