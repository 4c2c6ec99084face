"""``latency``: what it records and says of a run, and what it refuses to begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dollyllama.__main__ import main

SIZES = ("--batch", "1", "2", "--context", "8", "16", "--tokens", "3")


def test_three_sides_of_a_run_are_timed_and_recorded(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", str(small_run), "seed=3", *SIZES]) == 0
    said = capsys.readouterr().out
    path = Path(said.splitlines()[-1])
    assert path.parent == small_run / "latency"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["tokens"], record["rounds"], record["seed"]) == (3, 5, 3)
    assert [(cell["batch"], cell["context"]) for cell in record["cells"]] == [
        *((1, 8), (1, 16), (2, 8), (2, 16))
    ]
    for cell in record["cells"]:
        assert sorted(cell["sides"]) == ["adapter", "base", "merged"]
        for timings in cell["sides"].values():
            assert len(timings) == 5
            assert min(each["first_seconds"] for each in timings) > 0
            assert min(each["next_seconds"] for each in timings) > 0
    # 4-bit and an adapter against one of 16 bits; the default run's norms are float32.
    assert list(record["dtypes"]["base"]["quantised"]) == ["nf4"]
    assert "adapter" not in record["dtypes"]["base"]
    assert list(record["dtypes"]["adapter"]["adapter"]) == ["float32"]
    assert list(record["dtypes"]["adapter"]["norms"]) == ["float32"]
    assert list(record["dtypes"]["merged"]["norms"]) == ["bfloat16"]
    weights = record["weights_mib"]
    assert weights["base"] < weights["adapter"] < weights["merged"]
    assert said.count("interval)") == 4
    assert "The sides do not compute in the same precision" in said
    assert list(small_run.glob(".merged-*")) == []

    merged = tmp_path / "merged"
    rows = ("--rows", "2", "evaluation=none")
    assert main(["merge", str(small_run), "--output", str(merged), *rows]) == 0
    capsys.readouterr()
    single = ("--merged", str(merged), "--batch", "1", "--context", "8", "--tokens", "2")
    assert main(["latency", str(small_run), *single]) == 0
    again = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text(encoding="utf-8"))
    assert again["weights_mib"] == weights
    assert again["dtypes"] == record["dtypes"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--context", "481"],
            "--context 481 and --tokens 32 are beyond the model's 512 positions",
        ),
        (["--tokens", "512"], "--tokens 512 leaves no context in 512 positions"),
        (["--tokens", "1"], "--tokens must be at least 2"),
        (["--rounds", "4"], "--rounds must be at least 5, not 4"),
        (["--batch", "0"], "argument --batch: 0 is below 1"),
        (["--context", "8", "seed=1"], "seed=1 is no whole number; RUN and overrides go before"),
        (["decoding=contrastive"], "decoding=contrastive has no effect on latency"),
        (["--merged", "nowhere"], "--merged nowhere is no folder that merge wrote: no merge.json"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    small_run: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", str(small_run), *arguments]) == 2
    written = capsys.readouterr()
    (only,) = written.err.splitlines()
    assert line in only
    assert written.out == ""


def test_a_missing_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", str(tmp_path / "nowhere")]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert "nowhere is no folder" in only


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"adapter": "0" * 64}, "was made from another run's adapter"),
        ({"base": "quantised"}, "does not name its adapter: merge"),
    ],
)
def test_the_merged_model_of_another_run_is_refused(
    small_run: Path,
    tmp_path: Path,
    record: dict[str, str],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "merge.json").write_text(json.dumps(record), encoding="utf-8")
    assert main(["latency", str(small_run), "--merged", str(tmp_path)]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert line in only
