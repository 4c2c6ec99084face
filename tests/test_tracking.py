"""The log: strict lines on disk, the same numbers in W&B, no secret anywhere, nothing fatal."""

from __future__ import annotations

import gc
import http.server
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dollyllama.tracking import COSTS, Tracker, costs, open_tracker, resolve_mode
from tests import run_record
from tests.wandb_log import (
    read_artifacts,
    read_config,
    read_history,
    read_records,
    read_run,
    read_summary,
)

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_ThisIsAFakeTokenForATest",
    "SOME_SERVICE_TOKEN": "fake-and-of-no-known-shape",
}


pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


@pytest.fixture(scope="module", autouse=True)
def _no_helper_process_stays() -> Iterator[None]:
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()
    gc.collect()


def _open(folder: Path, mode: str = "offline", **changes: Any) -> Tracker:
    arguments: dict[str, Any] = {
        "mode": mode,
        "project": "test",
        "entity": None,
        "group": "a group",
        "tags": ["one", "two"],
        "job_type": "train",
        "name": "a name",
        "run_id": "0123abcd",
        "config": {"lora": {"r": 16}, "seed": 3},
    }
    return open_tracker(folder, **{**arguments, **changes})


def _lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _without_times(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in _lines(folder)]


# --- the file -----------------------------------------------------------------------------------


def test_a_line_can_be_read_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with _open(tmp_path, "disabled") as tracker:
        for step in (1, 2):
            tracker.log(step, {"train/loss": 2.0 / step})
            assert _lines(tmp_path)[-1]["train/loss"] == 2.0 / step
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path: Path) -> None:
    with _open(tmp_path, "disabled") as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    (line,) = _without_times(tmp_path)
    odd = {"a": "nan", "b": "inf", "c": "-inf"}
    assert line == {"step": 1, "a": None, "b": None, "c": None, "d": 1.0, "not_finite": odd}


def test_numpy_and_torch_numbers_are_plain_numbers(tmp_path: Path) -> None:
    import numpy as np
    import torch

    with _open(tmp_path, "disabled") as tracker:
        tracker.log(1, {"a": np.float32(0.5), "b": torch.tensor(2.0)})  # type: ignore[dict-item]
    assert _without_times(tmp_path) == [{"step": 1, "a": 0.5, "b": 2.0}]


def _train(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, {"train/loss": 1.0 / step})
        if step % 4 == 0:
            tracker.log(step, {"eval/loss": 2.0 / step})


@pytest.mark.parametrize(
    ("checkpoint", "stopped_at"),
    [(at, stop) for at in (0, 3, 4, 8) for stop in (0, 3, 4, 7, 8, 10) if at <= stop],
)
def test_a_resumed_log_equals_an_uninterrupted_one(
    tmp_path: Path, stopped_at: int, checkpoint: int
) -> None:
    for folder, sessions in (
        (tmp_path / "whole", [range(1, 11)]),
        (tmp_path / "resumed", [range(1, stopped_at + 1), range(checkpoint + 1, 11)]),
    ):
        for number, steps in enumerate(sessions):
            with _open(folder, "disabled") as tracker:
                if number == 0:
                    tracker.log(0, {"loss/sql": 3.0})
                _train(tracker, steps)
                if number == len(sessions) - 1:
                    tracker.log(10, {"loss/sql": 1.0})
    assert _without_times(tmp_path / "resumed") == _without_times(tmp_path / "whole")


def test_logging_again_after_the_last_step_keeps_the_training(tmp_path: Path) -> None:
    with _open(tmp_path, "disabled") as tracker:
        tracker.log(5, {"train/loss": 1.0})
        tracker.log(5, {"loss/sql": 2.0})
    with _open(tmp_path, "disabled") as tracker:
        tracker.log(5, {"loss/sql": 2.5})
    expected = [{"step": 5, "train/loss": 1.0}, {"step": 5, "loss/sql": 2.5}]
    assert _without_times(tmp_path) == expected


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    with _open(tmp_path, "disabled") as tracker:
        tracker.log(1, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"a": 0.')
    with _open(tmp_path, "disabled") as tracker:
        tracker.log(2, {"a": 2.0})
    assert [line["a"] for line in _lines(tmp_path)] == [1.0, 2.0]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 2"):
        _open(tmp_path, "disabled")


# --- which mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "a" * 40}, "online"),
        ("auto", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("offline", {"WANDB_API_KEY": "a" * 40}, "offline"),
        ("offline", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}, "disabled"),
        ("auto", {"WANDB_DISABLED": "true"}, "disabled"),
    ],
)
def test_the_environment_can_take_wandb_off_the_net_but_not_onto_it(
    configured: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode(configured) == expected


def test_a_login_in_netrc_counts(tmp_path: Path) -> None:
    netrc = tmp_path / "home" / ".netrc"
    netrc.parent.mkdir()
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {'a' * 40}\n")
    netrc.chmod(0o600)
    assert resolve_mode("auto") == "online"


def test_online_without_a_login_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"tracking\.wandb=online.*wandb login") as caught:
        resolve_mode("online")
    assert "\n" not in str(caught.value)


