"""Files that appear whole or not at all, what they hold, and places that one process has."""

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


#: The key under which a file of JSON keeps the digest of its other keys.
_SIGNATURE = "sha256"


def write_signed_json(path: Path, values: Mapping[str, Any]) -> None:
    """``write_json`` with a digest of the values among them, by which a damage is noticed."""
    write_json(path, {**values, _SIGNATURE: _sign(values)})


def parse_json(text: str | bytes) -> Any:
    """What JSON holds. ValueError when it is damaged, or nested too deeply to be followed."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_signed_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. OSError without one, ValueError when it is damaged.

    What an earlier version or a person wrote without a digest passes.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        check_signature(values)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return values


def check_signature(values: dict[str, Any]) -> None:
    """Take the digest out of ``values``. ValueError when there is one, and it is not theirs."""
    signature = values.pop(_SIGNATURE, None)
    if signature is not None and signature != _sign(values):
        raise ValueError(
            f"it is not what was written; if it was changed on purpose, take out its {_SIGNATURE}"
        )


def _sign(values: Mapping[str, Any]) -> str:
    others = {key: value for key, value in values.items() if key != _SIGNATURE}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_json_lines(path: Path) -> list[Any]:
    """Read JSON Lines. Splits on line feeds alone: U+2028 inside a string is no line break.

    ValueError that names the file when a line is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line]


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"{path} is damaged in line {number}: {error}") from None


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
def locked(place: Path, busy: str | None) -> Iterator[None]:
    """Keep other processes out of ``place``; the lock goes with this one, killed or not.

    place: a folder, or a file, which is made where there is none. Over NFS other machines are kept
    out of files alone: they can be opened for writing, which a lock asks for there. ValueError that
    says ``busy`` when a process is at it; None waits for its turn.
    """
    flags = os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(place, flags, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy is not None else 0))
        except BlockingIOError:
            raise ValueError(busy) from None
        yield
    finally:
        os.close(handle)


def check_inner(name: str) -> None:
    """ValueError unless ``name`` is that of something in a folder, without a way out of it."""
    if name in {"", ".", ".."} or Path(name).name != name:
        raise ValueError(f"{name!r} is no name of something in its folder")


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
