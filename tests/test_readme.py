"""The README promises what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What its headings can be linked by."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link


CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8")


def test_the_container_copies_what_is_there() -> None:
    copies = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", CONTAINER, re.MULTILINE)
    assert copies
    for path in " ".join(copies).split():
        assert (ROOT / path).exists(), path


def test_the_container_installs_as_the_readme_does() -> None:
    [install] = [each for each in COMMANDS if each.endswith("&& .venv/bin/python train.py")]
    environment, package, _ = install.split(" && ")
    assert f"RUN {environment.replace('python3', 'python3.11')} && {package}\n" in CONTAINER
    assert CONTAINER.endswith('ENTRYPOINT ["python"]\nCMD ["train.py"]\n')


def test_the_costs_are_what_their_arithmetic_prints() -> None:
    text = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == printed
