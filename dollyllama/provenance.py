"""Where a result comes from: code, packages, machine, seed, weights. No host, user or secret."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from dollyllama import distributed
from dollyllama.device import usable_cores
from dollyllama.files import digest
from dollyllama.redact import redact

#: The distributions that can change a result.
PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "hydra-core",
    "numpy",
    "omegaconf",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "wandb",
)
#: Weight files beyond this are not read for their digest: it would cost more than it tells.
MAX_DIGESTED_BYTES = 2**31

_PACKAGE = Path(__file__).parent


def collect(
    *, device: str, seed: int, base_model: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """Describe this process: what ``provenance.json`` holds. Never fails for want of git.

    device: torch's name of it ("cpu", "cuda:0"). base_model: a local folder, whose files get a
    digest each, or a Hub id, for which the commit in the local cache is looked up (no network).
    """
    return {
        "started": utc_now(),
        "argv": [shorten_home(argument) for argument in redact(sys.argv)],
        "seed": seed,
        "processes": distributed.processes(),
        "code": describe_code(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "machine": describe_machine(),
        "device": describe_device(device),
        "base_model": None if base_model is None else describe_weights(base_model, revision),
    }


def utc_now() -> str:
    """Now, as ISO 8601 in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def shorten_home(text: str) -> str:
    """Put ``~`` for the home folder, whose name is often that of a person."""
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")


def describe_code() -> dict[str, Any]:
    """Commit and dirty flag of the checkout (null outside of one) and the source's SHA-256."""
    total = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(_PACKAGE).as_posix()}\n".encode())
        total.update(path.read_bytes())
    status = _git("status", "--porcelain")
    return {
        "version": _version("dollyllama"),
        "commit": _git("rev-parse", "--verify", "HEAD"),
        "dirty": None if status is None else bool(status),
        "digest": total.hexdigest(),
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the project's own checkout; None where it has none or git has no answer."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():  # Installed below somebody else's repository, say.
        return None
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", root, *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in MiB."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_device(device: str) -> dict[str, Any]:
    """Name and memory of a CUDA device, or the number of threads on a CPU."""
    import torch

    if not device.startswith("cuda"):
        return {"type": "cpu", "name": _processor(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_mib": properties.total_memory // 2**20,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def describe_weights(base_model: str, revision: str | None) -> dict[str, Any]:
    """What identifies a base model: a SHA-256 a file of a local folder, or the Hub's commit."""
    folder = Path(base_model)
    if not folder.is_dir():
        return {
            "path": base_model,
            "revision": revision,
            "commit": _cached_commit(base_model, revision),
        }
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in {".bin", ".json", ".model", ".safetensors"}
    )
    return {
        "path": shorten_home(base_model),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _weights_digest(path)}
            for path in files
        },
    }


def describe_adapter(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of an adapter and its tokenizer: all but the model card."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: digest(path) for path in files if path.is_file() and path.name != "README.md"
    }


def digest_in_name(path: Path) -> str | None:
    """SHA-256 of a large file in a Hub cache, where it is the name; None for any other file."""
    blob = path.resolve()
    named = path.is_symlink() and blob.parent.name == "blobs" and len(blob.name) == 64
    return blob.name if named else None


def _weights_digest(path: Path) -> str | None:
    """SHA-256 of a file; read off the name in a Hub cache, None when it is too large to read."""
    if (found := digest_in_name(path)) is not None:
        return found
    return digest(path) if path.stat().st_size <= MAX_DIGESTED_BYTES else None


def _cached_commit(base_model: str, revision: str | None) -> str | None:
    """The commit of the snapshot in the local Hub cache that ``revision`` names, if any."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base_model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None