def test_a_malformed_key_means_offline_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short and wrong")
    assert resolve_mode("auto") == "offline"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "short and wrong" not in said


# --- W&B ----------------------------------------------------------------------------------------


def test_an_offline_run_holds_config_metrics_samples_and_names(tmp_path: Path) -> None:
    with _open(tmp_path) as tracker:
        tracker.log(10, {"train/loss": 1.5, "loss/sql": 0.25})
        tracker.table(10, "samples", [{"prompt": "p", "completion": "c", "scores": {"exact": 1.0}}])
        tracker.summary({"loss/sql": 0.25})
    records = read_records(tmp_path)
    found = read_config(records)
    assert found["lora"] == {"r": 16}
    assert found["seed"] == 3
    assert found["code"]["digest"]
    assert found["packages"]["torch"]
    run = read_run(records)
    assert (run.run_id, run.project, run.run_group) == ("0123abcd", "test", "a group")
    assert (run.job_type, list(run.tags), run.display_name) == ("train", ["one", "two"], "a name")
    (row,) = read_history(records)
    assert (row["_step"], row["train/loss"], row["loss/sql"]) == (10, 1.5, 0.25)
    assert read_summary(records)["loss/sql"] == 0.25
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [["p", "c", '{"exact": 1.0}']]


def test_a_run_that_raises_is_marked_failed_and_the_error_passes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), _open(tmp_path):
        raise RuntimeError("boom")
    exits = [r.exit.exit_code for r in read_records(tmp_path) if r.HasField("exit")]
    assert exits == [1]


def test_several_runs_in_one_process_stay_apart(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        with _open(folder, run_id=f"run{number}", config={"number": number}) as tracker:
            tracker.log(1, {"a": float(number)})
    for number in range(3):
        records = read_records(tmp_path / str(number))
        assert read_config(records)["number"] == number
        assert [row["a"] for row in read_history(records)] == [number]
        assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_finishing_twice_is_harmless(tmp_path: Path) -> None:
    with _open(tmp_path) as tracker:
        tracker.finish(failed=True)
    exits = [r.exit.exit_code for r in read_records(tmp_path) if r.HasField("exit")]
    assert exits == [1]


def test_no_server_costs_a_line_and_seconds_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    wandb.teardown()  # The address of the server is read when W&B is set up.
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("dollyllama.tracking.INIT_TIMEOUT_SECONDS", 2.0)
    started = time.monotonic()
    with _open(tmp_path, "auto") as tracker:
        tracker.log(1, {"a": 1.0})
    wandb.teardown()
    assert time.monotonic() - started < 15
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "cannot be reached" in said.err
    assert SECRETS["WANDB_API_KEY"] not in said.err
    assert [line["a"] for line in _lines(tmp_path)] == [1.0]
    assert read_config(read_records(tmp_path))["seed"] == 3  # one folder, the offline one


_RUN_THAT_LOSES_ITS_HELPER = """
import sys, time
from pathlib import Path
import psutil
from dollyllama.tracking import open_tracker

def track(name):
    return open_tracker(
        Path(sys.argv[1]) / name, mode="offline", project="p", entity=None, group=None, tags=[],
        job_type="train", name=name, run_id=name, config={},
    )

with track("a") as tracker:
    tracker.log(1, {"a": 1.0})
    helpers = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("wandb-core")
    ]
    assert helpers
    for process in helpers:
        process.kill()
    psutil.wait_procs(helpers, timeout=10)
    for step in range(2, 40):
        tracker.log(step, {"a": float(step)})
        time.sleep(0.005)
with track("b") as tracker:
    tracker.log(1, {"a": 1.0})
"""


def test_a_killed_helper_costs_a_line_not_the_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN_THAT_LOSES_ITS_HELPER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("W&B stopped answering")
    assert done.stderr.count("\n") == 1
    assert len(_lines(tmp_path / "a")) == 39
    assert len(read_history(read_records(tmp_path / "b"))) == 1


# --- cells of a study ---------------------------------------------------------------------------


def _cell(folder: Path, **changes: Any) -> Path:
    cell = {"variant": "rank_8", "seed": 2, "fingerprint": "0123456789abcdef"}
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({**cell, **changes}))
    return folder


