from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dollyllama.training import checkpoints
from dollyllama.training.checkpoints import list_checkpoints, load_newest, save_checkpoint


def steps(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def newest_state(folder: Path) -> dict[str, Any]:
    found = load_newest(folder)
    assert found is not None
    return found[1]


def test_the_newest_checkpoints_are_kept_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    assert steps(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert newest_state(tmp_path) == {"step": 11}


def test_a_crash_in_the_midst_of_writing_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)

    def crash(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.torch, "save", crash)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, 2, {"step": 2}, keep=1)
    assert steps(tmp_path) == ["checkpoint-1"]
    assert newest_state(tmp_path) == {"step": 1}

    save_checkpoint(tmp_path, 3, {"step": 3}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def test_tensors_come_back_with_their_bits(tmp_path: Path) -> None:
    tensor = torch.randn(7, dtype=torch.float32)
    save_checkpoint(tmp_path, 1, {"a": {"b": [tensor, 1.5, None]}}, keep=1)
    loaded = newest_state(tmp_path)
    assert torch.equal(loaded["a"]["b"][0], tensor)
    assert loaded["a"]["b"][1:] == [1.5, None]


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    assert load_newest(tmp_path / "nowhere") is None


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip_a_bit(path / "state.pt"), "state.pt differs from its digest"),
        (lambda path: (path / "state.pt").write_bytes(b""), "state.pt differs from its digest"),
        (lambda path: (path / "state.pt").unlink(), "state.pt differs from its digest"),
        (lambda path: (path / "digests.json").write_text("{"), "digests.json cannot be read"),
        (lambda path: (path / "digests.json").write_text("[]"), "no digest of state.pt"),
        (lambda path: (path / "digests.json").write_text("{}"), "no digest of state.pt"),
    ],
)
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken_and_that_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    damage(tmp_path / "checkpoint-3")
    assert newest_state(tmp_path) == {"step": 2}
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert line.endswith("is now checkpoint-3.damaged: going on from checkpoint-2")
    # It is in nobody's way: not kept in place of a whole one, not taken the next time.
    save_checkpoint(tmp_path, 3, {"step": 3}, keep=2)
    assert steps(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert newest_state(tmp_path) == {"step": 3}


def test_a_checkpoint_without_digests_is_left_to_the_user(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)
    (tmp_path / "checkpoint-1" / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 has no digests\.json: an earlier version"):
        load_newest(tmp_path)
    assert steps(tmp_path) == ["checkpoint-1"]


def test_when_all_checkpoints_are_damaged_the_run_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
        flip_a_bit(tmp_path / f"checkpoint-{step}" / "state.pt")
    assert load_newest(tmp_path) is None
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("going on from checkpoint-1")
    assert second.endswith("there is none before it, so training begins anew")
