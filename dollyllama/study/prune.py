"""A cell of a search that falls behind those before it is ended early."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dollyllama.files import read_json_lines
from dollyllama.study.cells import finished_cells
from dollyllama.tracking import CELL_FILE


@dataclass(frozen=True, slots=True)
class MedianRule:
    """Ends a cell whose least loss so far is above the median of the others' at the same step.

    The median stopping rule (Golovin et al. 2017, doi:10.1145/3097983.3098043, section 3.2.2) as
    Optuna's ``MedianPruner`` has it: not against the average of the others' losses until then,
    which a falling loss is below at once.

    metric: a loss that is measured during training. before: a cell is held against those numbered
    below this that finished. They had ended when it was proposed, so a search that goes on, or is
    made again, decides as it did. least: fewer of them decide nothing.
    """

    metric: str
    before: int
    least: int

    def verdict(self, cell: Path) -> str | None:
        """Why the cell in this folder should end where it last measured; None: it should go on."""
        own = losses_on_the_way(cell, self.metric)
        if not own:
            return None
        step, best = max(own), min(own.values())
        measured = [losses_on_the_way(other, self.metric) for other in self._cells(cell.parent)]
        others = [losses[step] for losses in measured if step in losses]
        if len(others) < self.least or best <= (median := statistics.median(others)):
            return None
        return f"{self.metric} {best:.4g} by step {step}, where {len(others)} had {median:.4g}"

    def _cells(self, sweep: Path) -> Collection[Path]:
        """Those to compare with: of each number the one that was begun last, by whatever code."""
        found = [
            (about["number"], (cell / CELL_FILE).stat().st_mtime_ns, cell)
            for cell, about in finished_cells(sweep)
            if about.get("number", self.before) < self.before
        ]
        return {number: cell for number, _, cell in sorted(found)}.values()


def losses_on_the_way(cell: Path, metric: str) -> dict[int, float]:
    """A metric by step, as ``metrics.jsonl`` has it; empty where that is damaged."""
    try:
        rows = read_json_lines(cell / "metrics.jsonl")
        return {int(row["step"]): float(row[metric]) for row in rows if metric in row}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
