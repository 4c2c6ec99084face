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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dollyllama import __main__ as verbs
from dollyllama import config, embedded, launch, remote
from dollyllama.data.sources import digest_place, locate
from dollyllama.files import read_json_lines
from dollyllama.record import Status
from dollyllama.run import run
from tests.test_run import UNMEASURED

ROOT = Path(__file__).parents[1]

SQL = "data.sources.sql"
FROM_BUCKET = (*UNMEASURED, "data.root=s3://bucket/data")
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
    above = remote.local("s3://bucket", without=("checkpoints",)) / "run"
    assert [path.name for path in above.rglob("*")] == ["config.yaml"]
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


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as reads ``datasets/me/rows``, which has one file."""

    def do_GET(self) -> None:
        api = "/api/datasets/me/rows"
        answers = {
            api: {"id": "me/rows", "sha": "a" * 40},
            f"{api}/tree/main": [{"type": "file", "oid": "b", "size": 9, "path": "train.jsonl"}],
            "/datasets/me/rows/resolve/main/train.jsonl": {"a": 12},
        }
        found = answers.get(self.path.partition("?")[0])
        self.send_response(404 if found is None else 200)
        if found is None:
            known = self.path.startswith(api)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        body = json.dumps(found or {}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("hf://datasets/me/rows/train.jsonl", "train.jsonl"),
        ("hf://datasets/me/rows", "rows/train.jsonl"),
        ("hf://datasets/me/none", "ValueError: hf://datasets/me/none cannot be read: "),
    ],
)
def test_the_hubs_files_are_read(tmp_path: Path, url: str, found: str) -> None:
    code = f"from dollyllama import remote; print(remote.local({url!r}))"
    with serving(Hub) as address:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_ENDPOINT": address,  # read on import
                "HF_HOME": str(tmp_path / "home"),
                "DOLLYLLAMA_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        assert done.stderr.splitlines()[-1].startswith(found)
        return
    (copy,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert str(copy).endswith(found)
    assert copy.read_bytes() == b'{"a": 12}'


# --- data and models ----------------------------------------------------------------------------


def test_remote_rows_have_the_digests_of_local_ones_and_are_called_by_their_url(
    bucket: Any,
) -> None:
    composed = launch.compose_run(["data.root=s3://bucket/data"]).data
    place = locate("sql", composed.sources["sql"], root=composed.root)
    assert place.name == "s3://bucket/data/sql_create_context.jsonl.gz"
    here = launch.compose_run([]).data
    there = locate("sql", here.sources["sql"], root=here.root)
    assert digest_place(place) == digest_place(there)


def test_a_remote_root_without_the_file_says_what_it_has(bucket: Any) -> None:
    composed = launch.compose_run(["data.root=s3://bucket/data", f"{SQL}.file=other"]).data
    with pytest.raises(ValueError, match=r"data\.root=s3://bucket/data has .*it has code_alpaca"):
        locate("sql", composed.sources["sql"], root=composed.root)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


# --- a mirrored run -----------------------------------------------------------------------------


def train(*overrides: str) -> Any:
    """``python train.py`` to its end, in the working folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def start(*overrides: str) -> subprocess.Popen[bytes]:
    """``python train.py`` on its way, in the working folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def move(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to another machine: another working folder, with nothing in it and no cache."""
    machine.mkdir()
    monkeypatch.chdir(machine)
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(machine / "cache"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_mirror_to_the_same_adapter(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    composed = launch.compose_run(
        [*FROM_BUCKET, *CHECKPOINTS, "tracking.mirror=s3://bucket/mirrored"]
    )
    upload = remote.Mirror.try_update

    def upload_and_interrupt(mirror: remote.Mirror) -> None:
        upload(mirror)
        if list(folder.glob("checkpoints/*")) == [folder / "checkpoints" / "checkpoint-1"]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as during:
        during.setattr(remote.Mirror, "try_update", upload_and_interrupt)
        assert run(composed, folder, expect_memory=False).status is Status.interrupted
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "cache")
    assert [name for name in remote.names("s3://bucket/mirrored/one") if "state.pt" in name] == [
        f"checkpoints/checkpoint-{step}/state.pt" for step in (1, 2)
    ]
    remote.fetch("s3://bucket/mirrored/one", folder)
    assert run(composed, folder, expect_memory=False).status is Status.finished
    run(launch.compose_run(UNMEASURED), tmp_path / "undisturbed", expect_memory=False)
    assert weights(folder) == weights(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_killed_run_goes_on_on_another_machine_from_its_mirror(
    bucket: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = (*UNMEASURED, "trainer.max_steps=8")
    urls = ("data.root=s3://bucket/data", "model=local", "model.path=s3://bucket/models/tiny")
    mirror = ("tracking.mirror=s3://bucket/runs", *CHECKPOINTS)
    named = "hydra.run.dir=runs/one"
    move(tmp_path / "first", monkeypatch)
    first = start(*steps, *urls, *mirror, named)
    while first.poll() is None and not bucket.exists("bucket/runs/one/checkpoints/checkpoint-3"):
        time.sleep(0.2)
        bucket.invalidate_cache()
    first.kill()
    assert first.wait() == -signal.SIGKILL, "it was to be killed on its way"
    shutil.rmtree(tmp_path / "first")

    move(tmp_path / "second", monkeypatch)
    said = train("resume=s3://bucket/runs/one")
    assert said.returncode == 0, said.stderr
    (folder,) = Path("runs").iterdir()
    assert folder.name == "one"
    losses = [
        (line["step"], line["train/loss"]) for line in read_json_lines(folder / "metrics.jsonl")
    ]
    run(launch.compose_run(steps), tmp_path / "undisturbed")  # from local files, without a mirror
    assert weights(folder) == weights(tmp_path / "undisturbed")
    assert losses == [
        (line["step"], line["train/loss"])
        for line in read_json_lines(tmp_path / "undisturbed" / "metrics.jsonl")
    ]
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == "tiny", "and no path of this machine"
    bucket.invalidate_cache()
    there = {path.removeprefix("bucket/runs/one/") for path in bucket.find("bucket/runs/one")}
    assert there == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    move(tmp_path / "third", monkeypatch)
    capsys.readouterr()
    assert verbs.main(["generate", "s3://bucket/runs/one", "--instruction", "List my dogs."]) == 0
    answer = capsys.readouterr().out
    command = ["generate", str(tmp_path / "second" / folder), "--instruction", "List my dogs."]
    assert verbs.main(command) == 0
    assert capsys.readouterr().out == answer
    assert verbs.main(["show", "s3://bucket/runs/one"]) == 0
    assert capsys.readouterr().out.startswith("s3://bucket/runs/one: finished")
    assert verbs.main(["report", "s3://bucket/runs"]) == 0
    assert Path("report/report.html").is_file()
    assert not list(Path("cache/remote").rglob("checkpoints"))


# --- mirrors ------------------------------------------------------------------------------------


def a_run(folder: Path, status: str, checkpoint: int) -> Path:
    """What a run's folder has while it trains."""
    (folder / "checkpoints" / f"checkpoint-{checkpoint}").mkdir(parents=True)
    (folder / "checkpoints" / f"checkpoint-{checkpoint}" / "state.pt").write_text("state")
    (folder / "checkpoints" / f"checkpoint-{checkpoint}" / "digests.json").write_text("{}")
    (folder / "result.json").write_text(status)
    (folder / "wandb").mkdir()
    (folder / "wandb" / "log").write_text("W&B's own")
    (folder / ".config.yaml.tmp").write_text("half")
    (folder / "config.yaml").write_text("seed: 0")
    return folder


def test_a_mirror_follows_its_folder_and_touches_nothing_beside_it(
    bucket: Any, tmp_path: Path
) -> None:
    folder = a_run(tmp_path / "mine", "running", 2)
    bucket.pipe("bucket/mirrors/mine/notes.txt", b"put here by hand")
    bucket.pipe("bucket/mirrors/mine2/config.yaml", b"another run")
    mirror = remote.mirror_of(folder, "s3://bucket/mirrors/")
    assert mirror is not None
    mirror.update()
    (folder / "checkpoints" / "checkpoint-2").rename(folder / "checkpoints" / "checkpoint-4")
    (folder / "result.json").write_text("finished")
    mirror.update()
    assert remote.names("s3://bucket/mirrors") == [
        "mine/checkpoints/checkpoint-4/digests.json",
        "mine/checkpoints/checkpoint-4/state.pt",
        "mine/config.yaml",
        "mine/notes.txt",
        "mine/result.json",
        "mine2/config.yaml",
    ]
    assert bucket.cat("bucket/mirrors/mine/result.json") == b"finished"


def test_a_mirror_that_is_cut_at_any_moment_never_looks_finished(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is gone after so many files; what it has by then is looked at."""
    sent = []
    for files in range(5):
        folder = a_run(tmp_path / f"cut{files}", "finished", 2)
        put, left = bucket.put_file, iter(range(files))

        def put_or_fail(*given: Any, put: Any = put, left: Any = left) -> None:
            if next(left, None) is None:
                raise ConnectionError("reset by peer")
            put(*given)

        mirror = remote.Mirror(folder, f"s3://bucket/cut/{folder.name}")
        with monkeypatch.context() as during:
            during.setattr(bucket, "put_file", put_or_fail)
            if files < 4:
                with pytest.raises(ValueError, match=r"cannot be written: reset by peer$"):
                    mirror.update()
            else:
                mirror.update()
        sent.append(remote.names(mirror.url))
    assert [names[-1:] for names in sent[:4]] == [
        [],
        ["config.yaml"],
        ["config.yaml"],
        ["config.yaml"],
    ]
    assert ["checkpoints/checkpoint-2/digests.json", "config.yaml"] in sent
    assert "result.json" in sent[4]


def test_a_mirror_that_cannot_be_written_to_ends_the_run_before_its_work(
    bucket: Any, tmp_path: Path
) -> None:
    composed = launch.compose_run([*UNMEASURED, "tracking.mirror=s3://nobucket/runs"])
    with pytest.raises(ValueError, match=r"^s3://nobucket/runs/one/config\.yaml cannot be written"):
        run(composed, tmp_path / "one", expect_memory=False)
    assert not (tmp_path / "one" / "data.json").exists()


def test_a_mirror_that_goes_meanwhile_does_not_end_the_training(
    bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.mkdir("passing")
    composed = launch.compose_run(
        [*UNMEASURED, *CHECKPOINTS, "tracking.mirror=s3://passing/runs", "trainer.max_steps=3"]
    )
    folder = tmp_path / "one"
    gone = threading.Thread(target=remove_when, args=(bucket, "passing", folder / "data.json"))
    gone.start()
    with pytest.raises(ValueError, match=r"one is finished, but s3://passing/.*copies it again$"):
        run(composed, folder, expect_memory=False)
    gone.join()
    assert "not mirrored: s3://passing/runs/one/" in capsys.readouterr().err
    assert json.loads((folder / "result.json").read_text("utf-8"))["status"] == "finished"


def remove_when(files: Any, bucket: str, path: Path) -> None:
    """Remove a bucket once a file is there."""
    while not path.exists():
        time.sleep(0.05)
    files.rm(bucket, recursive=True)


def test_a_mirror_with_a_run_of_another_config_is_refused(bucket: Any, tmp_path: Path) -> None:
    saved = launch.compose_run([*UNMEASURED, "seed=1"])
    config.save(saved, tmp_path / "config.yaml")
    bucket.put_file(str(tmp_path / "config.yaml"), "bucket/runs/taken/config.yaml")
    said = train(*UNMEASURED, "tracking.mirror=s3://bucket/runs", "hydra.run.dir=runs/taken")
    assert said.returncode == launch.MENDABLE
    assert said.stderr.splitlines()[-1].startswith(
        "error: s3://bucket/runs/taken holds a run of another config, which differs in seed (1 "
    )
    assert not Path("runs/taken").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tracking.mirror=hf://me/runs", "commit of every file"),
        ("tracking.mirror=runs", "no URL"),
        ("tracking.mirror=s3://me:hunter2@bucket/runs", r"\[secret\]@bucket"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_with_the_config(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        launch.compose_run([override])


# --- studies ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_goes_on_on_another_machine_from_its_mirror(
    bucket: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = (
        *("--multirun", *FROM_BUCKET, "evaluation=loss_only", "evaluation.loss_examples=6"),
        *("lora.r=4,8", "tracking.mirror=s3://bucket/sweeps", "hydra.sweep.dir=sweeps/x"),
    )
    move(tmp_path / "first", monkeypatch)
    said = train(*command)
    assert said.returncode == 0, said.stderr
    move(tmp_path / "second", monkeypatch)
    again = train(*command)
    assert again.returncode == 0, again.stderr
    assert "sweeps/x, 2 of them done" in again.stdout + again.stderr
    for result in Path("sweeps/x").glob("*/result.json"):
        first = tmp_path / "first" / result
        assert result.read_bytes() == first.read_bytes()
    assert verbs.main(["report", "s3://bucket/sweeps/x"]) == 0
    assert "2 cells: 2 finished" in capsys.readouterr().out
