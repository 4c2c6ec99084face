"""A run in several processes is the run of one: its losses, its adapter, its record."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dollyllama import distributed, launch, preflight
from dollyllama.__main__ import main
from dollyllama.files import read_json_lines
from dollyllama.training.budget import Plan
from dollyllama.training.checkpoints import list_checkpoints

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
#: A process that takes so many seconds hangs.
HANGS = 300
#: Seven micro-batches an epoch: the last of the seven steps has one for two processes.
SHARED = (
    *("tracking=files", "device=cpu", "data.max_rows=28", "data.held_out=0.02"),
    *("trainer=smoke", "trainer.max_steps=null", "trainer.epochs=1.85"),
    *("trainer.batching=padded", "trainer.batch_size=4", "trainer.accumulation=2"),
    *("trainer.logging_steps=3", "trainer.eval_steps=3"),
    *("trainer.checkpoint_steps=2", "trainer.keep_checkpoints=2"),
    *("lora.dropout=0.1", "evaluation.loss_examples=3", "evaluation.generate_examples=2"),
    "decoding.max_new_tokens=8",
)


def start(
    folder: Path, *overrides: str, processes: int = 1, **variables: str
) -> subprocess.Popen[bytes]:
    """``python train.py`` in so many processes of one thread each, with ``variables`` set."""
    several = (*TORCHRUN, str(processes)) if processes > 1 else ()
    command = [sys.executable, *several, str(ROOT / "train.py"), *SHARED, *overrides]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DOLLYLLAMA_CACHE": str(folder.parent / "cache"),
        **variables,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.txt").open("ab") as log:
        return subprocess.Popen(
            [*command, f"hydra.run.dir={folder}"],
            cwd=folder.parent,
            env=environment,
            stdout=log,
            stderr=log,
        )


def said(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.txt").read_text(encoding="utf-8")


def finish(folder: Path, *overrides: str, **how: Any) -> Path:
    assert start(folder, *overrides, **how).wait() == 0, said(folder)
    return folder


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def assert_same_run(one: Path, other: Path) -> None:
    """Losses and adapter are equal but for the order of sums."""
    theirs = load_file(other / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)
    lines = [read_json_lines(folder / "metrics.jsonl") for folder in (one, other)]
    for mine, their in zip(*lines, strict=True):
        assert mine.keys() == their.keys()
        names = [name for name in mine if name.startswith(("train/loss", "loss", "train/grad"))]
        assert [their[name] for name in names] == pytest.approx(
            [mine[name] for name in names], rel=1e-4
        )
    results = [read(folder) for folder in (one, other)]
    for key in ("steps", "tokens", "supervised_tokens"):
        assert results[0]["train"][key] == results[1]["train"][key]
    counts = [
        {each["name"]: each["n"] for each in result["metrics"]["after"]} for result in results
    ]
    assert counts[0] == counts[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("alone") / "run")


def wait_for_checkpoint(folder: Path, run: subprocess.Popen[bytes]) -> None:
    while not list_checkpoints(folder / "checkpoints"):
        assert run.poll() is None, said(folder)
        time.sleep(0.05)


def workers(run: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The processes of a run by their number."""
    return {
        each.environ()["RANK"]: each
        for each in psutil.Process(run.pid).children(recursive=True)
        if "RANK" in each.environ()
    }


