"""What decides a cell's result, as one fingerprint.

Equal fingerprints are equal results, but for what rounding makes of another number of threads, and
for a budget of seconds, which is another number of steps on a busier machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from dollyllama import config, preflight, provenance
from dollyllama.config import Device
from dollyllama.data.sources import digest_place, locate
from dollyllama.device import cuda_is_available

_PACKAGE = Path(__file__).resolve().parents[1]

#: Code that looks at results, records or serves them, and decides none.
_BYSTANDERS = (
    "__main__.py",
    "answers.py",
    "bars.py",
    "card.py",
    "explain.py",
    "latency",
    "launch.py",
    "plots.py",
    "pyfunc.py",
    "redact.py",
    "remote.py",
    "serving",
    "study",
    "summary.py",
    "sweeping.py",
    "tracking.py",
    "verbs",
)

#: Sections of the config that decide nothing of the result, and those that decide none of the
#: adapter.
_BESIDE = ("tracking", "sweep", "resume")
_AFTER_TRAINING = ("decoding", "evaluation")


def fingerprints(run: config.Run) -> tuple[str, str]:
    """Digests of what decides a run's result, and of what decides its adapter (16 hex digits).

    The config without tracking, sweep and places; the bytes of base model and data where they are
    local, ids and revisions on the Hub; the code that computes; the libraries' versions; CPU or
    CUDA. For the adapter, less what comes after training: runs of equal ones can share it.
    ValueError when model or data are named and are not there.
    """
    values = _deciding(run)
    whole = config.fingerprint(values)
    for section in _AFTER_TRAINING:
        del values["config"][section]
    return whole, config.fingerprint(values)


def _deciding(run: config.Run) -> dict[str, Any]:
    values = asdict(run)
    for section in _BESIDE:
        del values[section]
    del values["evaluation"]["primary"]
    values["device"] = "cuda" if cuda_is_available() and run.device is not Device.cpu else "cpu"
    folder = preflight.model_folder(run.model.path, run.model.revision)
    if folder is not None:
        values["model"]["path"] = _weights_as_of(folder, _stamp(folder))
    for name, source in run.data.sources.items():
        place = locate(name, source, root=run.data.root)
        if place.local is not None:
            about = values["data"]["sources"][name]
            del about["path"], about["file"]
            about["digests"] = _digests_as_of(place, _stamp(place.local))
    del values["data"]["root"]
    return {"config": values, "code": _code(), "packages": _packages()}


@cache
def _weights_as_of(folder: Path, _stamp: tuple[tuple[str, int, int], ...]) -> Any:
    return provenance.describe_weights(str(folder), None)["files"]


@cache
def _digests_as_of(place: Any, _stamp: tuple[tuple[str, int, int], ...]) -> dict[str, str]:
    return digest_place(place)


def _stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files at a place: while equal, a digest is not taken again."""
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    return tuple(
        (str(path), status.st_size, status.st_mtime_ns)
        for path in files
        if path.is_file() and (status := path.stat())
    )


@cache
def _packages() -> dict[str, str | None]:
    return provenance.package_versions()


@cache
def _code() -> str:
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        inner = path.relative_to(_PACKAGE)
        if inner.parts[0] not in _BYSTANDERS:
            total.update(f"{inner.as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()