def test_a_cell_is_grouped_by_its_sweep_and_named_by_what_differs(tmp_path: Path) -> None:
    folder = _cell(tmp_path / "a sweep" / "rank_8.seed_2.01234567")
    with _open(folder, group=None, tags=["mine"]):
        pass
    records = read_records(folder)
    run = read_run(records)
    assert (run.run_group, run.display_name) == ("a sweep", "rank_8 seed 2")
    assert list(run.tags) == ["mine", "rank_8", "seed 2", "0123456789abcdef"]
    found = read_config(records)
    assert found["study"] == {"variant": "rank_8", "fingerprint": "0123456789abcdef"}
    assert found["lora"] == {"r": 16}


def test_a_group_of_ones_own_stays(tmp_path: Path) -> None:
    folder = _cell(tmp_path / "a sweep" / "cell")
    with _open(folder, group="my group"):
        pass
    assert read_run(read_records(folder)).run_group == "my group"


def test_a_variant_with_a_long_name_is_cut_to_what_wandb_takes(tmp_path: Path) -> None:
    variant = "lora.r=8," * 40
    folder = _cell(tmp_path / "sweep" / "cell", variant=variant)
    with _open(folder):
        pass
    records = read_records(folder)
    run = read_run(records)
    assert run.display_name.startswith("lora.r=8,lora.r=8,")
    assert (len(run.display_name), max(map(len, run.tags))) == (128, 64)
    assert read_config(records)["study"]["variant"] == variant


@pytest.mark.parametrize("content", ["{", "[]", '{"variant": "a", "seed": 0}'])
def test_a_damaged_cell_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "cell.json").write_text(content)
    with pytest.raises(ValueError, match=r"cell\.json is damaged") as caught:
        _open(tmp_path, "disabled")
    assert "\n" not in str(caught.value)


def _ending(folder: Path) -> tuple[list[int], bool]:
    """Exit codes that were logged, and whether the run was marked as one that goes on."""
    records = read_records(folder)
    codes = [record.exit.exit_code for record in records if record.HasField("exit")]
    return codes, any(record.HasField("preempting") for record in records)


def test_an_interrupted_run_is_preempted_not_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _open(tmp_path / "raised"):
        raise KeyboardInterrupt
    _open(tmp_path / "said").finish(failed=True, interrupted=True)
    assert _ending(tmp_path / "raised") == _ending(tmp_path / "said") == ([130], True)
    _open(tmp_path / "failed").finish(failed=True)
    assert _ending(tmp_path / "failed") == ([1], False)


def test_a_run_that_goes_on_has_the_same_id(tmp_path: Path) -> None:
    for stopped in (True, False):
        with _open(tmp_path) as tracker:
            tracker.finish(failed=stopped, interrupted=stopped)
    logs = [path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert logs == ["run-0123abcd.wandb"] * 2


_RUN_IN_A_NATIVE_SWEEP = """
import sys
from pathlib import Path
from dollyllama.tracking import open_tracker

open_tracker(
    Path(sys.argv[1]), mode="auto", project="p", entity="e", group=None, tags=[],
    job_type="train", name="n", run_id="own", config={},
).finish(failed=True, interrupted=True)
"""


def test_in_a_native_sweep_the_agents_id_counts_and_nothing_is_started_again(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN_IN_A_NATIVE_SWEEP, str(tmp_path / "run")],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "WANDB_SWEEP_ID": "sweep1",
            "WANDB_RUN_ID": "agents",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    run = read_run(read_records(tmp_path / "run"))
    assert (run.run_id, run.sweep_id) == ("agents", "sweep1")
    assert _ending(tmp_path / "run") == ([130], False)


def test_an_adapter_is_an_artefact_that_lies_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_bytes(b"w" * 100)
    with _open(tmp_path) as tracker:
        tracker.artifact("adapter of rank_8, seed 0", "adapter", tmp_path / "adapter")
    (artifact,) = read_artifacts(read_records(tmp_path), "adapter")
    assert artifact.name == "adapter-of-rank_8-seed-0"
    (entry,) = artifact.manifest.contents
    assert (entry.path, entry.size) == ("weights", 100)
    assert entry.local_path == str(tmp_path / "adapter" / "weights")


def test_costs_are_the_numbers_of_the_record_and_what_is_not_there_is_left_out() -> None:
    result = run_record.result()
    result["seconds"]["evaluate_after"] = 12.5
    found = costs(result)
    assert found == {
        "cost/training_seconds": 61.0,
        "cost/tokens_per_second": 2023.9,
        "cost/peak_memory_mib": 812.3,
        "cost/evaluation_seconds": 12.5,
        "cost/trainable_parameters": 250_000,
    }
    assert found.keys() == COSTS.keys()
    assert costs({"train": None, "seconds": {}, "parameters": {}}) == {}


_RUN_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from dollyllama.tracking import open_tracker

resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))
with open_tracker(
    Path(sys.argv[1]), mode="offline", project="p", entity=None, group=None, tags=[],
    job_type="train", name="n", run_id="abc", config={},
) as tracker:
    for step in range(1, 401):
        tracker.log(step, {f"m{number}": float(step * number) for number in range(100)})
    tracker.table(400, "samples", [{"text": "x" * 1000}] * 2000)
    tracker.log(401, {"a": 1.0})
