"""What a sweep is doing, told from its folders: a live table in a terminal, plain lines elsewhere.

The cells may run anywhere (this process, others, other machines): whoever launched them looks at
their folders once a second, tells what ended, and has the report written anew.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dollyllama.files import parse_json
from dollyllama.study.cells import Planned, read_result, status_of
from dollyllama.tracking import read_cell

_SECONDS = 1.0
#: Statuses of a cell that has not ended.
_OPEN = frozenset({"absent", "running"})


class Watch:
    """Looks at the cells of a sweep until it is stopped.

    steps: how many a cell takes, where that is known. primary: the metric to tell of a cell.
    report: called after every cell that ended.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Planned],
        *,
        steps: int | None,
        primary: str | None,
        report: Callable[[], object],
    ) -> None:
        self._folder = folder
        self._cells = list(cells)
        self._steps = steps
        self._primary = primary
        self._report = report
        self._began = time.time()
        self._states = {cell.folder: self._state(cell) for cell in cells}
        self._done_before = sum(status not in _OPEN for status, _ in self._states.values())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        total = len(self._cells)
        print(f"{total} cells in {self._folder}, {self._done_before} of them done", file=sys.stderr)
        self._thread.start()

    def stop(self) -> None:
        """Tell what has ended since the last look, and leave the terminal as it is."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        console = Console(stderr=True)
        if not console.is_terminal:
            self._follow(print_line)
            return
        with Live(self._table(), console=console, auto_refresh=False, transient=True) as live:
            self._follow(live.console.print, lambda: live.update(self._table(), refresh=True))

    def _follow(
        self, say: Callable[[str], object], show: Callable[[], object] = lambda: None
    ) -> None:
        over = False
        while not over:
            over = self._over.wait(_SECONDS)
            self._tell(say)
            show()

    def _tell(self, say: Callable[[str], object]) -> None:
        """Say which cells have ended since the last look, and renew the report if one has."""
        ended = False
        for cell in self._cells:
            before, now = self._states[cell.folder], self._state(cell)
            self._states[cell.folder] = now
            status, error = now
            if now == before or status in _OPEN:
                continue
            ended = True
            done = sum(state not in _OPEN for state, _ in self._states.values())
            found = f": {error}" if error else self._found(cell)
            say(f"[{done}/{len(self._cells)}] {cell.variant} seed {cell.seed}: {status}{found}")
        if ended:
            try:
                self._report()
            except Exception as error:  # whatever it is, the cells go on and are told of
                say(f"the report could not be written: {type(error).__name__}: {error}")

    def _state(self, cell: Planned) -> tuple[str, str | None]:
        """Status and error; a result that was there before this session and failed is open yet."""
        path = self._folder / cell.folder / "result.json"
        status, error = status_of(path.parent)
        settled = status in {"finished", "diverged"}
        if not settled and status != "absent" and path.stat().st_mtime < self._began:
            return "absent", None
        return status, error

    def _found(self, cell: Planned) -> str:
        """The primary metric of a cell that finished, and how long it took."""
        try:
            result = read_result(self._folder / cell.folder)
            metrics = {each["name"]: each["value"] for each in result["metrics"].get("after", [])}
            seconds = result["seconds"]["total"]
            about = read_cell(self._folder / cell.folder) or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
        value = metrics.get(self._primary)
        shown = "" if value is None else f", {self._primary} {value:.4g}"
        copied = about.get("reused_from") is not None
        return f"{shown}, " + ("copied from a sweep beside it" if copied else f"{seconds:.0f} s")

    def _table(self) -> Table:
        counts = [status for status, _ in self._states.values()]
        done = sum(status not in _OPEN for status in counts)
        failed = sum(status not in {*_OPEN, "finished"} for status in counts)
        title = f"{done} of {len(counts)} cells" + (f", {failed} failed" if failed else "")
        table = Table(title=title + self._left(done), title_justify="left", box=None)
        for column in ("running", "seed", "step", "loss"):
            table.add_column(column, justify="left" if column == "running" else "right")
        for cell in self._cells:
            if self._states[cell.folder][0] == "running":
                step, loss = self._progress(cell)
                table.add_row(cell.variant, str(cell.seed), step, loss)
        return table

    def _left(self, done: int) -> str:
        """How long the rest may take, by the cells that ended in this session."""
        fresh = done - self._done_before
        if fresh <= 0:
            return ""
        seconds = (time.time() - self._began) / fresh * (len(self._cells) - done)
        return f", about {max(1, round(seconds / 60))} min left"

    def _progress(self, cell: Planned) -> tuple[str, str]:
        """Step and training loss that a cell logged last; the step of how many, as a bar."""
        try:
            with (self._folder / cell.folder / "metrics.jsonl").open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().split(b"\n")[:-1]
            last = parse_json(lines[-1])
            step, loss = int(last["step"]), last.get("train/loss")
        except (OSError, ValueError, IndexError, KeyError):
            return "", ""
        shown = "" if loss is None else f"{loss:.3f}"
        if not self._steps:
            return f"{step:,}", shown
        filled = round(12 * min(1.0, step / self._steps))
        return f"{'━' * filled}{'╌' * (12 - filled)} {step:,}/{self._steps:,}", shown


def print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
