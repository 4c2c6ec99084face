"""The dashboard: what its panels name is what runs log, and it reaches W&B as it was written."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dollyllama import launch
from dollyllama.files import read_json_lines, write_json, write_text
from dollyllama.run import run
from dollyllama.study.dashboard import (
    EFFECTS,
    FOREST,
    SAMPLES,
    STUDY_JOB,
    read_dashboard,
    specification,
)
from dollyllama.tracking import costs
from dollyllama.verbs import dashboard as verb
from tests import run_record
from tests.wandb_log import read_config, read_records, read_run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="needs the extra dashboard"
)

KEY = "0123456789abcdef0123456789abcdef01234567"
SMALL = (
    "tracking=wandb_offline",
    "device=cpu",
    "data.max_rows=64",
    "data.held_out=0.02",
    "trainer=smoke",
    "evaluation.loss_examples=6",
    "evaluation.generate_examples=2",
    "decoding.max_new_tokens=8",
)


pytestmark = pytest.mark.usefixtures("nobody_is_logged_in", "forgotten_server")


def _forget_server() -> None:
    """W&B reads the address of its server once."""
    import wandb

    wandb.teardown()


@pytest.fixture
def forgotten_server() -> Iterator[None]:
    yield
    _forget_server()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants over two seeds: one cell really run, the others its copies."""
    folder = tmp_path_factory.mktemp("sweeps") / "a sweep"
    first = folder / "baseline.seed_0"
    cells = []
    for variant in ("baseline", "rank_8"):
        for seed in (0, 1):
            cell = folder / f"{variant}.seed_{seed}"
            about = {"variant": variant, "seed": seed, "fingerprint": f"{variant}{seed}"}
            if cell == first:
                write_json(cell / "cell.json", about)
                run(launch.compose_run(SMALL), cell, expect_memory=False)
            else:
                shutil.copytree(first, cell, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
                write_json(cell / "cell.json", about)
                values: Any = OmegaConf.load(cell / "config.yaml")
                values.seed, values.lora.r = seed, 16 if variant == "baseline" else 8
                write_text(cell / "config.yaml", OmegaConf.to_yaml(values))
            cells.append({"folder": cell.name, **about})
    plan = {"baseline": "baseline", "primary": "loss/all", "answers_primary": "exact/sql"}
    write_json(folder / "sweep.json", {**plan, "cells": cells})
    return folder


@pytest.fixture(scope="module")
def written(sweep: Path) -> dict[str, Any]:
    return specification(read_dashboard(sweep, project=None, entity=None))


def _panels(written: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Sections of the workspace and of the report -> their panels."""
    found = {
        f"workspace: {section['name']}": section["panels"]
        for section in written["workspace"]["section"]["panelBankConfig"]["sections"]
    }
    title = ""
    for block in written["report"]["blocks"]:
        if block["type"] == "heading":
            title = block["children"][0]["text"]
        if block["type"] == "panel-grid":
            panels = block["metadata"]["panelBankSectionConfig"]["panels"]
            found[f"report: {title}"] = panels
    return found


def _run_sets(written: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {"workspace": written["workspace"]["section"]["runSets"][0]}
    for block in written["report"]["blocks"]:
        if block["type"] == "panel-grid":
            (run_set,) = block["metadata"]["runSets"]
            found[f"report: {run_set['name']}"] = run_set
    return found


def _named(panels: dict[str, list[dict[str, Any]]]) -> set[str]:
    """The metrics that panels plot: of the history, or of the summary."""
    names = set()
    for panel in (each for section in panels.values() for each in section):
        names |= set(panel["config"].get("metrics", ()))
        axes = (panel["config"].get(axis) for axis in ("xAxis", "yAxis"))
        names |= {axis.partition(":")[2] for axis in axes if axis and axis.startswith("summary:")}
    return names


def test_there_is_a_section_each_for_quality_cost_stability_and_samples(
    written: dict[str, Any],
) -> None:
    sections = ["Quality", "Cost", "Stability", "Samples"]
    panels = _panels(written)
    assert list(panels) == [
        *(f"workspace: {name}" for name in sections),
        *(f"report: {name}" for name in ["Effects", *sections]),
    ]
    assert all(panels.values())


def test_panels_name_what_runs_log(sweep: Path, written: dict[str, Any]) -> None:
    cell = sweep / "baseline.seed_0"
    logged = {name for line in read_json_lines(cell / "metrics.jsonl") for name in line}
    logged |= costs(json.loads((cell / "result.json").read_text())).keys()
    named = _named(_panels(written))
    assert named <= logged
    assert {"loss/all", "loss/sql", "execution/sql", "train/loss", "train/grad_norm"} <= named


def test_the_metrics_that_decide_go_first(sweep: Path) -> None:
    found = read_dashboard(sweep, project=None, entity=None)
    assert found.metrics[:2] == ["loss/all", "exact/sql"]


def test_samples_and_effects_are_shown_by_the_names_of_their_tables(
    sweep: Path, written: dict[str, Any]
) -> None:
    tables = sweep.glob("*/wandb/offline-run-*/files/media/table/**/*.json")
    assert any(str(path).rpartition("/table/")[2].startswith(SAMPLES) for path in tables)
    panels = _panels(written)
    for section, table in (("workspace: Samples", SAMPLES), ("report: Effects", EFFECTS)):
        assert json.dumps({"val": table})[1:-1] in json.dumps(panels[section])
    (browser,) = [each for each in panels["report: Effects"] if each["viewType"] == "Media Browser"]
    assert browser["config"]["mediaKeys"] == [FOREST]


def _filters(run_set: dict[str, Any]) -> set[tuple[str, str, str]]:
    items = run_set["filters"]["filters"]
    return {(item["key"]["name"], item["op"], item["value"]) for item in items}


def test_runs_are_those_of_the_sweeps_group(sweep: Path, written: dict[str, Any]) -> None:
    run = read_run(read_records(sweep / "baseline.seed_0"))
    assert (run.run_group, run.job_type) == ("a sweep", "train")
    run_sets = _run_sets(written)
    cells = {("group", "=", run.run_group), ("jobType", "!=", STUDY_JOB)}
    assert _filters(run_sets["workspace"]) == _filters(run_sets["report: cells"]) == cells
    study = {("group", "=", run.run_group), ("jobType", "=", STUDY_JOB)}
    assert _filters(run_sets["report: the study"]) == study


def test_runs_and_panels_are_grouped_by_the_variant_where_wandb_keeps_it(
    sweep: Path, written: dict[str, Any]
) -> None:
    # W&B keeps {"study": {"variant": ...}} of a config as study: {value: {variant: ...}}.
    stored = {
        key: {"value": value}
        for key, value in read_config(read_records(sweep / "baseline.seed_0")).items()
    }
    run_sets = _run_sets(written)
    groupings = [run_sets[name]["grouping"] for name in ("workspace", "report: cells")]
    keys = {(key["section"], key["name"]) for grouping in groupings for key in grouping}
    keys |= {
        ("config", panel["config"]["groupBy"])
        for panels in _panels(written).values()
        for panel in panels
        if "groupBy" in panel["config"]
    }
    ((section, path),) = keys
    assert section == "config"
    found: Any = stored
    for key in path.split("."):
        found = found[key]
    assert found == "baseline"


def test_a_group_and_a_project_of_ones_own_count(tmp_path: Path) -> None:
    settings = ("tracking=wandb_offline", "tracking.project=mine", "tracking.group=ours")
    run_record.write(tmp_path, config=run_record.config(*settings))
    found = read_dashboard(tmp_path, project=None, entity=None)
    assert (found.project, found.group, found.entity) == ("mine", "ours", None)
    found = read_dashboard(tmp_path, project="other", entity="team")
    assert (found.project, found.entity) == ("other", "team")


# --- the verb -----------------------------------------------------------------------------------


def test_without_an_account_the_specification_is_written_and_a_line_says_how_to_go_on(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.main([str(sweep)])
    path, advice = capsys.readouterr().out.splitlines()
    assert json.loads(Path(path).read_text())["group"] == "a sweep"
    assert Path(path).parent == sweep
    assert "wandb login" in advice
    assert "--publish" in advice


def _refusal(*arguments: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        verb.main(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_publishing_without_an_account_is_refused_with_the_fix(sweep: Path) -> None:
    assert "wandb login" in _refusal(str(sweep), "--publish")


def test_without_the_package_the_command_that_installs_it_is_said(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[dashboard]'" in _refusal(str(sweep))


def test_what_there_is_nothing_to_show_of_is_refused(tmp_path: Path) -> None:
    files = run_record.write(tmp_path / "files", config=run_record.config("tracking=files"))
    assert "tracking.wandb=disabled" in _refusal(str(files))
    early = run_record.write(tmp_path / "early", result={"status": "running", "error": None})
    assert "has measured anything yet" in _refusal(str(early))
    assert "is no folder" in _refusal(str(tmp_path / "nowhere"))


class _Server:
    """A stand-in for W&B's: knows one user and one project, and keeps the views that it is sent.

    broken: it answers every question with nothing.
    """

    def __init__(self, broken: bool = False) -> None:
        self.views: list[dict[str, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = {} if broken else outer.answer(asked)
                body = json.dumps({"data": answer}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
        if name.lower().startswith("upsertview"):
            view = asked["variables"]
            self.views.append(view)
            project = {"id": "p", "name": view["projectName"], "entityName": view["entityName"]}
            kept = {"id": "Vmlldzox", "project": project, "user": {"id": "u", "name": "me"}}
            times = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00Z")
            names = ("name", "displayName", "description", "type", "spec")
            same = {key: view[key] for key in names}
            return {"upsertView": {"view": {**same, **kept, **times}, "inserted": True}}
        if name == "GetProjects":
            node = {"id": "p", "name": "dollyllama", "entityName": "me", "isBenchmark": False}
            node |= {"createdAt": "2026-01-01T00:00:00Z", "user": None}
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}}
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def _logged_in(monkeypatch: pytest.MonkeyPatch, *, broken: bool = False) -> Iterator[_Server]:
    server = _Server(broken)
    _forget_server()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()


def _without_ids(spec: Any) -> Any:
    """W&B's package draws the ids of panels and run sets."""
    if isinstance(spec, dict):
        return {
            key: _without_ids(value) for key, value in spec.items() if key not in {"__id__", "id"}
        }
    return [_without_ids(each) for each in spec] if isinstance(spec, list) else spec


def test_what_is_published_is_what_was_written(
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with _logged_in(monkeypatch) as server:
        verb.main([str(sweep), "--publish"])
    path, *addresses = capfd.readouterr().out.splitlines()
    assert [address.startswith(f"{server.url}/me/dollyllama") for address in addresses] == [
        True
    ] * 2
    written = json.loads(Path(path).read_text())
    assert [(view["entityName"], view["projectName"]) for view in server.views] == [
        ("me", "dollyllama")
    ] * 2
    sent = [_without_ids(json.loads(view["spec"])) for view in server.views]
    assert sent == [_without_ids(written["workspace"]), _without_ids(written["report"])]
    files = [*sweep.glob("*.json"), *(tmp_path / "home").rglob("*")]
    assert [file for file in files if file.is_file() and KEY.encode() in file.read_bytes()] == []


def test_a_server_that_answers_nonsense_costs_one_line(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _logged_in(monkeypatch, broken=True):
        assert "W&B does not take the dashboard" in _refusal(str(sweep), "--publish")
