"""The README promises what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dollyllama import launch
from dollyllama.__main__ import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def table() -> dict[str, list[str]]:
    """Each group of the table and the options that it names."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE)
    return {group: re.findall(r"[a-z]\w*\*?", cell.replace("**", "")) for group, cell in rows}


def test_the_table_has_every_group() -> None:
    assert sorted(table()) == launch.groups()


@pytest.mark.parametrize("group", sorted(set(table()) - {"source", "ablation"}))
def test_the_table_has_every_option(group: str) -> None:
    there = {path.stem for path in (launch.CONF / group).glob("*.yaml")}
    if "without_*" in (named := set(table()[group])):
        there = {name for name in there if not name.startswith("without_")} | {"without_*"}
    assert named == there


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("python train")])
def test_every_training_command_composes(command: str, tmp_path: Path) -> None:
    words = shlex.split(command.replace("FOLDER", str(tmp_path)))[2:]
    overrides = [
        f"{key}={value.partition(',')[0]}"
        for key, _, value in (word.partition("=") for word in words if not word.startswith("--"))
        if key != "resume"
    ]
    if "experiment=dollyllama_7b" in overrides:  # its optimizer is refused on a CPU
        overrides.append("optimizer=adamw")
    launch.compose_run(overrides)


@pytest.mark.parametrize("command", [each for each in COMMANDS if "-m dollyllama" in each])
def test_every_verb_is_there(command: str) -> None:
    assert shlex.split(command)[3] in VERBS


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
