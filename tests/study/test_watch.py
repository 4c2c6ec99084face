"""What is told of a sweep while it runs, from its folders alone."""

from __future__ import annotations

import json
import os
import pty
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from dollyllama.study import watch
from dollyllama.study.cells import Planned
from dollyllama.study.watch import Watch
from tests.study import faults

CELLS = [
    Planned(f"{name}.seed_{seed}.0123abcd", name, seed, "0123abcd", "4567", [])
    for seed in (0, 1)
    for name in ("baseline", "rank_8")
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SECONDS", 0.01)


def watched(folder: Path, report: Callable[[], object] = lambda: None) -> Watch:
    return Watch(folder, CELLS, steps=8, primary="loss/all", report=report)


def test_every_end_is_told_once_with_its_number_or_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    look = watched(tmp_path, lambda: reports.append(1))
    look.start()
    faults.write_result(tmp_path / CELLS[0].folder, "running")
    faults.write_result(tmp_path / CELLS[0].folder, "finished")
    faults.write_result(tmp_path / CELLS[1].folder, "failed", "killed by signal 9")
    faults.write_result(tmp_path / CELLS[2].folder, "diverged", "the loss is nan")
    look.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"4 cells in {tmp_path}, 0 of them done"
    assert sorted(line.partition("] ")[2] for line in lines[1:]) == [
        "baseline seed 0: finished, loss/all 0.5, 1 s",
        "baseline seed 1: diverged: the loss is nan",
        "rank_8 seed 0: failed: killed by signal 9",
    ]
    assert lines[-1].startswith("[3/4] ")
    assert 1 <= len(reports) <= 3


def test_what_was_there_before_is_counted_and_not_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults.write_result(tmp_path / CELLS[0].folder, "finished")
    faults.write_result(tmp_path / CELLS[1].folder, "failed", "will be tried again")
    for cell in CELLS[:2]:
        os.utime(tmp_path / cell.folder / "result.json", (1, 1))
    look = watched(tmp_path)
    look.start()
    faults.write_result(tmp_path / CELLS[1].folder, "finished")
    look.stop()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"4 cells in {tmp_path}, 1 of them done",
        "[2/4] rank_8 seed 0: finished, loss/all 0.5, 1 s",
    ]


def test_a_report_that_fails_is_told_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    look = watched(tmp_path, fail)
    look.start()
    faults.write_result(tmp_path / CELLS[0].folder, "finished")
    look.stop()
    told = capsys.readouterr().err
    assert "the report could not be written: OSError: no space left on device" in told
    assert "baseline seed 0: finished" in told


def open_terminal() -> tuple[TextIO, Callable[[], str]]:
    """A terminal's stream, and what was written to it, which closes it."""
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other side is closed
            while piece := os.read(ours, 4096):
                pieces.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    stream = os.fdopen(theirs, "w", encoding="utf-8")

    def text() -> str:
        stream.close()
        reader.join()
        os.close(ours)
        return b"".join(pieces).decode("utf-8")

    return stream, text


def test_a_terminal_shows_what_runs_how_far_it_is_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = watched(tmp_path)
    faults.write_result(tmp_path / CELLS[0].folder, "running")
    line = json.dumps({"step": 4, "train/loss": 1.25})
    (tmp_path / CELLS[0].folder / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
    stream, text = open_terminal()
    monkeypatch.setattr(sys, "stderr", stream)  # not in a fixture: pytest sets it before the test
    monkeypatch.setenv("TERM", "xterm")
    look.start()
    look.stop()
    shown = text()
    assert "0 of 4 cells" in shown
    assert "baseline" in shown
    assert "━━━━━━╌╌╌╌╌╌ 4/8" in shown
    assert "1.250" in shown
