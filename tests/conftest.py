from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.webpage")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, tokenizers and models beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DOLLYLLAMA_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder of real inputs: there is no {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of the tests does not mix with that of the user's runs."""
    os.environ["DOLLYLLAMA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
