"""Imports go one way: no module imports one that stands above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dollyllama"

#: From the bottom up. A module, or all of a package below its own entry; what stands in one line
#: may import each other.
LAYERS = [
    ["device", "distributed", "files", "interrupt", "orphans", "redact", "explain", "webpage"],
    ["embedded", "bars"],
    ["remote"],
    ["config", "hub", "provenance", "record", "weights"],
    ["data.cores", "data.example", "data.prompt", "data.split"],
    [
        "data.formats",
        "data.readers",
        "data.sources",
        "data.licences",
        "data.clean",
        "data.quality",
        "data.dedupe",
        "data.flow",
        "data.mix",
        "data.near",
        "data.tokens",
        "evaluation.metric",
    ],
    ["data.contamination", "data.semantic", "data.store", "model.attention"],
    ["data.ingest"],
    ["data.manifest"],
    ["embedded.words", "data.batches", "data.prepare", "decoding", "evaluation", "tracking"],
    ["embedded.passages", "embedded.problems", "embedded.programs", "embedded.queries", "card"],
    [
        "embedded.corpus",
        "embedded.sample",
        "embedded.tokenizer",
        "data.page",
        "data.show",
        "model",
        "plots",
        "answers",
        "latency",
        "pyfunc",
        "serving",
    ],
    ["embedded.pretrain", "preflight", "summary", "training.optimizers", "training.loss", "fast"],
    ["training"],
    ["restore"],
    ["run"],
    ["study"],
    ["launch", "sweeping"],
    ["verbs"],
    ["__main__"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def layer_of(module: str) -> int:
    """The layer of the longest entry that is the module or a package around it."""
    if module == "dollyllama":  # its own few lines import nothing
        return 0
    name = module.removeprefix("dollyllama").removeprefix(".")
    while name not in LAYER:
        assert name, f"{module} stands in no layer: give it one in LAYERS"
        name = name.rpartition(".")[0]
    return LAYER[name]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path) -> set[str]:
    """The modules of this package that a file imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dollyllama"):
            for alias in node.names:
                inner = PACKAGE.parent / Path(*f"{node.module}.{alias.name}".split("."))
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                found.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
    return found - {"dollyllama"}


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_module_imports_nothing_from_above(path: Path) -> None:
    own = layer_of(module_of(path))
    above = {name for name in imported_by(path) if layer_of(name) > own}
    assert not above


def test_every_layer_is_there() -> None:
    modules = {module_of(path).removeprefix("dollyllama.") for path in MODULES}
    packages = {path.parent.name for path in PACKAGE.rglob("__init__.py")}
    assert set(LAYER) <= modules | packages
