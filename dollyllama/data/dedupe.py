"""Duplicates, within a source and across them: list[Example] -> (kept, rejected).

Near duplicates are to come as another function of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable

from dollyllama.data.example import Example, Rejected
from dollyllama.data.split import normalise


def drop_exact_duplicates(examples: Iterable[Example]) -> tuple[list[Example], list[Rejected]]:
    """Keep one of the rows that agree in instruction and response, case and white space aside.

    The first by source name and row number stays, so the order of sources in YAML changes nothing.
    Returns both lists in that order.
    """
    seen: dict[tuple[str, str], Example] = {}
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for example in sorted(examples, key=lambda example: (example.source, example.row)):
        key = (normalise(example.instruction), normalise(example.response))
        first = seen.setdefault(key, example)
        if first is example:
            kept.append(example)
        else:
            detail = f"copy of {first.source} row {first.row}, id {first.id}"
            rejected.append(Rejected(example.source, example.row, "duplicate_row", detail, {}))
    return kept, rejected
