"""Provenance identifies code, machine and weights, and gives away nobody."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from dollyllama import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of its own that ``provenance`` takes for the one it lies in."""
    package = tmp_path / "project" / "dollyllama"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    return package.parent


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_record_is_strict_json_and_names_what_ran() -> None:
    found = provenance.collect(device="cpu", seed=7)
    json.dumps(found, allow_nan=False)
    assert found["seed"] == 7
    assert found["packages"]["torch"] == version("torch")
    assert found["device"]["type"] == "cpu"
    assert found["machine"]["memory_mib"] > 100
    assert found["started"].endswith("+00:00")


def test_host_home_and_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/some.person")
    monkeypatch.setenv("HF_TOKEN", "not-even-shaped-like-one")
    monkeypatch.setattr(
        "sys.argv", ["/home/some.person/train.py", "x=not-even-shaped-like-one", "password=abc"]
    )
    text = json.dumps(provenance.collect(device="cpu", seed=0))
    for private in ("some.person", "not-even", "=abc", socket.gethostname()):
        assert private not in text


def test_commit_and_dirty_flag_follow_the_checkout(checkout: Path) -> None:
    _git(checkout, "init", "-q")
    assert provenance.describe_code()["commit"] is None  # nothing committed yet
    _git(checkout, "add", ".")
    _git(checkout, "commit", "-q", "-m", "first")
    clean = provenance.describe_code()
    assert clean["commit"] == _git(checkout, "rev-parse", "HEAD")
    assert clean["dirty"] is False
    (checkout / "dollyllama" / "a.py").write_text("x = 2\n")
    changed = provenance.describe_code()
    assert changed["dirty"] is True
    assert changed["commit"] == clean["commit"]
    assert changed["digest"] != clean["digest"]


def test_outside_a_checkout_there_is_no_commit_but_a_digest(checkout: Path) -> None:
    found = provenance.describe_code()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["digest"] == hashlib.sha256(b"a.py\nx = 1\n").hexdigest()


def test_the_repository_around_an_installation_is_not_ours(checkout: Path) -> None:
    _git(checkout.parent, "init", "-q")
    assert provenance.describe_code()["commit"] is None


def test_without_git_nothing_fails(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(checkout, "init", "-q")
    monkeypatch.setenv("PATH", "")
    assert provenance.describe_code()["commit"] is None


def test_local_weights_are_told_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not part of the model")
    found = provenance.describe_weights(str(tmp_path), None)
    assert found["files"] == {
        "config.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
        "model.safetensors": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()},
    }


def test_weights_too_large_to_read_have_a_size_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MAX_DIGESTED_BYTES", 3)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = provenance.describe_weights(str(tmp_path), None)
    assert found["files"]["model.safetensors"] == {"bytes": 7, "sha256": None}


def test_a_hub_cache_tells_the_digest_by_the_name_of_its_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MAX_DIGESTED_BYTES", 3)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    name = hashlib.sha256(b"weights").hexdigest()
    (blobs / name).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(blobs / name)
    found = provenance.describe_weights(str(snapshot), None)
    assert found["files"]["model.safetensors"]["sha256"] == name


def test_a_model_that_is_nowhere_here_has_no_commit() -> None:
    found = provenance.describe_weights("nobody/no-such-model-anywhere", "main")
    assert found == {"path": "nobody/no-such-model-anywhere", "revision": "main", "commit": None}
