"""The picture shows the logged numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dollyllama.files import write_json_lines
from dollyllama.plots import loss_curve, running_mean
from tests import run_record


def test_a_run_becomes_a_picture_and_the_same_numbers_the_same_bytes(tmp_path: Path) -> None:
    run_record.write(tmp_path)
    for name in ("one.png", "two.png"):
        loss_curve(tmp_path, tmp_path / name)
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "two.png").read_bytes()


def test_other_numbers_are_another_picture(tmp_path: Path) -> None:
    run_record.write(tmp_path)
    loss_curve(tmp_path, tmp_path / "one.png")
    lines = [*run_record.metrics()[:-1], {"step": 300, "loss/sql": 2.5, "loss/maths": 0.6}]
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    loss_curve(tmp_path, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_run_without_result_and_with_a_loss_that_is_no_number_is_drawn(tmp_path: Path) -> None:
    lines = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": None}]
    write_json_lines(tmp_path / "metrics.jsonl", lines)
    loss_curve(tmp_path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_a_run_without_training_loss_is_refused(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "metrics.jsonl", [{"step": 0, "loss/sql": 1.0}])
    with pytest.raises(ValueError, match="no training loss"):
        loss_curve(tmp_path, tmp_path / "loss.png")


def test_the_running_mean_is_symmetric_and_keeps_straight_lines() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0, 5.0], 2) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert running_mean([0.0, 0.0, 9.0, 0.0, 0.0], 1) == [0.0, 3.0, 3.0, 3.0, 0.0]
    assert running_mean([], 3) == []