"""


def test_files_that_wandb_cannot_write_cost_a_line_not_the_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ON_A_FULL_DISK, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("W&B stopped answering")
    assert done.stderr.count("\n") == 1
    assert len(_lines(tmp_path / "run")) == 401
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert log.stat().st_size == 800_000  # it did hit the limit


class _Server:
    """A stand-in for W&B's server: starts a run properly, then answers nonsense or nothing."""

    def __init__(self) -> None:
        self.silent = threading.Event()
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.silent.is_set():
                    outer.closing.wait(60)
                    return
                found = re.search(rb"(?:query|mutation)\s+(\w+)", body)
                name = found[1].decode() if found else self.path
                outer.asked.append(name)
                project = {"id": "UA==", "name": "p", "entity": {"id": "RQ==", "name": "me"}}
                bucket = {"id": "QQ==", "name": "abc", "config": "{}", "project": project}
                answers: dict[str, Any] = {
                    "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
                    "RunResumeStatus": {"model": {"id": "UA==", "bucket": None}},
                }
                answer = json.dumps({"data": answers.get(name, {})}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server()
    yield server
    server.close()


_RUN_ONLINE = """
import sys
from pathlib import Path
from dollyllama import tracking

tracking.FINISH_TIMEOUT_SECONDS = 2.0
with tracking.open_tracker(
    Path(sys.argv[1]), mode="auto", project="p", entity=None, group=None, tags=[],
    job_type="train", name="n", run_id="abc", config={},
) as tracker:
    tracker.log(1, {"a": 1.0})
    print("logged", flush=True)
    sys.stdin.readline()
    for step in range(2, 20):
        tracker.log(step, {"a": float(step)})
    if sys.argv[2] == "table":
        tracker.table(20, "samples", [{"a": 1}])
print("done", flush=True)
"""


@pytest.mark.parametrize("then", ["silence", "table"])
def test_a_server_that_fails_in_the_middle_neither_kills_nor_stalls_a_run(
    tmp_path: Path, server: _Server, then: str
) -> None:
    """A nonsense answer to a table crashes W&B's helper and raises errors that are not W&B's."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN_ONLINE, str(tmp_path / "run"), then],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "WANDB_API_KEY": SECRETS["WANDB_API_KEY"],
            "WANDB_BASE_URL": server.url,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "logged\n"
        assert "UpsertBucket" in server.asked  # it was online
        if then == "silence":
            server.silent.set()
        started = time.monotonic()
        out, err = run.communicate("go on\n", timeout=60)
    assert (run.returncode, out) == (0, "done\n"), err
    assert time.monotonic() - started < 20
    assert len(_lines(tmp_path / "run")) == 19


_RUN_WITH_SECRETS = """
import json, os, sys
from pathlib import Path
from dollyllama import provenance
from dollyllama.files import write_json
from dollyllama.tracking import open_tracker

folder = Path(os.environ["RUN_FOLDER"])
variant = "model.path=" + os.environ["SOME_SERVICE_TOKEN"]
cell = {"variant": variant, "seed": 0, "fingerprint": "a"}
folder.mkdir()
(folder / "cell.json").write_text(json.dumps(cell))
with open_tracker(
    folder, mode="auto", project="p", entity=None, group=None, tags=[], job_type="train",
    name="n", run_id="abc",
    config={"model": {"path": "https://me:" + os.environ["HF_TOKEN"] + "@host"},
            "note": os.environ["SOME_SERVICE_TOKEN"]},
) as tracker:
    write_json(folder / "provenance.json", provenance.collect(device="cpu", seed=0))
    tracker.log(1, {"a": 1.0})
    tracker.table(1, "samples", [{"prompt": "p"}])
    tracker.summary({"a": 1.0, "note": os.environ["HF_TOKEN"]})
(folder / "cell.json").unlink()  # that one is not for W&B
"""


def test_no_secret_host_or_argument_reaches_any_file(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        **SECRETS,
        "WANDB_MODE": "offline",
        "RUN_FOLDER": str(tmp_path / "run"),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    arguments = [f"model.token={SECRETS['SOME_SERVICE_TOKEN']}", SECRETS["HF_TOKEN"]]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_WITH_SECRETS, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout + done.stderr == b""
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".wandb" for path in written)
    private = [*SECRETS.values(), "model.token=fake"]
    if len(socket.gethostname()) > 5:  # A shorter name may stand in a file by chance.
        private.append(socket.gethostname())
    leaks = [
        (path.relative_to(tmp_path), secret)
        for path, content in written.items()
        for secret in private
        if secret.encode() in content
    ]
    assert leaks == []
