"""A base in 4 bits kept on disk: quantised once, then mapped by every process that wants it.

A kept base is a folder in Hugging Face format, named by the digest of all that decides its bits.
Its files are mapped, so that processes share their pages. They are never written in place, which
would change the weights of those that have mapped them: what is made again are new files.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dollyllama.config import fingerprint
from dollyllama.files import cache_folder, digest, locked, parse_json, write_json, write_text
from dollyllama.provenance import digest_in_name, package_versions
from dollyllama.weights import weight_files

#: Smaller checkpoints are quantised each time, in about two seconds on two cores.
MIN_BYTES = 2**26

#: What keeps a base from being written: no room or right, or a kind that transformers cannot save.
_NOT_SAVED = (OSError, ValueError, NotImplementedError, SafetensorError)
#: More would be copied to the host at once where a model on a GPU is written.
_SHARD_BYTES = 2**30
#: The libraries whose arithmetic or file format a kept base is made of.
_PACKAGES = ("bitsandbytes", "safetensors", "torch", "transformers")
_DIGESTS = "digests.json"


def load_or_quantise(
    base: Path | None,
    settings: Mapping[str, Any],
    *,
    load: Callable[[Path], Any],
    quantise: Callable[[], Any],
) -> Any:
    """Load a quantised base as it is kept, or quantise and keep it; both give the same bits.

    base: the folder of its checkpoint, None where it has to be fetched first: then it is not kept
    this time. settings: what decides the bits beside checkpoint and packages. load: a model from a
    folder, ValueError when that holds none. quantise: the model from the checkpoint; what it raises
    comes through. Kept in ``$DOLLYLLAMA_CACHE/bases``, or ``.cache/dollyllama/bases`` below the
    working folder. One process quantises while others wait; its lock goes with it. A place that
    cannot be written costs a line on stderr and the time.
    """
    if base is None or sum(path.stat().st_size for path in _weights_of(base)) < MIN_BYTES:
        return quantise()
    with ExitStack() as turn:
        try:
            _notes().mkdir(parents=True, exist_ok=True)  # before gigabytes are read in vain
            folder = _place_of(base, settings)
            if (kept := _load(folder, load)) is not None:
                return kept
            folder.mkdir(parents=True, exist_ok=True)
            turn.enter_context(locked(folder, None))
        except OSError as error:
            _say_not_kept(error)
            return quantise()
        if (kept := _load(folder, load)) is not None:
            return kept
        model = quantise()
        try:
            if _place_of(base, settings) != folder:
                return model  # the checkpoint was changed meanwhile
            _save(model, folder)
        except _NOT_SAVED as error:
            _discard(folder)
            _say_not_kept(error)
            return model
        kept = _load(folder, load)
        if kept is None or not _equal(model, kept):
            _discard(folder)
            _say_not_kept("it does not load as it was written")
            return model
        del model
        gc.collect()  # 4-bit weights and their layers refer to each other
        return kept


def find_kept(base: Path, settings: Mapping[str, Any]) -> Path | None:
    """The folder of a base as ``load_or_quantise`` keeps it; None where it is not, or damaged."""
    with suppress(OSError):
        if not all(_noted(path) for path in _weights_of(base)):
            return None  # whoever kept it took their digests: gigabytes need not be read
        folder = _place_of(base, settings)
        return folder if _is_whole(folder) else None
    return None


def _notes() -> Path:
    """Where digests are noted, a file each, named by the stamp of what was read."""
    return cache_folder() / "digests"


def _weights_of(base: Path) -> list[Path]:
    """The files with the weights of a checkpoint; loading names one that is missing."""
    return [path for path in weight_files(base) if path.is_file()]


def _place_of(base: Path, settings: Mapping[str, Any]) -> Path:
    """Where the base is kept, named by what decides its bits."""
    about = [base / "config.json", base / "generation_config.json", *base.glob("*.index.json")]
    files = [*_weights_of(base), *(path for path in about if path.is_file())]
    digests = {path.name: _digest_of(path) for path in files}
    versions = package_versions()
    packages = {name: versions[name] for name in _PACKAGES}
    return cache_folder() / "bases" / fingerprint([digests, dict(settings), packages])


def _digest_of(path: Path) -> str:
    """SHA-256 of a file, which is read again only when its stamp says that it was touched.

    The time of the inode's last change cannot be set back, unlike that of the file. In the Hub's
    cache the digest of large files is their name.
    """
    if (noted := _noted(path)) is not None:
        return noted
    file = path.resolve()
    stamp = _stamp(file)
    found = digest(file)
    if _stamp(file) == stamp:
        with suppress(OSError):
            write_text(_notes() / fingerprint(stamp), found)
    return found


def _noted(path: Path) -> str | None:
    """The digest of a file as it is now, where it has been taken."""
    if (named := digest_in_name(path)) is not None:
        return named
    with suppress(OSError, UnicodeDecodeError):
        noted = (_notes() / fingerprint(_stamp(path.resolve()))).read_text(encoding="utf-8")
        if len(noted) == 64:
            return noted
    return None


def _stamp(file: Path) -> list[str | int]:
    status = file.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return [str(file), status.st_ino, status.st_size, *times]


def _load(folder: Path, load: Callable[[Path], Any]) -> Any | None:
    """The kept base; None when it is not there, or any of it is damaged."""
    with suppress(OSError, ValueError, AttributeError):
        return load(folder) if _is_whole(folder) else None
    return None


def _is_whole(folder: Path) -> bool:
    """Whether a base is kept there, as it was written."""
    try:
        digests = parse_json((folder / _DIGESTS).read_text(encoding="utf-8"))
        return all(_digest_of(folder / name) == found for name, found in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _save(model: Any, folder: Path) -> None:
    """Write the model to ``folder``, the file that says that it is whole last."""
    _discard(folder)
    model.save_pretrained(folder, max_shard_size=_SHARD_BYTES)
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a digest is not taken again, after a crash of the machine too
        digests[path.name] = _digest_of(path)
    write_json(folder / _DIGESTS, digests)


def _discard(folder: Path) -> None:
    """Remove what there is of a kept base, first what says that it is whole."""
    with suppress(OSError):
        (folder / _DIGESTS).unlink(missing_ok=True)
        for path in folder.iterdir():
            path.unlink()


def _equal(one: Any, other: Any) -> bool:
    """Whether two models have the same weights and states of quantisation, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
        for name, tensor in ours.items()
    )


def _say_not_kept(why: object) -> None:
    folder = cache_folder() / "bases"
    print(
        f"the quantised base is not kept in {folder} ({why}): make room there, or name another "
        f"folder by DOLLYLLAMA_CACHE=FOLDER",
        file=sys.stderr,
    )
