"""``dashboard``: a study's views for W&B."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from dollyllama import remote
from dollyllama.files import write_json
from dollyllama.verbs.parser import fetched, parser

#: In the folder of the sweep, or the working folder where that is a copy.
SPECIFICATION_FILE = "dashboard.json"


def main(arguments: Sequence[str]) -> None:
    """make a W&B workspace and report of a sweep: written as JSON, or put there with --publish"""
    command = parser("dashboard", main.__doc__)
    command.add_argument("sweep", type=fetched, help="the folder of a sweep")
    command.add_argument("--entity", help="user or team on W&B (default: as its runs)")
    command.add_argument("--project", help="project on W&B (default: as its runs)")
    command.add_argument("--publish", action="store_true", help="save them on W&B; needs a login")
    given = command.parse_args(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("dashboard needs wandb-workspaces: pip install -e '.[dashboard]'")

    from dollyllama.study.dashboard import publish, read_dashboard, specification

    dashboard = read_dashboard(given.sweep, project=given.project, entity=given.entity)
    written = remote.home(given.sweep) / SPECIFICATION_FILE
    write_json(written, specification(dashboard))
    print(written)
    if given.publish:
        print("\n".join(publish(dashboard)))
    else:
        print("to see it on W&B: `wandb login`, sync the runs, and this command with --publish")
