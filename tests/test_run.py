"""Whole runs: what is in the folder, whatever happened, and what the adapter in it can do."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dollyllama import config, embedded, launch
from dollyllama import run as run_module
from dollyllama.data.prepare import prepare
from dollyllama.data.prompt import END_MARKER
from dollyllama.evaluation.metric import Metric
from dollyllama.files import read_json_lines, write_json_lines
from dollyllama.record import Status
from dollyllama.restore import check_adapter, check_base, restore
from dollyllama.run import Result, measure, run
from dollyllama.summary import next_commands, summary
from dollyllama.tracking import Tracker
from dollyllama.training.fit import Diverged, fit

#: A run of seconds on the embedded model.
SMALL = (
    "tracking=files",
    "device=cpu",
    "data.max_rows=64",
    "data.held_out=0.02",
    "trainer=smoke",
    "evaluation.loss_examples=6",
    "evaluation.generate_examples=2",
    "decoding.max_new_tokens=8",
)


#: The same without evaluation.
UNMEASURED = (*(each for each in SMALL if not each.startswith("evaluation.")), "evaluation=none")


def small_run(folder: Path, *overrides: str, base: tuple[str, ...] = SMALL) -> Result:
    """A run as a study makes it: telling its memory takes longer than its steps."""
    return run(launch.compose_run([*base, *overrides]), folder, expect_memory=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, small_run(folder)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_a_finished_run_leaves_the_whole_record(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "clusters.jsonl",
        "config.yaml",
        "contamination.jsonl",
        "data.json",
        "losses.jsonl",
        "metrics.jsonl",
        "provenance.json",
        "rejected.jsonl",
        "result.json",
        "samples.jsonl",
    }
    assert read(folder, "result.json")["status"] == result.status == "finished"
    assert "README.md" in {path.name for path in (folder / "adapter").iterdir()}


def test_the_recorded_config_is_the_one_that_ran(finished: tuple[Path, Result]) -> None:
    assert config.load(finished[0] / "config.yaml") == launch.compose_run(SMALL)


def test_norms_alone_are_upcast(finished: tuple[Path, Result]) -> None:
    census = read(finished[0], "provenance.json")["dtypes"]
    assert set(census["norms"]) == {"float32"}
    assert set(census["other"]) == {"bfloat16"}
    assert set(census["quantised"]) == {"nf4"}


def test_metrics_are_measured_before_and_after_on_every_source(
    finished: tuple[Path, Result],
) -> None:
    names = {
        phase: {metric.name for metric in metrics} for phase, metrics in finished[1].metrics.items()
    }
    assert names["before"] == names["after"]
    assert {f"loss/{source}" for source in ("code", "dolly", "maths", "sql")} <= names["after"]


def test_samples_say_before_which_training_they_were_written(
    finished: tuple[Path, Result],
) -> None:
    samples = read_json_lines(finished[0] / "samples.jsonl")
    assert [sample["phase"] for sample in samples] == ["before"] * 8 + ["after"] * 8


def test_every_rejected_row_has_a_reason_and_itself(finished: tuple[Path, Result]) -> None:
    rejected = read_json_lines(finished[0] / "rejected.jsonl")
    counted = read(finished[0], "data.json")["total"]["rejected"]
    assert len(rejected) == sum(counted.values()) > 100
    assert all(row["reason"] and isinstance(row["raw"], dict) for row in rejected)


def test_the_restored_adapter_measures_what_the_run_measured(
    finished: tuple[Path, Result],
) -> None:
    folder, result = finished
    run_config = config.load(folder / "config.yaml")
    model, tokenizer = restore(run_config, folder)
    data = prepare(run_config.data, tokenizer, seed=run_config.seed)
    again = measure(run_config, model, tokenizer, data.held_out).metrics
    assert again == result.metrics["after"]


def test_the_summary_needs_the_folder_alone(finished: tuple[Path, Result]) -> None:
    text = summary(finished[0])
    assert "finished" in text
    assert "loss/sql" in text
    assert f"python -m dollyllama evaluate {finished[0]}" in text


def test_two_runs_of_one_config_give_the_same_adapter_bytes(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    small_run(tmp_path / "again")
    first, second = (
        (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        for folder in (finished[0], tmp_path / "again")
    )
    assert first == second


def test_a_diverged_run_is_recorded_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "diverged"
    with pytest.raises(Diverged):
        small_run(folder, "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_grad_norm=null")
    record = read(folder, "result.json")
    assert record["status"] == "diverged"
    assert "loss" in record["error"]
    assert record["metrics"]["before"]
    assert record["train"]["steps"] >= 1
    assert record["train"]["tokens"] > 0
    assert record["train"]["seconds"] > 0
    assert not (folder / "adapter").exists()


def test_an_empty_mix_leaves_the_reasons_in_the_record(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    with pytest.raises(ValueError, match="no training example"):
        small_run(folder, "data.max_length=8")
    rejected = read_json_lines(folder / "rejected.jsonl")
    assert read(folder, "data.json")["total"]["rows"]["trained"] == 0
    assert "prompt_too_long" in {row["reason"] for row in rejected}


def test_a_killed_run_resumes_to_the_same_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("trainer.checkpoint_steps=2", "trainer.keep_checkpoints=1")
    small_run(tmp_path / "whole", *steps)

    log = Tracker.log

    def log_and_die(self: Tracker, step: int, values: dict[str, float]) -> None:
        log(self, step, values)
        if step == 3 and "train/loss" in values:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "log", log_and_die)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "killed", *steps)
    assert read(tmp_path / "killed", "result.json")["status"] == "interrupted"
    monkeypatch.setattr(Tracker, "log", log)
    resumed = small_run(tmp_path / "killed", *steps)

    assert resumed.status is Status.finished
    whole, killed = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert whole == killed
    lines = read_json_lines(tmp_path / "killed" / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_trained_is_not_trained_again_unless_its_adapter_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    whole = small_run(tmp_path / "whole")
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        phases = iter([measure])

        def measure_once(*given: Any) -> Any:
            for once in phases:
                return once(*given)
            raise KeyboardInterrupt  # in the evaluation after training

        patched.setattr(run_module, "measure", measure_once)
        with pytest.raises(KeyboardInterrupt):
            small_run(folder)
    assert read(folder, "result.json")["status"] == "interrupted"
    trained = read(folder, "provenance.json")["adapter"]
    weights = folder / "adapter" / "adapter_model.safetensors"
    if damaged:
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    fits = []
    monkeypatch.setattr(
        run_module, "fit", lambda *given, **named: fits.append(1) or fit(*given, **named)
    )
    (folder / ".result.json.1.tmp").write_text("half")
    resumed = small_run(folder)

    assert len(fits) == damaged
    assert resumed.status is Status.finished
    assert resumed.metrics == whole.metrics
    assert resumed.parameters == whole.parameters
    origin = read(folder, "provenance.json")
    assert origin["adapter"] == trained == read(tmp_path / "whole", "provenance.json")["adapter"]
    assert "dtypes" in origin
    assert not list(folder.glob(".*"))
    for name in ("samples.jsonl", "losses.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_goes_on_with_its_own_base_and_data_alone(tmp_path: Path) -> None:
    model = Path(shutil.copytree(embedded.MODEL, tmp_path / "model"))
    file = tmp_path / "rows" / "sql_create_context.jsonl"
    rows = [
        {
            "question": f"How many {word}s are there?",
            "context": f"CREATE TABLE {word}s (id INTEGER, name VARCHAR)",
            "answer": f"SELECT COUNT(*) FROM {word}s",
        }
        for word in ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "ant", "elk", "eel") * 3
    ]
    write_json_lines(file, rows)
    overrides = ("data=sql", f"data.root={file.parent}", f"model.path={model}", "trainer=brief")
    plain = ("tracking=files", "device=cpu", "evaluation=none")
    base = (*plain, "trainer.max_steps=2", "trainer.checkpoint_steps=1", "data.held_out=0.1")
    folder = tmp_path / "run"
    small_run(folder, *overrides, base=base)

    write_json_lines(file, [*rows[:-1], {**rows[-1], "question": "How many eels swim?"}])
    with pytest.raises(ValueError, match=r"began with other data .* than sql are now: put the"):
        small_run(folder, *overrides, base=base)
    write_json_lines(file, rows)
    weights = load_file(model / "model.safetensors")
    scaled = {**weights, "model.norm.weight": weights["model.norm.weight"] * 1.5}
    save_file(scaled, model / "model.safetensors")
    with pytest.raises(ValueError, match=r"was trained on another base model .*: model\.safetens"):
        small_run(folder, *overrides, base=base)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert small_run(folder, *overrides, base=base).status is Status.finished


def test_control_c_saves_a_checkpoint_and_says_how_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    overrides = [*UNMEASURED, "trainer.max_steps=100000", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *overrides],
        cwd=launch.CONF.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == launch.RESUMABLE, error
    assert f"python train.py resume={folder}" in error
    assert read(folder, "result.json")["status"] == "interrupted"
    assert list((folder / "checkpoints").iterdir())


def test_no_key_or_token_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "a" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--token={secret}"])
    small_run(tmp_path / "run", base=UNMEASURED)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert all(secret.encode() not in path.read_bytes() for path in files)


def test_a_folder_that_a_process_is_at_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    code = (
        f"import fcntl, os; fcntl.flock(os.open({str(folder)!r}, os.O_RDONLY), fcntl.LOCK_EX);"
        "print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(ValueError, match="by another process"):
            small_run(folder)
        assert not list(folder.iterdir())
    finally:
        holder.communicate(b"\n")


def test_a_secret_in_the_config_is_refused_by_its_key(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    with pytest.raises(ValueError, match=r"^tracking\.tags holds what looks like a key") as caught:
        launch.compose_run([f"tracking.tags=[{secret}]"])
    assert secret not in str(caught.value)


def test_a_diverged_run_is_not_offered_to_be_resumed() -> None:
    assert not any("resume=" in line for line in next_commands(Path("runs/x"), "diverged"))
    assert any("resume=" in line for line in next_commands(Path("runs/x"), "interrupted"))
    (line,) = (
        line
        for line in next_commands(Path("runs/x"), "interrupted", "s3://bucket/runs")
        if "resume=" in line
    )
    assert line.endswith("python train.py resume=runs/x tracking.mirror=s3://bucket/runs")


@pytest.mark.slow
def test_the_default_run_learns_sql_on_schemas_it_has_not_seen(tmp_path: Path) -> None:
    folder = tmp_path / "default"
    result = run(launch.compose_run(["tracking=files", "device=cpu"]), folder)
    by_phase: dict[str, dict[str, Metric]] = {
        phase: {metric.name: metric for metric in metrics}
        for phase, metrics in result.metrics.items()
    }
    before, after = by_phase["before"], by_phase["after"]
    assert before["exact/sql"].n == after["exact/sql"].n >= 100
    assert before["exact/sql"].value < 0.05
    assert after["exact/sql"].value > 0.40
    for source in ("code", "dolly", "maths", "sql"):
        old, new = before[f"loss/{source}"], after[f"loss/{source}"]
        assert old.value - new.value > 3 * (old.standard_error + new.standard_error)
        assert after[f"stops/{source}"].value > 0.9
    samples = read_json_lines(folder / "samples.jsonl")
    assert all(END_MARKER not in sample["completion"] for sample in samples)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_real_rows_train_a_real_checkpoint(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "real"
    result = small_run(
        folder,
        "data=sql",
        f"data.root={shared / 'data'}",
        "model=local",
        f"model.path={shared / 'models' / 'stories260K'}",
        "data.held_out=0.001",
        base=UNMEASURED,
    )
    assert result.status is Status.finished
    counts = read(folder, "data.json")["sources"]["sql"]["rows"]
    assert counts["rules"] == 4_295
    assert result.train is not None
    assert result.train.steps == 4


def test_an_adapter_is_not_put_on_another_base(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    run_config = config.load(folder / "config.yaml")
    check_base(run_config, folder)
    origin = read(folder, "provenance.json")
    origin["base_model"]["files"]["model.safetensors"]["sha256"] = "0" * 64
    (folder / "provenance.json").write_text(json.dumps(origin), encoding="utf-8")
    with pytest.raises(ValueError, match=r"another base model .* model\.safetensors differs"):
        restore(run_config, folder)
    (folder / "provenance.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"provenance\.json is damaged"):
        restore(run_config, folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_was_changed_is_refused_where_its_digest_is_known(
    name: str, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    file = folder / "adapter" / name
    origin = read(folder, "provenance.json")
    assert origin["adapter"][name] == hashlib.sha256(file.read_bytes()).hexdigest()
    # The README is the reader's to edit.
    (folder / "adapter" / "README.md").write_text("Mine.", encoding="utf-8")
    check_adapter(folder)
    file.write_bytes(file.read_bytes().replace(b"lora_A", b"lora_a").replace(b"LORA", b"lora"))
    with pytest.raises(ValueError, match=rf"not the one that was trained: {name} differs") as said:
        restore(config.load(folder / "config.yaml"), folder)
    assert "\n" not in str(said.value)
    # Runs of an earlier version kept none.
    del origin["adapter"]
    (folder / "provenance.json").write_text(json.dumps(origin), encoding="utf-8")
    check_adapter(folder)
