"""``report``: sweeps and runs compared, in the terminal and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dollyllama import remote
from dollyllama.verbs.parser import fetched, parser, written


def main(arguments: Sequence[str]) -> None:
    """compare the runs of sweeps, or any runs: report.html, report.md, report.csv"""
    command = parser("report", main.__doc__)
    command.add_argument("folders", nargs="+", type=fetched, metavar="DIR", help="sweeps and runs")
    command.add_argument("--output", type=written, help="default: the sweep's folder, else report/")
    command.add_argument("--baseline", metavar="VARIANT", help="what the others are compared with")
    command.add_argument("--primary", metavar="METRIC", help="the metric that decides: loss/all")
    given = command.parse_args(arguments)

    from dollyllama.study.report import terminal_table, write_report

    output = given.output or _default_output(given.folders)
    study = write_report(output, given.folders, baseline=given.baseline, primary=given.primary)
    print(terminal_table(study))
    print(f"\n{output / 'report.html'}, report.md, report.csv and cells.csv beside it")


def _default_output(folders: Sequence[Path]) -> Path:
    """The one sweep's own folder; otherwise none of those given."""
    alone = len(folders) == 1 and (folders[0] / "sweep.json").is_file()
    return folders[0] if alone and remote.home(folders[0]) == folders[0] else Path("report")
