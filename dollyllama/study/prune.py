"""A cell of a search that falls behind those before it is ended early."""

from __future__ import annotations

import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dollyllama.files import read_json_lines, write_text
from dollyllama.study.cells import status_of

#: Below the sweep's folder: which cell each proposal of the search was, a file a number.
_PROPOSALS = ".proposals"


@dataclass(frozen=True, slots=True)
class MedianRule:
    """Ends a cell whose least loss so far is above the median of the others' at the same step.

    The median stopping rule (Golovin et al. 2017, doi:10.1145/3097983.3098043, section 3.2.2) as
    Optuna's ``MedianPruner`` has it: not against the average of the others' losses until then,
    which a falling loss is below at once.

    metric: a loss that is measured during training. number: of the proposal that the cell is.
    at_once: so many are proposed together. A cell is held against those that were proposed before
    it was for the first time, and finished: a search that is given again decides as it did. least:
    fewer of them decide nothing.
    """

    metric: str
    number: int
    at_once: int
    least: int

    def verdict(self, cell: Path) -> str | None:
        """Why the cell in this folder should end where it last measured; None: it should go on."""
        own = losses_on_the_way(cell, self.metric)
        if not own:
            return None
        step, best = max(own), min(own.values())
        others = [
            losses[step]
            for name in self._before(cell)
            if status_of(cell.parent / name)[0] == "finished"
            and step in (losses := losses_on_the_way(cell.parent / name, self.metric))
        ]
        if len(others) < self.least or best <= (median := statistics.median(others)):
            return None
        return f"{self.metric} {best:.4g} by step {step}, where {len(others)} had {median:.4g}"

    def _before(self, cell: Path) -> list[str]:
        """The cells that had been proposed, and had ended, when this one was proposed first."""
        proposed = [_proposal(cell.parent, number) for number in range(self.number)]
        first = [*proposed, cell.name].index(cell.name)
        return sorted({name for name in proposed[: first - first % self.at_once] if name})


def note_proposal(sweep: Path, number: int, cell: str) -> None:
    """Remember which cell a proposal of the search in ``sweep`` is."""
    place = sweep / _PROPOSALS / str(number)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, cell)


def _proposal(sweep: Path, number: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (sweep / _PROPOSALS / str(number)).read_text(encoding="utf-8")
    return ""


def losses_on_the_way(cell: Path, metric: str) -> dict[int, float]:
    """A metric by step, as ``metrics.jsonl`` has it; empty where that is damaged."""
    try:
        rows = read_json_lines(cell / "metrics.jsonl")
        return {int(row["step"]): float(row[metric]) for row in rows if metric in row}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
