from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run side by side, so torch's threads would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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


@pytest.fixture
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own: what W&B writes elsewhere is searched too, and a real login is unseen."""
    for name in list(os.environ):
        # The address of W&B's helper is its own: put back, it would be that of one that is gone.
        if name.startswith("WANDB_") and name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
