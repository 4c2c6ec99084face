"""Files that appear whole or not at all, what they hold, and folders that one process has."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$DOLLYLLAMA_CACHE``, or a folder below this one."""
    return Path(os.environ.get("DOLLYLLAMA_CACHE", ".cache/dollyllama"))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: a reader sees the old file or the whole new one.

    What could not be written whole takes no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the text
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically. NaN is a ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON Lines. Splits on line feeds alone: U+2028 inside a string is no line break."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def read_unpacked(path: Path, named: str) -> bytes:
    """A file's bytes, unpacked when its name ends in .gz.

    named: what an error calls it. ValueError when it is no whole gzip file.
    """
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{named} is not a whole gzip file ({error}): copy it again") from error


@contextmanager
def locked(folder: Path, busy: str | None) -> Iterator[None]:
    """Keep other processes out of ``folder``; the lock goes with this one, killed or not.

    ValueError that says ``busy`` when one is at it; None waits for its turn.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy is not None else 0))
        except BlockingIOError:
            raise ValueError(busy) from None
        yield
    finally:
        os.close(handle)


def damaged(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of the files of ``folder`` that are not there or whose bytes are others.

    digests: by name, as of ``digest``.
    """
    return [
        name
        for name, found in digests.items()
        if not (folder / name).is_file() or digest(folder / name) != found
    ]


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
