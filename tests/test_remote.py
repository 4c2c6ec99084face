"""Data, models, runs and studies at URLs, against a server of S3's protocol on this machine.

Faults that moto does not have come from servers of a few lines: their answers are real, and cut
short, changed or refused where a test says so.
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dollyllama import __main__ as verbs
from dollyllama import config, embedded, launch, remote
from dollyllama.data.sources import digest_place, locate
from dollyllama.files import read_json_lines
from dollyllama.run import Status, run
from tests.test_run import UNMEASURED

ROOT = Path(__file__).parents[1]

SQL = "data.sources.sql"
FROM_BUCKET = (*UNMEASURED, "data.root=s3://bucket/data", "trainer.max_steps=6")
CHECKPOINTS = ("trainer.checkpoint_steps=1", "trainer.keep_checkpoints=2")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of S3, with the sample and the embedded model in it."""
    pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install -e '.[s3]'")
    moto = pytest.importorskip("moto.server", reason="the tests of s3:// need moto")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system, with an empty cache and a working folder of its own."""
    with reached(server, monkeypatch) as files:
        monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        if not files.exists("bucket"):
            files.mkdir("bucket")
            for path in embedded.DATA.iterdir():
                files.put_file(str(path), f"bucket/data/{path.name}")
            for path in embedded.MODEL.iterdir():
                files.put_file(str(path), f"bucket/models/tiny/{path.name}")
        yield files


@contextmanager
def reached(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of ``s3://`` at an address, by what a user would set."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-one")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()


# --- copies -------------------------------------------------------------------------------------


def test_an_unchanged_file_is_fetched_once_and_a_changed_one_again(
    bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.pipe("bucket/some/rows.jsonl", b'{"a": 1}\n')
    first = remote.local("s3://bucket/some/rows.jsonl")
    assert first.name == "rows.jsonl"
    assert first.read_bytes() == b'{"a": 1}\n'
    assert remote.local("s3://bucket/some/rows.jsonl") == first
    assert capsys.readouterr().err.count("fetching") == 1

    bucket.pipe("bucket/some/rows.jsonl", b'{"a": 2}\n')
    second = remote.local("s3://bucket/some/rows.jsonl")
    assert second.read_bytes() == b'{"a": 2}\n'
    assert first.read_bytes() == b'{"a": 1}\n', "who reads the old version goes on with it"


def test_a_folder_is_copied_without_what_is_left_out_or_only_keeps_a_folder(bucket: Any) -> None:
    bucket.pipe("bucket/run/config.yaml", b"seed: 0")
    bucket.pipe("bucket/run/checkpoints/checkpoint-1/state.pt", b"state")
    bucket.pipe("bucket/running/config.yaml", b"another")
    bucket.touch("bucket/run/")
    copy = remote.local("s3://bucket/run/", without=("checkpoints",))
    assert [path.relative_to(copy) for path in copy.rglob("*")] == [Path("config.yaml")]
    assert {path.name for path in remote.local("s3://bucket/run").rglob("*") if path.is_file()} == {
        "config.yaml",
        "state.pt",
    }


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/../../evil", "a//evil", "./evil"])
def test_no_name_leads_out_of_the_copy(bucket: Any, tmp_path: Path, key: str) -> None:
    bucket.pipe(f"bucket/stranger/{key}", b"evil")
    try:
        with pytest.raises(ValueError, match=r"has a file bucket/stranger/.*evil, which no copy"):
            remote.local("s3://bucket/stranger")
        assert not list(tmp_path.rglob("*evil*"))
    finally:
        bucket.rm_file(f"bucket/stranger/{key}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", r"there is no protocol ftp:// here: there are s3://, gs://, hf://$"),
        ("s3://", r"names no place: write s3://BUCKET/PATH$"),
        ("s3:///x", r"names no place"),
        ("s3://me:hunter2@bucket/x", r"^s3://\[secret\]@bucket/x holds a password, key or token"),
        ("https://me:hunter2@host/x", r"^https://\[secret\]@host/x holds a password"),
        ("s3://bucket/x?token=abcdefgh", r"^s3://bucket/x\?token=\[secret\] holds a password"),
        ("s3://bucket/nothing", r"^s3://bucket/nothing is not there"),
        ("s3://nobucket/x", r"^s3://nobucket/x cannot be read: .*bucket does not exist$"),
        ("s3://bucket/data/..", r"has \. or \.\. in it"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_line(bucket: Any, url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        remote.local(url)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "gcsfs", raising=False)
    with pytest.raises(ValueError, match=r"^gs://b/x needs gcsfs: pip install -e '\.\[gcs\]'$"):
        remote.local("gs://b/x")


def test_without_credentials_it_is_one_line(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(bucket).clear_instance_cache()
    with pytest.raises(ValueError, match=r"cannot be read: Unable to locate credentials$"):
        remote.local("s3://bucket/data")


# --- servers with a fault -----------------------------------------------------------------------


class Faulty(http.server.BaseHTTPRequestHandler):
    """One object of 1,000 bytes, ``bucket/rows.jsonl``, of which ``sent`` bytes are sent."""

    sent = 1000
    told = 1000
    tags: Iterator[str]

    def do_GET(self) -> None:
        if "list-type=2" in self.path and "prefix=rows.jsonl%2F" not in self.path:
            key = (
                f'<Contents><Key>rows.jsonl</Key><Size>1000</Size><ETag>"{next(self.tags)}"</ETag>'
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
            self.answer(f"<ListBucketResult>{key}</ListBucketResult>".encode())
        elif "list-type=2" in self.path:
            self.answer(b"<ListBucketResult></ListBucketResult>")
        else:
            self.answer(b"x" * self.sent, length=self.told)

    def do_HEAD(self) -> None:
        self.answer(b"", length=1000, tag=next(self.tags))

    def answer(self, body: bytes, length: int | None = None, tag: str = "a") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("sent", "told", "tags", "said"),
    [
        (1000, 1000, "aaaaaa", None),
        (400, 1000, "aaaaaa", r"cannot be fetched"),
        (400, 400, "aaaaaa", r"came cut short \(rows\.jsonl\): try again$"),
        (1000, 1000, "abbbbb", r"changed while it was fetched: try again$"),
    ],
)
def test_what_is_cut_short_or_changes_leaves_no_copy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: int,
    told: int,
    tags: str,
    said: str | None,
) -> None:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install -e '.[s3]'")
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path))
    handler = type("Handler", (Faulty,), {"sent": sent, "told": told, "tags": iter(tags * 9)})
    with serving(handler) as address, reached(address, monkeypatch):
        if said is None:
            assert remote.local("s3://bucket/rows.jsonl").read_bytes() == b"x" * 1000
            return
        with pytest.raises(ValueError, match=said) as refused:
            remote.local("s3://bucket/rows.jsonl")
    assert "\n" not in str(refused.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs: pip install -e '.[s3]'")
    with (
        reached("http://127.0.0.1:1", monkeypatch),
        pytest.raises(ValueError, match=r"^s3://bucket/x cannot be read: Could not connect"),
    ):
        remote.local("s3://bucket/x")
