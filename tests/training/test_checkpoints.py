from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dollyllama.training import checkpoints
from dollyllama.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint


def steps(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_the_newest_checkpoints_are_kept_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    assert steps(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]) == {"step": 11}


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
    assert load_checkpoint(list_checkpoints(tmp_path)[0]) == {"step": 1}

    save_checkpoint(tmp_path, 3, {"step": 3}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def test_tensors_come_back_with_their_bits(tmp_path: Path) -> None:
    tensor = torch.randn(7, dtype=torch.float32)
    path = save_checkpoint(tmp_path, 1, {"a": {"b": [tensor, 1.5, None]}}, keep=1)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["a"]["b"][0], tensor)
    assert loaded["a"]["b"][1:] == [1.5, None]


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