def test_two_processes_make_the_run_of_one(alone: Path, tmp_path: Path) -> None:
    folder = finish(tmp_path / "run", processes=2)
    assert_same_run(alone, folder)
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["processes"] == 2
    # The second process leaves nothing: no folder, no file, no line.
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cache", "run", "run.txt"]
    files = [sorted(each.name for each in run.iterdir()) for run in (alone, folder)]
    assert files[0] == files[1]
    assert said(folder).count("base model") == 1
    assert "Warning" not in said(folder)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_one_goes_on(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = start(folder, processes=2)
    wait_for_checkpoint(folder, run)
    mine = workers(run)
    mine["1"].kill()
    assert psutil.wait_procs(mine.values(), timeout=60)[1] == []
    assert run.wait(timeout=60) != 0
    assert "another process of this run is gone" in said(folder)
    assert "goes on" in said(folder)
    assert read(folder)["status"] == "failed"
    assert_same_run(alone, finish(folder, processes=1))


@pytest.mark.slow
def test_sigterm_stops_all_after_one_step_and_two_go_on(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = start(folder, processes=2)
    wait_for_checkpoint(folder, run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) != 0
    assert read(folder)["status"] == "interrupted", said(folder)
    assert_same_run(alone, finish(folder, processes=2))


@pytest.mark.slow
def test_one_begins_and_two_go_on(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = start(folder, processes=1)
    wait_for_checkpoint(folder, run)
    run.kill()
    run.wait()
    assert_same_run(alone, finish(folder, processes=2))


#: The bytes of a base's 4-bit weights on this process, before and after they are shared.
_SHARES = """
import torch
from dollyllama import distributed, launch
from dollyllama.model.load import load_tokenizer
from dollyllama.model.shard import shares
from dollyllama.restore import load_model

def held(config):
    model = load_model(config, tokenizer, torch.device("cpu"))
    own = set(shares(model))
    return len(own), sum(
        (each.to_local() if name in own else each).nbytes
        for name, each in model.named_parameters()
        if hasattr(each, "quant_state")
    )

config = launch.compose_run(["device=cpu"])
tokenizer = load_tokenizer(config.model.path, None)
with distributed.group():
    whole = held(config)
    config.model.sharded = True
    told = distributed.from_all((whole, held(config)))
    if distributed.is_first():
        print(told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nf4_double", "none"])
def test_a_base_in_shares_makes_the_same_run(method: str, tmp_path: Path) -> None:
    alone = finish(tmp_path / "alone" / "run", f"quantization={method}")
    folder = finish(
        tmp_path / "shared" / "run",
        f"quantization={method}",
        "model.sharded=true",
        "trainer.activation_checkpointing=true",
        processes=2,
    )
    assert_same_run(alone, folder)


@pytest.mark.slow
def test_each_process_holds_half_of_a_base_in_shares(tmp_path: Path) -> None:
    script = tmp_path / "shares.py"
    script.write_text(_SHARES, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    (none, whole), (some, share) = (first := ast.literal_eval(done.stdout))[0]
    assert first[1] == first[0]
    assert none == 0
    assert some == 42  # seven linear layers in each of six decoder layers
    assert share == whole / 2


@pytest.mark.parametrize(
    ("override", "wanted"),
    [("quantization=int8", "cannot part weights"), ("lora=dora", "use lora=lora")],
)
def test_what_cannot_be_shared_is_refused(override: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        launch.compose_run(["model.sharded=true", override])


def test_the_last_step_is_dealt_whole() -> None:
    plan = Plan([[0], [1], [2], [3], [4]], accumulation=4, rows=5)
    assert plan.dealt(0, 2) == [[0], [1], [2], [3], [4], []]
    assert plan.dealt(1, 4) == [[4], [], [], []]
    assert plan.dealt(0, 1) == [[0], [1], [2], [3], [4]]


def test_work_is_shared_out_and_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(items: Any) -> list[int]:
        return [2 * each for each in items]

    assert distributed.shared_out([1, 2, 3], double) == [2, 4, 6]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    asked: list[list[int]] = []

    def gather(share: list[int]) -> list[list[int]]:
        asked.append(share)
        return [[2, 6, 10], share]

    monkeypatch.setattr(distributed, "from_all", gather)
    assert distributed.shared_out([1, 2, 3, 4, 5], double) == [2, 4, 6, 8, 10]
    assert asked == [[4, 8]]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["trainer.accumulation=3"], "2 processes cannot share trainer.accumulation=3"),
        (["trainer.accumulation=2", "evaluation.merged=true"], "evaluation.merged=false"),
        (
            ["trainer.accumulation=2", "trainer.epochs=null", "trainer.max_seconds=9"],
            "set trainer.max_tokens",
        ),
    ],
)
def test_what_processes_cannot_share_is_refused(
    overrides: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch.compose_run(["trainer=quick", "trainer.max_steps=null", *overrides])
    preflight.check_processes(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=wanted):
        preflight.check_processes(run)


def test_a_verb_is_not_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["show", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: show is for one process: start it without torchrun\n"


def test_a_config_error_is_one_line_from_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, "lora.rr=3", processes=2).wait() != 0
    assert said(folder).count("error: ") == 1, said(folder)
    assert "Terminated" not in said(folder)


@pytest.mark.slow
def test_the_others_read_no_command_of_their_own(tmp_path: Path) -> None:
    """One that refused it before the first had said why would have that ended by the launcher."""
    # Held open, as torchrun does: a port that was free a moment ago can be taken.
    place = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port), "WORLD_SIZE": "2"}
    both["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    first, other = tmp_path / "first", tmp_path / "other"
    short = ("trainer.epochs=null", "trainer.max_steps=1")
    runs = [start(first, *short, **both, RANK="0"), start(other, "lora.rr=3", **both, RANK="1")]
    try:
        assert runs[0].wait(HANGS) == 0, said(first)
        assert runs[1].wait(HANGS) == 0, said(other)
    finally:
        for run in runs:
            run.kill()
    assert said(other) == ""
    assert not other.exists()


def end_of(script: str, *arguments: str, rank: str, folder: Path) -> tuple[int, str, str]:
    """Status, output and errors of one of two processes, started in ``folder``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": rank},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["-c=job"], ["--info", "all"]])
def test_what_only_prints_is_printed_once_and_keeps_no_process_waiting(
    flags: list[str], tmp_path: Path
) -> None:
    assert end_of("train.py", *flags, rank="1", folder=tmp_path) == (0, "", "")
    status, output, _ = end_of("train.py", *flags, rank="0", folder=tmp_path)
    assert status == 0
    assert output
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_finds_no_other_says_so_in_one_line(tmp_path: Path) -> None:
    status, _, errors = end_of("train.py", rank="1", folder=tmp_path)
    assert status == 2
    assert errors.startswith("error: process 1: WORLD_SIZE is set")
    assert errors.count("\n") == 1


def test_a_number_of_processes_that_is_none_is_refused(tmp_path: Path) -> None:
    for variables in (
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1"},
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "trainer=smoke"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGS,
        )
        name, value = [*variables.items()][-1]
        assert (done.returncode, done.stdout) == (2, "")
        line = f"error: {name}={value} in the environment is no number of processes: unset it\n"
        assert done.stderr == line


def test_a_sweep_is_not_started_by_torchrun(tmp_path: Path) -> None:
    for command in (["sweep.py", "--dry-run"], ["train.py", "hydra.mode=MULTIRUN", "seed=0,1"]):
        status, output, errors = end_of(*command, rank="0", folder=tmp_path)
        assert (status, output) == (2, "")
        assert errors.startswith("error: a sweep starts its cells itself")
        assert errors.count("\n") == 1
