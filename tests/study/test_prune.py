"""Cells of a search that fall behind are ended, by what stands in the folders alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dollyllama.study.prune import MedianRule, losses_on_the_way, note_proposal


def cell(
    sweep: Path, name: str, losses: dict[int, float], *, number: int | None, status: str
) -> Path:
    folder = sweep / name
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss/sql": loss} for step, loss in losses.items()]
    rows.insert(1, {"step": 5, "train/loss": 0.1})  # of training, which no rule looks at
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "result.json").write_text(
        json.dumps({"status": status, "error": None}), encoding="utf-8"
    )
    if number is not None:
        note_proposal(sweep, number, name)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three cells that finished, with 3, 1 and 2 at step 10, and others that count for nothing."""
    folder = tmp_path / "search"
    for number, loss in enumerate((3.0, 1.0, 2.0)):
        cell(folder, f"done{number}", {10: loss, 20: loss / 2}, number=number, status="finished")
    cell(folder, "pruned", {10: 0.01}, number=3, status="pruned")
    cell(folder, "beside", {10: 0.01}, number=4, status="finished")  # proposed with the one asked
    cell(folder, "of_another_search", {10: 0.01}, number=None, status="finished")
    return folder


RULE = MedianRule(metric="loss/sql", number=5, at_once=2, least=3)


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ({10: 2.1}, True),
        ({10: 2.0}, False),  # at the median
        ({10: 1.9}, False),
        ({10: 0.9, 20: 1.5}, False),  # its best was good enough
        ({10: 1.1, 20: 1.5}, True),
        ({15: 9.0}, False),  # where no other has measured
        ({}, False),
    ],
)
def test_a_cell_ends_when_its_best_is_above_the_median(
    losses: dict[int, float], ends: bool, sweep: Path
) -> None:
    here = cell(sweep, "here", losses, number=5, status="running")
    verdict = RULE.verdict(here)
    assert (verdict is not None) == ends
    if losses == {10: 2.1}:
        assert verdict == "loss/sql 2.1 by step 10, where 3 had 2"


def test_too_few_others_decide_nothing(sweep: Path) -> None:
    here = cell(sweep, "here", {10: 9.0}, number=5, status="running")
    assert replace(RULE, least=4).verdict(here) is None
    assert replace(RULE, least=4, at_once=1).verdict(here) is not None  # one more had ended
    assert replace(RULE, at_once=3).verdict(here) is not None  # 0, 1, 2
    assert replace(RULE, at_once=6).verdict(here) is None  # none at all
    assert replace(RULE, metric="loss/code", least=1).verdict(here) is None


def test_what_an_earlier_search_made_does_not_count(sweep: Path) -> None:
    """It was proposal 3 there, which here is another cell."""
    cell(sweep, "old", {10: 9.0}, number=None, status="finished")
    note_proposal(sweep, 3, "old")
    here = cell(sweep, "here", {10: 2.2}, number=5, status="running")
    assert RULE.verdict(here) is None  # of 1, 2, 3 and 9 the median is 2.5
    note_proposal(sweep, 3, "pruned")
    assert RULE.verdict(here) is not None


def test_a_cell_proposed_again_is_judged_as_it_was(sweep: Path) -> None:
    here = cell(sweep, "here", {10: 2.1}, number=5, status="pruned")
    for number in (6, 7, 8, 9):
        cell(sweep, f"worse{number}", {10: 9.0}, number=number, status="finished")
    note_proposal(sweep, 10, "here")
    assert replace(RULE, number=10).verdict(here) == RULE.verdict(here) is not None
    other = cell(sweep, "other", {10: 2.1}, number=10, status="running")
    assert replace(RULE, number=10).verdict(other) is None


def test_a_damaged_record_is_none(sweep: Path) -> None:
    (sweep / "done0" / "metrics.jsonl").write_text('{"step": 10\n', encoding="utf-8")
    assert losses_on_the_way(sweep / "done0", "loss/sql") == {}
    assert losses_on_the_way(sweep / "nowhere", "loss/sql") == {}
    here = cell(sweep, "here", {10: 9.0}, number=5, status="running")
    assert RULE.verdict(here) is None  # of the three two are left
