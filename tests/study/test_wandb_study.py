"""A study on W&B: its summary run, and the sweep that W&B steers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dollyllama import config, launch
from dollyllama.files import write_json, write_json_lines
from dollyllama.study.analyse import Study, analyse
from dollyllama.study.records import read_sweep
from dollyllama.study.summary_run import draw_forest, effect_rows, log_study
from tests import run_record
from tests.study import record as study_record
from tests.wandb_log import read_artifacts, read_config, read_records, read_run, read_summary

ROOT = Path(__file__).parents[2]
SWEEP_FILE = ROOT / "docs" / "wandb_sweep.yaml"
SECRET = "fake-and-of-no-known-shape"


pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")

#: Nats of three held-out examples of 10, 20 and 30 tokens, by variant and seed.
LOSSES = {
    ("baseline", 0): [10.0, 20.0, 30.0],
    ("baseline", 1): [12.0, 18.0, 30.0],
    ("rank_8", 0): [13.0, 26.0, 36.0],
    ("rank_8", 1): [14.0, 25.0, 39.0],
    ("dora", 0): [10.0, 21.0, 30.0],
}


def _sweep(folder: Path) -> Study:
    cells = []
    for (variant, seed), losses in LOSSES.items():
        cell = folder / f"{variant}.seed_{seed}"
        about = {"variant": variant, "seed": seed, "fingerprint": f"{variant} {seed}"}
        changes = {"rank_8": ["lora.r=8"], "dora": ["lora=dora"]}.get(variant, [])
        run_record.write(cell, config=run_record.config(f"seed={seed}", *changes))
        write_json(cell / "cell.json", about)
        rows = [
            {
                "phase": "after",
                "source": "sql",
                "id": str(n),
                "row": n,
                "loss": loss,
                "tokens": 10 * n,
            }
            for n, loss in enumerate(losses, start=1)
        ]
        write_json_lines(cell / "losses.jsonl", rows)
        write_json_lines(cell / "samples.jsonl", [])
        measured = study_record.metrics(rows, [])
        result = {**run_record.result(), "metrics": {"after": measured}}
        write_json(cell / "result.json", result)
        cells.append({"folder": cell.name, **about})
    plan = {"baseline": "baseline", "primary": "loss/all", "relevant": 0.02, "cells": cells}
    write_json(folder / "sweep.json", {**plan, "tips": {"dora": f"plain LoRA token={SECRET}"}})
    for name in ("report.html", "report.md"):
        (folder / name).write_text(f"<html>the {name}</html>")
    return analyse(*read_sweep([folder]))


def _log(study: Study, folder: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "mode": "offline",
        "project": "p",
        "entity": None,
        "group": None,
        "tags": ["mine"],
        "artifacts": False,
    }
    log_study(study, folder, **{**arguments, **changes})


def _media(folder: Path, kind: str) -> list[Path]:
    return list(folder.glob(f"wandb/offline-run-*/files/media/{kind}/*"))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "a sweep"


def test_the_summary_run_stands_in_the_group_of_the_cells(sweep: Path) -> None:
    _log(_sweep(sweep), sweep)
    records = read_records(sweep)
    run = read_run(records)
    assert (run.run_group, run.job_type, run.display_name) == ("a sweep", "study", "study a sweep")
    assert list(run.tags) == ["mine"]
    found = read_config(records)
    assert (found["baseline"], found["primary"], found["seeds"]) == ("baseline", "loss/all", [0, 1])
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_the_effects_are_a_table_and_numbers_of_the_summary(sweep: Path) -> None:
    _log(_sweep(sweep), sweep)
    (file,) = _media(sweep, "table")
    table = json.loads(file.read_text())
    rows = {
        row["variant"]: row
        for values in table["data"]
        if (row := dict(zip(table["columns"], values, strict=True)))["kind"] == "primary"
    }
    assert rows.keys() == {"rank_8", "dora"}
    # By hand: nats over 60 tokens, the mean over the seeds, variant less baseline.
    assert math.isclose(rows["rank_8"]["effect"], (75 / 60 + 78 / 60) / 2 - 1)
    assert rows["rank_8"]["low"] < rows["rank_8"]["effect"] < rows["rank_8"]["high"]
    assert (rows["rank_8"]["seeds"], rows["rank_8"]["examples"]) == (2, 3)
    assert (rows["dora"]["seeds"], rows["dora"]["low"]) == (1, None)
    numbers = read_summary(read_records(sweep))
    assert math.isclose(numbers["effect/dora"], 1 / 60)
    assert (numbers["study/variants"], numbers["study/finished_cells"]) == (3, 5)


def test_every_comparison_is_a_row_and_the_primary_ones_come_first(sweep: Path) -> None:
    study = _sweep(sweep)
    kinds = [row["kind"] for row in effect_rows(study)]
    exploratory = sum(len(variant.exploratory) for variant in study.variants)
    assert exploratory
    assert kinds == ["primary"] * 2 + ["exploratory"] * exploratory


def test_what_variants_do_together_is_a_row_too(tmp_path: Path) -> None:
    shifts = {"baseline": 0.0, "a": 0.15, "b": 0.08, "a+b": 0.43}
    variants = {
        name: {"shift": shift, "settings": {"lora__r": place + 1}}
        for place, (name, shift) in enumerate(shifts.items())
    }
    sweep = study_record.write_sweep(tmp_path, variants, tips={"a": "do a"})
    rows = effect_rows(analyse(*read_sweep([sweep])))
    (joint,) = (row for row in rows if row["kind"] == "interaction")
    assert (joint["variant"], joint["metric"]) == ("a × b", "loss/all")
    assert joint["effect"] == pytest.approx(0.2, abs=0.03)
    # A verdict is on a claim.
    judged = {row["variant"]: row["verdict"] for row in rows if row["kind"] == "primary"}
    assert judged == {"a": "supported", "b": None, "a+b": None}


def test_the_picture_and_the_report_are_shown(sweep: Path) -> None:
    _log(_sweep(sweep), sweep)
    (picture,) = _media(sweep, "images")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (page,) = _media(sweep, "html")
    assert page.read_text() == "<html>the report.html</html>"


def test_the_report_is_an_artefact_by_choice(sweep: Path) -> None:
    study = _sweep(sweep)
    _log(study, sweep)
    assert read_artifacts(read_records(sweep), "report") == []
    _log(study, sweep, artifacts=True)
    (report,) = read_artifacts(read_records(sweep), "report")
    assert report.name == "report-a-sweep"
    assert {entry.path for entry in report.manifest.contents} == {"report.html", "report.md"}
    # A later report does not spoil what is to be sent.
    assert all(str(sweep) not in entry.local_path for entry in report.manifest.contents)


def test_logged_again_it_is_one_run_with_the_latest_numbers(sweep: Path) -> None:
    study = _sweep(sweep)
    _log(study, sweep)
    first = read_run(read_records(sweep)).run_id
    (sweep / "report.html").write_text("<html>a later one</html>")
    _log(study, sweep)
    assert read_run(read_records(sweep)).run_id == first
    (page,) = _media(sweep, "html")
    assert page.read_text() == "<html>a later one</html>"


def test_without_wandb_nothing_is_written(sweep: Path) -> None:
    study = _sweep(sweep)
    before = set(sweep.rglob("*"))
    _log(study, sweep, mode="disabled", project=None)
    assert set(sweep.rglob("*")) == before


def test_a_wandb_that_fails_costs_a_line(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = _sweep(sweep)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    import wandb

    monkeypatch.setattr(wandb, "Table", fail)
    _log(study, sweep)
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "No space left on device" in said.err
    assert "report.html" in said.err


def test_a_secret_in_a_plan_reaches_no_file_of_wandb(sweep: Path) -> None:
    _log(_sweep(sweep), sweep, artifacts=True)
    written = [path for path in sweep.glob("wandb/**/*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_a_study_without_an_effect_has_no_picture(tmp_path: Path) -> None:
    study = analyse(*read_sweep([run_record.write(tmp_path / "run")]))
    assert not draw_forest(study, tmp_path / "forest.png")
    assert not (tmp_path / "forest.png").exists()


# --- the sweep that W&B steers ------------------------------------------------------------------


def _native() -> dict[str, Any]:
    values = yaml.safe_load(SWEEP_FILE.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def _choices(parameter: dict[str, Any]) -> list[Any]:
    if "values" in parameter:
        return list(parameter["values"])
    return [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("name", sorted(_native()["parameters"]))
def test_a_parameter_is_a_number_that_the_config_takes(name: str) -> None:
    fixed = [word for word in _native()["command"] if "=" in word]
    for value in _choices(_native()["parameters"][name]):
        run: Any = launch.compose_run([*fixed, f"{name}={value}"])
        for key in name.split("."):
            run = getattr(run, key)
        assert run == value
        assert isinstance(value, int | float)


def test_no_parameter_takes_a_sections_place() -> None:
    assert not set(_native()["parameters"]) & set(config.Run.__dataclass_fields__)


def test_what_it_minimises_is_measured() -> None:
    native = _native()
    run = launch.compose_run([word for word in native["command"] if "=" in word])
    assert native["metric"] == {"name": run.evaluation.primary, "goal": "minimize"}


_AGENT = """
import json, sys
from wandb.wandb_agent import Agent

sweep, arguments = json.loads(sys.argv[1]), json.loads(sys.argv[2])
agent = Agent(api=None, queue=None)
agent._sweep_command = [*sweep["command"], "--cfg", "job"]
agent._command_run({"run_id": "r", "program": sweep["program"], "args": arguments})
sys.exit(agent._run_processes["r"].wait())
"""


def test_wandbs_own_agent_starts_the_run_that_its_parameters_say(tmp_path: Path) -> None:
    chosen = {name: _choices(each)[0] for name, each in _native()["parameters"].items()}
    arguments = json.dumps({name: {"value": value} for name, value in chosen.items()})
    done = subprocess.run(
        [sys.executable, "-c", _AGENT, json.dumps(_native()), arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "WANDB_DIR": str(tmp_path),
            "WANDB_SWEEP_ID": "sweep",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    composed = yaml.load(done.stdout, Loader=yaml.SafeLoader)
    for name, value in chosen.items():
        found = composed
        for key in name.split("."):
            found = found[key]
        assert float(found) == value
    assert composed["tracking"]["tags"] == ["native_sweep"]
