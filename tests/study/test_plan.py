"""What a sweep may take, told before it runs."""

from __future__ import annotations

import pytest

from dollyllama.study.plan import _makespan


@pytest.mark.parametrize(
    ("at_once", "minutes"), [(1, 600.0), (8, 80.0), (60, 10.0), (64, 10.0)], ids=str
)
def test_equal_cells_take_whole_rounds(at_once: int, minutes: float) -> None:
    assert _makespan([10.0] * 60, at_once) == minutes


def test_a_cell_begins_as_soon_as_a_place_is_free() -> None:
    assert _makespan([3.0, 1.0, 1.0, 1.0, 2.0], 2) == 5.0
