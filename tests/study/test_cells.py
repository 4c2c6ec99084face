"""A cell's folder: what is run, taken over or left alone, and what becomes of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from dollyllama import launch
from dollyllama.files import locked
from dollyllama.run import Result, _previous_result
from dollyllama.study import cells
from dollyllama.study.cells import Planned, plan_cell, run_cell, slug, status_of, variant_name
from tests.study import faults

RUN = launch.compose_run([])


def planned(*overrides: str) -> Planned:
    axes = [each for each in overrides if not each.startswith("tracking")]
    return plan_cell(launch.compose_run(list(overrides)), axes)


def run(cell: Planned, folder: Path, minutes: float | None = None) -> tuple[str, str | None]:
    return run_cell(RUN, cell, folder, share=lambda: nullcontext({}), minutes=minutes)


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Put something in the place of training, which the cell's own process then does."""
    return lambda function: monkeypatch.setattr(cells, "_run", function)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep's folder that has no other beside it."""
    folder = tmp_path / "sweeps" / "tips"
    folder.mkdir(parents=True)
    return folder


NAMES = {
    ("ablation=baseline", "seed=1"): "baseline",
    ("ablation=rank_8",): "rank_8",
    ("ablation=[rank_8,attention_only]", "seed=0"): "rank_8+attention_only",
    ("lora.r=8", "optimizer.lr=0.001"): "lora.r=8+optimizer.lr=0.001",
    ("ablation=rank_8", "lora.dropout=0.1"): "rank_8+lora.dropout=0.1",
    ("seed=3",): "baseline",
    ("+lora.x=8",): "+lora.x=8",
}


@pytest.mark.parametrize("overrides", NAMES, ids=" ".join)
def test_a_variant_is_called_by_what_it_changes(overrides: tuple[str, ...]) -> None:
    assert variant_name(overrides) == NAMES[overrides]


