from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollyllama.model.load import load_tokenizer
from tests.model.build import write_model


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "untied")


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tied", tied=True)


@pytest.fixture
def tokenizer(untied: Path) -> Any:
    """Of both models; the pad token is an added one."""
    return load_tokenizer(str(untied), None)
