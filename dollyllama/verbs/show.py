"""``show``: a run on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from dollyllama import remote
from dollyllama.verbs.parser import fetched, parser


def main(arguments: Sequence[str]) -> None:
    """tell a run on one screen, also while it runs and after it failed"""
    command = parser("show", main.__doc__)
    command.add_argument("run", type=fetched, help="a run folder, or s3://BUCKET/FOLDER")
    given = command.parse_args(arguments)

    from dollyllama.summary import summary

    print(remote.by_url(summary(given.run)))
