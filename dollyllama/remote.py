"""Paths on other machines: ``s3://``, ``gs://`` and ``hf://``, through fsspec.

What is read is copied into the cache once for each version of it, told by names, sizes and the
tags that the server gives; a copy appears under its name when it is whole. A folder that is written
is kept here, and a ``Mirror`` copies it to its URL. Credentials are those that the protocol's own
library finds; none is taken from a URL.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dollyllama.explain import first_line
from dollyllama.files import cache_folder, locked
from dollyllama.redact import redact

#: The package behind each protocol, and the command that installs it.
_PROTOCOLS = {
    "s3": ("s3fs", "pip install -e '.[s3]'"),
    "gs": ("gcsfs", "pip install -e '.[gcs]'"),
    "hf": ("huggingface_hub", "pip install -e ."),
}

#: What servers tell a version of a file by: S3, Google Cloud Storage, the Hub.
_TAGS = ("ETag", "etag", "md5Hash", "blob_id")

#: Folders of a run that are not mirrored: W&B has its own ways.
_NOT_MIRRORED = frozenset({"wandb"})

#: The copies that this process reads, and what they are copies of.
_COPIES: dict[Path, str] = {}


def is_remote(path: str) -> bool:
    return "://" in path


def check_url(url: str) -> None:
    """ValueError for a URL that holds a secret, of an unknown protocol, or without a bucket."""
    if redact(url) != url:
        raise ValueError(
            f"{redact(url)} holds a password, key or token: take it out, and give it as "
            f"docs/remote.md says"
        )
    protocol, _, rest = url.partition("://")
    if protocol not in _PROTOCOLS:
        known = ", ".join(f"{name}://" for name in _PROTOCOLS)
        raise ValueError(f"{url}: there is no protocol {protocol}:// here: there are {known}")
    if not rest.strip("/") or rest.startswith("/"):
        raise ValueError(f"{url} names no place: write {protocol}://BUCKET/PATH")


def local(path: str, *, without: Sequence[str] = ()) -> Path:
    """A copy of what a URL names, file or folder, in the cache; another path as it is.

    without: names of folders that are not copied, at any depth. ValueError when it is not there,
    cannot be had whole, or changes meanwhile.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    place = _Place.at(path)
    listing = place.listing(without)
    version = json.dumps([path, sorted(without), sorted(listing.items())])
    shelf = cache_folder() / "remote" / hashlib.sha256(version.encode()).hexdigest()[:16]
    copy = shelf / place.name
    shelf.mkdir(parents=True, exist_ok=True)
    with locked(shelf, None):
        if not copy.exists():
            place.fetch(listing, copy, without)
    _COPIES[copy] = path
    return copy


def fetch(url: str, folder: Path) -> None:
    """Copy a remote folder to ``folder``, which has to be empty or absent and appears whole.

    ValueError as of ``local``, or when another process is at it.
    """
    place = _Place.at(url)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"{folder} is being fetched by another process: wait for it"):
        place.fetch(place.listing(), folder)


def names(url: str) -> list[str]:
    """The files at a URL, by their names below it; none when nothing is there.

    ValueError when the server cannot be asked.
    """
    return sorted(_Place.at(url).listing(missing_ok=True))


def home(folder: Path) -> Path:
    """Where to put what is made of a run: its folder, or the working folder for a copy."""
    return Path() if folder in _COPIES else folder


def by_url(text: str) -> str:
    """``text`` with the URLs in place of the paths of their copies."""
    for copy, url in _COPIES.items():
        text = text.replace(str(copy), url)
    return text


