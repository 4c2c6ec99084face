"""Designs of several factors: every effect of interest stands apart."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from dollyllama.study.design import fractional_factorial


@pytest.mark.parametrize(
    ("count", "runs"), [(2, 4), (3, 8), (4, 16), (5, 16), (6, 32), (7, 64), (8, 64)]
)
def test_main_effects_and_interactions_of_two_are_orthogonal(count: int, runs: int) -> None:
    names = [f"factor_{number}" for number in range(count)]
    axis = fractional_factorial(names)
    assert axis.startswith("[baseline],")
    rows = [set(row.split(",")) - {"baseline"} for row in re.findall(r"\[([^\]]*)\]", axis)]
    assert len(rows) == len({frozenset(row) for row in rows}) == runs
    terms = [*((name,) for name in names), *itertools.combinations(names, 2)]
    columns = np.array(
        [[math.prod(1 if name in row else -1 for name in term) for term in terms] for row in rows]
    )
    assert (columns.T @ columns == runs * np.eye(len(terms))).all()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_what_is_no_design_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="a design is for 2 to 8 of them"):
        fractional_factorial([f"factor_{number}" for number in range(count)])
