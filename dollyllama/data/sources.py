"""Where rows come from, a Hub id, a file, a folder, a URL, and all its rows in upstream's order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dollyllama import embedded, remote
from dollyllama.config import Source
from dollyllama.data.formats import Row
from dollyllama.data.readers import (
    SUFFIXES,
    Chunk,
    Damaged,
    in_chunks,
    read_file,
    read_folder,
    read_hub,
)
from dollyllama.embedded import EMBEDDED
from dollyllama.files import digest

# --- places: a Hub id, a file, a folder or a URL ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source's rows are: a Hub id and its revision, or a local file or folder.

    url: what that is a copy of, if anything.
    """

    hub: str | None
    revision: str | None
    local: Path | None
    url: str | None = None

    @property
    def name(self) -> str:
        """The place in words, for messages and the manifest."""
        if self.local is not None:
            return self.url or str(self.local)
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)


def locate(name: str, source: Source, *, root: str | None) -> Place:
    """Find a source: at its path when that is a URL or exists here, else under ``root``, else on
    the Hub.

    Under ``root`` it is ``file_split`` or ``file`` with one of SUFFIXES, or a folder ``file``.
    ValueError when a local place was named and holds nothing, or cannot honour revision or split.
    """
    path, file, revision, split = source.path, source.file, source.revision, source.split
    here = remote.is_remote(path) or Path(path).expanduser().exists()
    if not here:
        is_file = path.startswith((".", "/", "~")) or path.endswith(SUFFIXES)
        # Under a root there may be a file of that name; any other is not the one that was named.
        if is_file and (root is None or _stem(Path(path)) != file or Path(path).name != path):
            raise ValueError(f"data.sources.{name}.path={path}: there is no such file or folder")
        if root is None:
            return Place(path, revision, None)
    if revision is not None:
        raise ValueError(
            f"data.sources.{name}.revision={revision} has no effect on local files: "
            f"set data.sources.{name}.revision=null"
        )
    if not here:
        assert root is not None
        path = _find_under(root, name=name, path=path, file=file, split=split)
    url = path if remote.is_remote(path) else None
    try:
        local = remote.local(path)
    except ValueError as error:
        raise ValueError(f"data.sources.{name}: {error}") from error
    if local.is_file() and split != "train" and not _stem(local).endswith(f"_{split}"):
        raise ValueError(
            f"data.sources.{name}.split={split}, but {path} is one file without splits: call it "
            f"{_stem(local)}_{split}{local.name[len(_stem(local)) :]}, or set "
            f"data.sources.{name}.split=train"
        )
    return Place(None, None, local, url)


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def _find_under(root: str, *, name: str, path: str, file: str, split: str) -> str:
    where, there = _look_into(root)
    names = [f"{stem}{suffix}" for stem in (f"{file}_{split}", file) for suffix in SUFFIXES]
    inner = sorted({f"{each.partition('/')[0]}/" for each in there if "/" in each})
    for place in ("", *inner):
        for candidate in (*names, file):
            if f"{place}{candidate}" in there:
                return f"{where}/{place}{candidate}"
    found = ", ".join(sorted({each.partition("/")[0] for each in there})[:20]) or "nothing"
    raise ValueError(
        f"data.sources.{name}: there is no {path} here, and data.root={root} has neither a folder "
        f"{file} nor a file {file} or {file}_{split} with one of {' '.join(SUFFIXES)}; it has "
        f"{found} (data.sources.{name}.file=NAME asks for another one)"
    )


def _look_into(root: str) -> tuple[str, set[str]]:
    """Where a root is, and the names of what it and the folders in it have.

    ValueError when there is none.
    """
    if remote.is_remote(root):
        parts = [name.split("/") for name in remote.names(root)]
        if not parts:
            raise ValueError(f"data.root={root}: there is nothing of that name")
        return root.rstrip("/"), {"/".join(each[:depth]) for each in parts for depth in (1, 2)}
    folder = embedded.DATA if root == EMBEDDED else Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.root={root}: there is no such folder")
    found = (each for pattern in ("*", "*/*") for each in folder.glob(pattern))
    return str(folder), {str(each.relative_to(folder)) for each in found}


def digest_place(place: Place) -> dict[str, str]:
    """SHA-256 of each file of a local place, by name; empty for the Hub (rows are digested)."""
    if place.local is None:
        return {}
    if place.local.is_file():
        return {place.local.name: digest(place.local)}
    return {
        str(path.relative_to(place.local)): digest(path)
        for path in sorted(place.local.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "cache-"))
    }


def digest_rows(rows: Iterable[Row | Damaged]) -> dict[str, str]:
    """SHA-256 of the rows themselves, for places without files of their own."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return {"rows": total.hexdigest()}


# --- reading ------------------------------------------------------------------------------------


def iter_rows(
    place: Place,
    *,
    name: str,
    split: str,
    chunk_rows: int = 2048,
    digests: Mapping[str, str] | None = None,
) -> Iterator[Chunk]:
    """Read a place in upstream's order, holding about one chunk of at least one row at a time.

    digests: what ``digest_place`` gave before. ValueError in one line when the place cannot be
    read, has no rows, or holds something else by the end.
    """
    where = f"data.sources.{name}: {place.name}"
    empty = True
    for chunk in _chunks(place, where=where, split=split, chunk_rows=chunk_rows):
        empty = False
        yield chunk
    if empty:
        raise ValueError(f"{where} has no rows: check that the file is complete")
    if digests is not None and not _is_unchanged(place, digests):
        raise ValueError(f"{where} changed while it was read: run again when it is complete")


def _is_unchanged(place: Place, digests: Mapping[str, str]) -> bool:
    try:
        return digest_place(place) == digests
    except FileNotFoundError:
        return False


def read_rows(
    place: Place, *, name: str, split: str, damaged: list[Damaged] | None = None
) -> list[Row]:
    """Read all rows of a place, in upstream's order. ValueError in one line when it cannot be.

    damaged: takes the lines that hold no row; without it the first is an error.
    """
    where = f"data.sources.{name}: {place.name}"
    rows: list[Row] = []
    for chunk in iter_rows(place, name=name, split=split):
        for row in chunk.parse(where):
            if not isinstance(row, Damaged):
                rows.append(row)
            elif damaged is None:
                raise ValueError(f"{where} line {row.number} {row.problem}")
            else:
                damaged.append(row)
    return rows


def _chunks(place: Place, *, where: str, split: str, chunk_rows: int) -> Iterator[Chunk]:
    path = place.local
    if path is None:
        assert place.hub is not None
        rows = read_hub(place.hub, place.revision, where, split=split, batch_rows=chunk_rows)
        return in_chunks(rows, chunk_rows)
    if path.is_dir():
        return read_folder(path, where, split=split, chunk_rows=chunk_rows)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{where} is none of {', '.join(SUFFIXES)} and no folder: convert it")
    return read_file(path, where, chunk_rows=chunk_rows)