@dataclass(frozen=True, slots=True)
class _Place:
    """A URL on its file system, where it is called ``root``."""

    url: str
    files: Any
    root: str

    @classmethod
    def at(cls, url: str) -> _Place:
        """ValueError for a URL that ``check_url`` refuses, or whose package is not installed."""
        check_url(url)
        protocol = url.partition("://")[0]
        package, install = _PROTOCOLS[protocol]
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{url} needs {package}: {install}")
        import fsspec

        with _told(f"{url} cannot be opened"):
            files = fsspec.filesystem(protocol)
            files.invalidate_cache()  # listings may be of long ago
            return cls(url, files, str(files._strip_protocol(url)).rstrip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.root).name

    def listing(
        self, without: Sequence[str] = (), *, missing_ok: bool = False
    ) -> dict[str, tuple[int, str]]:
        """Size and version of each file below this place by its name; "" is a file's own name.

        ValueError when there is none, or for one that would be written outside of a copy.
        """
        with _told(f"{self.url} cannot be read"):
            self.files.invalidate_cache()
            found = self.files.find(self.root, detail=True)
        listing = {}
        for path, about in found.items():
            inner = path.removeprefix(self.root)
            # Consoles keep a folder by an empty file whose name ends in a slash.
            if about["type"] != "file" or (inner.endswith("/") and not about["size"]):
                continue
            if inner and (inner[0] != "/" or {"", ".", ".."} & set(inner[1:].split("/"))):
                raise ValueError(f"{self.url} has a file {path}, which no copy can: rename it")
            if not set(without) & set(inner[1:].split("/")[:-1]):
                tag = next((str(about[tag]) for tag in _TAGS if about.get(tag)), "")
                listing[inner[1:]] = about["size"], tag
        if {".", ".."} & set(self.root.split("/")):
            raise ValueError(f"{self.url} has . or .. in it: write the path without")
        if not listing and not missing_ok:
            raise ValueError(f"{self.url} is not there: nothing has that name")
        return listing

    def fetch(
        self, listing: dict[str, tuple[int, str]], target: Path, without: Sequence[str] = ()
    ) -> None:
        """Copy the files of ``listing`` to ``target``, which appears when all are whole."""
        size = sum(size for size, _ in listing.values())
        print(f"fetching {self.url}: {size / 2**20:,.1f} MiB", file=sys.stderr)
        hidden = target.with_name(f".{target.name}.tmp")
        _remove(hidden)  # a killed process may have left it
        try:
            sources = [f"{self.root}/{name}".rstrip("/") for name in listing]
            copies = [hidden / name for name in listing]
            with _told(f"{self.url} cannot be fetched"):
                self.files.get(sources, [str(copy) for copy in copies])
            for name, copy in zip(listing, copies, strict=True):
                if not copy.is_file() or copy.stat().st_size != listing[name][0]:
                    raise ValueError(f"{self.url} came cut short ({name or self.name}): try again")
            if self.listing(without) != listing:
                raise ValueError(f"{self.url} changed while it was fetched: try again")
            hidden.rename(target)
        finally:
            _remove(hidden)


@dataclass(slots=True)
class Mirror:
    """A folder that is kept at ``url`` as well.

    pattern: which of its files; hidden ones and those of W&B are not.
    """

    folder: Path
    url: str
    pattern: str = "**/*"
    sent: dict[str, tuple[int, int]] = field(default_factory=dict)

    def update(self) -> None:
        """Copy what changed since the last time; then remove checkpoints that are gone here.

        Whatever cuts it short, what is there can be gone on from: ``result.json``, which says that
        a run is finished, comes last, and a new checkpoint is there before an old one goes.
        ValueError when the server cannot be reached or refuses.
        """
        place = _Place.at(self.url)
        files = {}
        for path in self.folder.glob(self.pattern):
            parts = path.relative_to(self.folder).parts
            hidden = any(part.startswith(".") for part in parts)
            if path.is_file() and not hidden and parts[0] not in _NOT_MIRRORED:
                files["/".join(parts)] = path
        for name in sorted(files, key=_upload_order):
            status = files[name].stat()
            stamp = status.st_size, status.st_mtime_ns
            if self.sent.get(name) != stamp:
                with _told(f"{self.url}/{name} cannot be written"):
                    place.files.put_file(str(files[name]), f"{place.root}/{name}")
                self.sent[name] = stamp
        checkpoints = _Place(f"{self.url}/checkpoints", place.files, f"{place.root}/checkpoints")
        for name in checkpoints.listing(missing_ok=True):
            if f"checkpoints/{name}" not in files:
                with _told(f"{checkpoints.url}/{name} cannot be removed"):
                    place.files.rm_file(f"{checkpoints.root}/{name}")

    def try_update(self) -> None:
        """``update``, or a line on stderr that says why not."""
        try:
            self.update()
        except ValueError as error:
            print(f"not mirrored: {error}", file=sys.stderr)


def mirror_of(folder: Path, mirror: str | None, pattern: str = "**/*") -> Mirror | None:
    """What keeps ``folder`` below the URL ``mirror`` too, by its own name; None without a URL."""
    if mirror is None:
        return None
    return Mirror(folder, f"{mirror.rstrip('/')}/{folder.resolve().name}", pattern)


def _upload_order(name: str) -> tuple[int, bool, str]:
    """Records, checkpoints, ``result.json``; a checkpoint's digests first, as without them it could
    not be told from one of an earlier version, and without its state it is seen to be damaged."""
    top = name.partition("/")[0]
    rank = {"checkpoints": 1, "result.json": 2}.get(top, 0)
    return rank, not name.endswith("/digests.json"), name


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever a protocol's library raises into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # botocore, aiohttp, google.auth, httpx: each has its own family
        why = first_line(error) or type(error).__name__
        raise ValueError(str(redact(f"{what}: {why.rstrip('.')}"))) from error