def test_a_folders_name_is_plain_and_never_too_long() -> None:
    assert slug("rank_8+lora.dropout=0.1") == "rank_8+lora.dropout=0.1"
    assert slug("model.path=/some where/else") == "model.path=_some_where_else"
    assert slug("../..") == "cell"
    long = [slug("x" * 200 + end) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 80


def test_a_finished_cell_is_not_run_again(sweep: Path, does: Callable[[object], None]) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    assert run(cell, sweep) == ("finished", None)
    first = (sweep / cell.folder / "adapter/weights").read_text(encoding="utf-8")
    assert run(cell, sweep) == ("finished", None)
    assert (sweep / cell.folder / "adapter/weights").read_text(encoding="utf-8") == first
    about = json.loads((sweep / cell.folder / "cell.json").read_text(encoding="utf-8"))
    assert (about["variant"], about["seed"], about["reused_from"]) == ("baseline", 1, None)


@pytest.mark.parametrize(
    ("fault", "minutes", "status", "error"),
    [
        (faults.raise_at_once, None, "failed", "ValueError: no such thing"),
        (faults.eat_memory, None, "failed", "MemoryError"),
        (faults.kill_itself, None, "failed", "killed by signal 9, as when memory runs out"),
        (faults.crash, None, "failed", "killed by signal 11"),
        (faults.hang, 0.03, "failed", "stopped after sweep.cell_minutes=0.03"),
        (faults.raise_and_record, None, "diverged", "Diverged: the loss is nan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_cell_that_fails_is_recorded_with_its_reason(
    fault: object,
    minutes: float | None,
    status: str,
    error: str,
    sweep: Path,
    does: Callable[[object], None],
) -> None:
    cell = planned("seed=1")
    does(fault)
    assert run(cell, sweep, minutes) == (status, error)
    # What failed is tried again; what diverged would only diverge again.
    does(faults.finish)
    again = ("finished", None) if status == "failed" else (status, error)
    assert run(cell, sweep) == again


def test_a_cell_that_died_before_it_wrote_anything_can_be_run(
    sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.die_at_once)
    assert run(cell, sweep)[0] == "failed"
    # What a run would go on from: nothing.
    assert _previous_result(sweep / cell.folder) == Result()


def test_a_finished_cell_of_another_sweep_is_copied(
    sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep / "one")
    (sweep / "one" / cell.folder / "wandb").mkdir()
    does(faults.raise_at_once)
    other = replace(cell, folder=f"other.{cell.fingerprint[:8]}", variant="other")
    assert run(other, sweep / "two") == ("finished", None)
    folder = sweep / "two" / other.folder
    about = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    assert about["reused_from"] == str(sweep / "one" / cell.folder)
    assert about["variant"] == "other"
    assert not (folder / "wandb").exists()
    assert (folder / "adapter/weights").exists()


@pytest.mark.parametrize(
    "damage", ["unfinished", "no adapter", "another fingerprint", "no cell.json"]
)
def test_what_is_no_finished_twin_is_not_copied(
    damage: str, sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep / "one")
    there = sweep / "one" / cell.folder
    if damage == "unfinished":
        faults.write_result(there, "running")
    elif damage == "no adapter":
        (there / "adapter/weights").unlink()
        (there / "adapter").rmdir()
    elif damage == "another fingerprint":
        about = json.loads((there / "cell.json").read_text(encoding="utf-8"))
        text = json.dumps(about | {"fingerprint": cell.fingerprint[:8] + "00000000"})
        (there / "cell.json").write_text(text, encoding="utf-8")
    else:
        (there / "cell.json").unlink()
    does(faults.raise_at_once)
    assert run(cell, sweep / "two")[0] == "failed"


def test_a_copy_that_was_cut_off_is_made_again(sweep: Path, does: Callable[[object], None]) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep / "one")
    folder = sweep / "two" / cell.folder
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_text("half", encoding="utf-8")
    does(faults.raise_at_once)
    assert run(cell, sweep / "two") == ("finished", None)
    assert (folder / "adapter/weights").read_text(encoding="utf-8") != "half"


def test_a_folder_of_another_config_is_neither_used_nor_written(
    sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep)
    other = replace(cell, fingerprint=f"{cell.fingerprint[:8]}ffffffff")
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds another config's result"):
        run(other, sweep)
    assert before == {p: p.stat().st_mtime_ns for p in sweep.rglob("*") if p.is_file()}
    (sweep / cell.folder / "cell.json").unlink()
    with pytest.raises(ValueError, match="move it away"):
        run(cell, sweep)


def test_variants_of_decoding_share_an_adapter_and_others_do_not() -> None:
    baseline = planned("seed=1")
    for override in ("ablation=contrastive", "ablation=merged", "evaluation.loss_examples=3"):
        cell = planned(override, "seed=1")
        assert cell.training == baseline.training
        assert cell.fingerprint != baseline.fingerprint
    for override in ("ablation=rank_8", "ablation=no_dropout", "ablation=full_text_loss"):
        assert planned(override, "seed=1").training != baseline.training
    assert planned("seed=2").training != baseline.training


def test_an_adapter_is_taken_over_from_the_cell_that_trained_it(
    sweep: Path, does: Callable[[object], None]
) -> None:
    does(faults.note_training)
    for override in ("ablation=baseline", "ablation=contrastive", "ablation=merged"):
        cell = planned(override, "seed=1")
        assert run(cell, sweep)[0] == "finished"
        about = json.loads((sweep / cell.folder / "cell.json").read_text(encoding="utf-8"))
        trained = (sweep / cell.folder / "trained").read_text(encoding="utf-8")
        if override == "ablation=baseline":
            assert (about["trained_by"], trained) == (None, "None")
            baseline = cell.folder
        else:
            assert (about["trained_by"], trained) == (baseline, str(sweep / baseline))


def test_a_damaged_result_is_a_cell_to_run_again(
    sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep)
    (sweep / cell.folder / "result.json").write_text('{"status": "fini', encoding="utf-8")
    assert status_of(sweep / cell.folder) == ("damaged", "result.json cannot be read")
    assert run(cell, sweep) == ("finished", None)


@pytest.mark.parametrize("lost", ["losses.jsonl", "adapter/weights"])
def test_a_finished_cell_that_has_lost_a_part_is_run_again(
    lost: str, sweep: Path, does: Callable[[object], None]
) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep)
    folder = sweep / cell.folder
    assert cells.is_settled(folder)
    (folder / lost).unlink()
    if lost.startswith("adapter"):
        (folder / "adapter").rmdir()
    assert not cells.is_settled(folder)
    assert run(cell, sweep) == ("finished", None)
    assert cells.is_settled(folder)


def test_a_damaged_cell_json_says_how_to_go_on(sweep: Path, does: Callable[[object], None]) -> None:
    cell = planned("seed=1")
    does(faults.finish)
    run(cell, sweep)
    (sweep / cell.folder / "cell.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"is damaged: remove {cell.folder}, and it is run again"):
        run(cell, sweep)


def test_cells_that_only_answer_do_not_wait_for_each_other(
    sweep: Path, does: Callable[[object], None]
) -> None:
    does(faults.finish)
    trained = planned("ablation=baseline", "seed=1")
    run(trained, sweep)
    with locked(cells._lock(sweep, trained.training), "not taken"):
        # Somebody else holds what a cell that trains would wait for.
        assert run(planned("ablation=merged", "seed=1"), sweep) == ("finished", None)
