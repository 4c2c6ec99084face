"""Who may use a source, as its config states it, for the manifest and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollyllama.config import Commercial, Source
from dollyllama.embedded import DATA

#: The licence of the sample that comes with the project.
EMBEDDED_LICENCE = {
    "name": "Apache-2.0",
    "stated_at": "LICENSE of this project",
    "commercial": Commercial.allowed.value,
}


def stated_licence(source: Source, read_from: Path | None) -> dict[str, str]:
    """A source's licence, where it is stated, and whether commercial use is allowed.

    read_from: the local file; of the project's own sample the project's licence holds, whatever
    data set its rows stand for.
    """
    if read_from is not None and read_from.is_relative_to(DATA):
        return EMBEDDED_LICENCE
    return {
        "name": source.licence,
        "stated_at": source.licence_stated_at,
        "commercial": source.commercial.value,
    }


def commercial_use(sources: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence on the commercial use of a mix. sources: the manifest's, by name."""
    by_use: dict[str, list[str]] = {}
    for name, source in sorted(sources.items()):
        by_use.setdefault(source["licence"]["commercial"], []).append(name)
    if set(by_use) == {Commercial.allowed.value}:
        return "Every source allows commercial use."
    parts = [
        f"{use} for {' and '.join(by_use[use])}"
        for use in (Commercial.forbidden.value, Commercial.unclear.value)
        if use in by_use
    ]
    return f"Commercial use is {', and '.join(parts)}."
