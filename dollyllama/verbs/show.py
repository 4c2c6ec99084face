"""``show``: a run on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dollyllama.verbs.parser import parser


def main(arguments: Sequence[str]) -> None:
    """tell a run on one screen, also while it runs and after it failed"""
    command = parser("show", main.__doc__)
    command.add_argument("run", type=Path, help="a run folder")
    given = command.parse_args(arguments)

    from dollyllama.summary import summary

    print(summary(given.run))
