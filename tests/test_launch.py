"""``python train.py``: what is refused, in which words, and what a run's end makes of the exit."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal import utils

from dollyllama import config, launch, preflight, sweeping
from dollyllama.files import locked, write_json
from dollyllama.record import Status
from dollyllama.study.cells import Planned

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "datasets", "wandb", "numpy", "pyarrow", "matplotlib")

Launch = Callable[..., tuple[int, list[str]]]


def start() -> None:
    """What ``python train.py`` does, in this process."""
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(utils, "run_and_report", utils.run_and_report)
    monkeypatch.setattr(config, "cuda_is_available", lambda: False)
    return tmp_path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Launch:
    """Run ``train.py`` with arguments; its exit status and the lines on stderr."""

    def run_main(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            start()
        return int(left.value.code or 0), capsys.readouterr().err.splitlines()

    return run_main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[config.Run, Path]]:
    """The runs that were started: nothing is trained, and no file is looked for."""
    runs: list[tuple[config.Run, Path]] = []

    def record(run_config: config.Run, folder: Path) -> None:
        runs.append((run_config, folder))
        config.save(run_config, folder / "config.yaml")

    monkeypatch.setattr(launch, "_run", record)
    monkeypatch.setattr(preflight, "check", lambda run: None)
    return runs


REFUSED = {
    # unknown keys
    "lora.rnk=8": "lora.rnk is no key of this config: did you mean lora.r?",
    "+lora.rnk=8": "lora.rnk is no key of this config: did you mean lora.r?",
    "++lora.rnk=8": "lora.rnk is no key of this config: did you mean lora.r?",
    "lora.droput=0": "did you mean lora.dropout?",
    "lr=1e-4": "lr is no key of this config: did you mean optimizer.lr?",
    "lora.learning_rate=1": "did you mean optimizer.lr?",
    "r=8": "did you mean lora.r?",
    "alpha=1": "did you mean lora.alpha or decoding.alpha?",
    "per_device_train_batch_size=4": "did you mean trainer.batch_size?",
    "data.sources.sql.wieght=2": "did you mean data.sources.sql.weight?",
    "data.sources.gsm.weight=2": "data.sources has code, dolly, maths, sql",
    "+data.sources.gsm.weight=2": "+source@data.sources.gsm=OPTION",
    "lora.zzzz=1": "lora has alpha, dropout, r, target_modules, variant",
    "hydra.run.dri=x": "--cfg hydra prints it",
    # unknown groups and options
    "optimizer=adamx": "did you mean optimizer=adamw?",
    "optimzer=adamw": "did you mean optimizer?",
    "+optimzer=adamw": "did you mean optimizer?",
    "experiment=dollyllama7b": "did you mean experiment=dollyllama_7b?",
    "lora=8": "name of one of its options",
    # wrong types
    "lora.r=eight": "lora.r must be a whole number, not eight",
    "lora.r=8.5": "lora.r must be a whole number, not 8.5",
    "lora.r=null": "lora.r cannot be null",
    "trainer.batching=paked": "did you mean packed?",
    "trainer.profile=maybe": "trainer.profile must be true or false, not maybe",
    "optimizer.lr=fast": "optimizer.lr must be a number, not fast",
    "optimizer.betas=0.9": "optimizer.betas must be a list",
    "lora.r=8,16": "add --multirun",
    # impossible values
    "lora.r=0": "lora.r must be at least 1, not 0",
    "lora.dropout=1.5": "lora.dropout must be in [0, 1), not 1.5",
    "lora.target_modules=[]": "lora.target_modules is empty",
    "optimizer.lr=0": "optimizer.lr must be > 0",
    "data.held_out=0": "data.held_out must be in (0, 1)",
    "data.sources.sql.weight=-1": "data.sources.sql.weight must be >= 0",
    "data.sources.sql.max_rows=0": "data.sources.sql.max_rows must be >= 1",
    "trainer.max_steps=5": "exactly one of epochs, max_steps, max_tokens and max_seconds",
    "seed=-1": "seed must be in [0, 2**32)",
    "device=cuda": "use device=cpu, or device=auto",
    "optimizer=paged_adamw_8bit": "use one of adamw, adamw_8bit, adafactor, lion_8bit, sgd",
    "lora=pissa": "use quantization=none or lora=lora",
    "tracking.mirror=runs": "tracking.mirror=runs is no URL",
    "hydra.run.dir=s3://bucket/x": "tracking.mirror=URL keeps a copy",
    # keys without effect
    "decoding.alpha=0.5": "has no effect with decoding.strategy=greedy",
    "evaluation.run_code=true": "no source has rows with tests",
    "evaluation.primary=passes/code": "is not measured by this run: did you mean parses/code?",
    "optimizer.momentum=0.9": "has no effect with optimizer.name=adamw",
    "trainer.checkpoint_steps=null": "trainer.keep_checkpoints goes with trainer.checkpoint_steps",
    # no value
    "model=local": "model.path has no value yet: give model.path=VALUE",
    "~lora": "lora.r has no value yet",
    "lora.r": "lora.r has no value: write lora.r=VALUE",
    # grammar
    "lora.r=[8": "cannot be read",
    "~lora.r": "lora.r cannot be removed",
    "--bogus": "there is no flag --bogus",
    "--config-dir=nowhere": "not found",
    "resume=nowhere": "resume=nowhere is no folder",
    "hydra.run.dir=/dev/null/x": "Not a directory",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_bad_argument_ends_in_one_line_and_status_2(
    argument: str, launched: Launch, working_folder: Path
) -> None:
    status, lines = launched(argument)
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ")
    assert REFUSED[argument] in lines[0]
    assert [path for path in working_folder.rglob("*") if path.is_file()] == []
    assert list(working_folder.glob("runs/*")) == []


TESTED = "+source@data.sources.humaneval=humaneval"


@pytest.mark.parametrize("what", ["passes", "pass@1", "pass@5"])
def test_what_answers_in_python_pass_decides_only_where_they_are_run(what: str) -> None:
    drawn = [TESTED, "decoding=nucleus", "evaluation.answers=5"]
    primary = f"evaluation.primary={what}/humaneval"
    run = launch.compose_run([*drawn, primary, "evaluation.run_code=true"])
    assert run.evaluation.primary == f"{what}/humaneval"
    refused = [
        [*drawn, primary],
        [*drawn, f"evaluation.primary={what}/code", "evaluation.run_code=true"],
        [*drawn, "data.sources.humaneval.grader=text", primary],
        [*drawn, "evaluation.primary=pass@10/humaneval", "evaluation.run_code=true"],
    ]
    for overrides in refused:
        with pytest.raises(ValueError, match=r"evaluation\.primary=\S+ is not measured"):
            launch.compose_run(overrides)


def test_running_code_without_answers_or_tests_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no effect with evaluation\.generate_examples=0"):
        launch.compose_run([TESTED, "evaluation=loss_only", "evaluation.run_code=true"])
    with pytest.raises(ValueError, match=r"no source has rows with tests \(format=humaneval"):
        launch.compose_run(
            [TESTED, "data.sources.humaneval.grader=text", "evaluation.run_code=true"]
        )


def test_code_that_cannot_be_run_is_refused_before_anything_is_loaded(
    launched: Launch,
    started: list[tuple[config.Run, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight.sandbox, "available", lambda: "no namespaces")
    status, lines = launched(TESTED, "evaluation.run_code=true")
    assert (status, len(lines), started) == (2, 1, [])
    assert "no namespaces" in lines[0]


YAML = {
    "lora: {rnk: 8}": "lora.rnk is no key of this config: did you mean lora.r? (in experiment/",
    "loar: {r: 8}": "loar is no key of this config: did you mean lora? (in experiment/mine)",
    "lora: {r: eight}": "lora.r must be a whole number, not eight (in experiment/mine)",
    "lora: {r: 0}": "lora.r must be at least 1, not 0",
    "defaults: [override /optimizer: adamx]": "did you mean optimizer=adamw?",
    "defaults: [override /optimzer: adamw]": "did you mean optimizer? (in experiment/mine)",
    "lora: {r: 8": "mine.yaml line 3 is not YAML",
    "lora: {r: '${nothing}'}": "lora.r: interpolation key 'nothing' not found",
}


@pytest.mark.parametrize("text", YAML)
@pytest.mark.parametrize("flag", [[], ["--multirun"]], ids=["run", "multirun"])
def test_a_bad_experiment_of_the_users_ends_in_one_line(
    text: str, flag: list[str], launched: Launch, working_folder: Path
) -> None:
    folder = working_folder / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
    status, lines = launched(*flag, f"--config-dir={working_folder / 'mine'}", "experiment=mine")
    assert (status, len(lines)) == (2, 1)
    assert YAML[text] in lines[0]


@pytest.mark.parametrize("argument", ["lora.rnk=8,16", "optimizer=adamx,adamw", "lora.r=eight,8"])
def test_a_sweep_that_cannot_be_composed_starts_nothing(
    argument: str, launched: Launch, started: list[tuple[config.Run, Path]]
) -> None:
    status, lines = launched("--multirun", argument)
    assert (status, len(lines)) == (2, 1)
    assert started == []


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[config.Run, Planned, Path]]:
    """The cells that were run: nothing is trained, and each is finished at once."""
    done: list[tuple[config.Run, Planned, Path]] = []

    def record(run: config.Run, planned: Planned, sweep: Path, **_: Any) -> tuple[str, None]:
        done.append((run, planned, sweep))
        write_json(sweep / planned.folder / "result.json", {"status": "finished", "error": None})
        return "finished", None

    monkeypatch.setattr(sweeping, "run_cell", record)
    monkeypatch.setattr(sweeping, "SESSION", sweeping.Session())
    for told in ("_report", "_tell"):  # tests/study has what these make
        monkeypatch.setattr(sweeping.Session, told, lambda self: None)
    return done


def test_a_job_that_is_refused_does_not_stop_the_others_and_is_told_before_they_run(
    launched: Launch, cells: list[tuple[config.Run, Planned, Path]]
) -> None:
    status, lines = launched("--multirun", "lora.r=8,0,16", "seed=0,1")
    assert status == 2
    assert [(each.lora.r, each.seed) for each, *_ in cells] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert lines[:2] == [
        "error: lora.r=0 seed=0: lora.r must be at least 1, not 0",
        "error: lora.r=0 seed=1: lora.r must be at least 1, not 0",
    ]
    assert lines[2].startswith("4 cells in ")


def test_a_sweep_is_planned_by_variant_and_seed_in_a_folder_that_its_command_names(
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    working_folder: Path,
) -> None:
    assert launched("--multirun", "lora.r=16,8", "seed=0,1", "tracking=files")[0] == 0
    folder = working_folder / "runs/sweeps/multirun-lora.r=16_8"
    plan = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert plan["baseline"] == "lora.r=16"
    assert plan["seeds"] == [0, 1]
    assert [(each["variant"], each["seed"]) for each in plan["cells"]] == [
        ("lora.r=16", 0),
        ("lora.r=16", 1),
        ("lora.r=8", 0),
        ("lora.r=8", 1),
    ]
    for (run, planned, sweep), there in zip(cells, plan["cells"], strict=True):
        assert sweep == folder
        assert asdict(planned) == there
        assert f"lora.r={run.lora.r}" == planned.variant
    launched("--multirun", "lora.r=16,8", "seed=0,1,2", "tracking=wandb")
    assert cells[-1][2] == folder


@pytest.mark.parametrize("flag", ["--dry-run", "mode=plan"])
def test_a_dry_run_tells_the_plan_and_leaves_nothing_behind(
    flag: str,
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    working_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launched("--multirun", "lora.r=16,8", "seed=0,1", flag) == (0, [])
    assert cells == []
    assert not (working_folder / "runs").exists()


def test_a_dry_run_names_what_cannot_run(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first that can is the baseline: with another one gone that is a surprise."""
    command = ["train.py", "--multirun", "optimizer.lr=0,1e-3", "seed=0,1", "--dry-run"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 2
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("optimizer.lr=0 ")] != []
    assert "refused: optimizer.lr" in out


def test_a_baseline_that_drops_a_tip_is_told(launched: Launch, working_folder: Path) -> None:
    status, (line,) = launched(
        *("--multirun", "ablation=rank_8,sgd", "seed=0,1", "--dry-run"),
        "+sweep.tips.rank_8=16 rather than 8",
    )
    assert status == 0
    assert line.startswith("no claim will be judged: they are about the recipe, and the baseline")


def test_overrides_and_flags_may_stand_in_any_order(
    launched: Launch, cells: list[tuple[config.Run, Planned, Path]], working_folder: Path
) -> None:
    assert launched("lora.r=8", "--multirun", "seed=0,1", "tracking=files")[0] == 0
    assert [(run.lora.r, run.seed) for run, _, _ in cells] == [(8, 0), (8, 1)]


#: What makes no sense as a sweep, and what is said of it.
SENSELESS = {
    ("seed=0,1", "+sweep.tips.rnak_8=more"): "sweep.tips.rnak_8 names no variant: did you mean",
    ("seed=0,1", "sweep.factors=[rank_8,no_dropoutt]"): (
        "sweep.factors=no_dropoutt names no variant: did you mean no_dropout?"
    ),
    ("seed=0,1", "resume=runs/x"): "resume=runs/x has no effect on a sweep: its command goes on",
    ("hydra/launcher=ray", "seed=0,1"): "hydra/launcher=ray needs a plugin: docs/ray.md",
    ("hydra/launcher=ray_cluster", "seed=0,1"): "hydra/launcher=ray_cluster needs a plugin: docs/",
    ("seed=0,0",): "seed 0 of baseline is there twice",
    ("seed=0,1.5",): "seed must be a whole number, not 1.5",
    ("lora.r=16,16",): "is there twice",
    ("ablation=baseline,contrastive", "sweep.answers_primary=null"): "sweep.answers_primary=",
    ("ablation=baseline,contrastive", "sweep.answers_primary=exact/sqll"): "is not measured",
    ("lora.r=0,-1",): "no cell can run: lora.r must be at least 1",
    ("sweep.relevent=0.1", "seed=0,1"): "did you mean sweep.relevant?",
    ("evaluation.primary=loss/al", "seed=0,1"): "did you mean loss/all?",
}


@pytest.mark.parametrize("arguments", SENSELESS, ids=" ".join)
def test_a_sweep_that_makes_no_sense_ends_in_one_line_before_anything_runs(
    arguments: tuple[str, ...],
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
) -> None:
    if arguments[0].startswith("hydra/launcher=ray") and find_spec(
        "hydra_plugins.hydra_ray_launcher"
    ):
        pytest.skip("the plugin is installed")
    status, lines = launched("--multirun", *arguments)
    assert (status, len(lines)) == (2, 1)
    assert SENSELESS[arguments] in lines[0]
    assert cells == []


def test_a_second_sweep_in_one_folder_is_refused_while_the_first_runs(
    launched: Launch, cells: list[tuple[config.Run, Planned, Path]], working_folder: Path
) -> None:
    place = working_folder / "sweep"
    place.mkdir(parents=True)
    with locked(place / ".sweep", "not yet"):
        status, lines = launched("--multirun", "seed=0,1", "hydra.sweep.dir=sweep")
    assert (status, len(lines)) == (2, 1)
    assert "another sweep runs in sweep: wait for it, or give hydra.sweep.dir=FOLDER" in lines[0]
    assert cells == []


def test_a_plan_that_fails_in_any_way_runs_nothing(
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("seconds")

    monkeypatch.setattr(sweeping, "plan_study", fail)
    status, lines = launched("--multirun", "seed=0,1", "--dry-run")
    assert (status, lines) == (1, ["error: no plan: KeyError: 'seconds'"])
    assert cells == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("seeds=0",), "seeds must be at least 1, not 0"),
        (("lora.r=8,16", "seed=range(0,0)"), "the sweep has no cells"),
        (("sweep=none", "seeds=5"), "seeds=5 has no effect with axes of your own"),
        # Not that it has several values.
        (("sweep=none", "seed=0,1", "lora.r=abc"), "lora.r must be a whole number, not abc"),
        (("sweep=none", "seed=0,1", "trainer.nope=3"), "trainer.nope is no key of this config"),
    ],
    ids=" ".join,
)
def test_what_makes_no_study_is_refused(
    arguments: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cells: list[tuple[config.Run, Planned, Path]],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "hydra/launcher=basic", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "sweep.py"), run_name="__main__")
    assert left.value.code == 2
    assert told in capsys.readouterr().err
    assert cells == []


def test_a_variant_that_changes_nothing_is_left_out_and_told(
    launched: Launch, cells: list[tuple[config.Run, Planned, Path]], working_folder: Path
) -> None:
    arguments = ("ablation=baseline,no_dropout,rank_8", "lora.dropout=0.0")
    _, lines = launched("--multirun", *arguments)
    assert {planned.variant for _, planned, _ in cells} == {"baseline", "rank_8"}
    assert "left out: no_dropout: the same as baseline: it changes nothing" in lines
    assert "one seed: no effect will have an interval; seed=range(3) runs each with three" in lines
    (plan,) = working_folder.glob("runs/sweeps/*/sweep.json")
    left_out = json.loads(plan.read_text(encoding="utf-8"))["left_out"]
    assert left_out == {"no_dropout": "the same as baseline: it changes nothing"}


@pytest.mark.parametrize("argument", ["--dry-run", "sweep=tips", "sweep.relevant=0.1"])
def test_what_is_a_sweeps_is_refused_for_a_single_run(argument: str, launched: Launch) -> None:
    status, lines = launched(argument)
    assert (status, len(lines)) == (2, 1)
    assert "--multirun" in lines[0]


def test_a_run_gets_a_folder_that_holds_nothing_of_hydras(
    launched: Launch, started: list[tuple[config.Run, Path]], working_folder: Path
) -> None:
    assert launched("lora.r=4") == (0, [])
    ((run_config, folder),) = started
    assert run_config.lora.r == 4
    assert folder.parent == working_folder / "runs"
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_folder_that_holds_a_run_is_not_written_over(
    launched: Launch, started: list[tuple[config.Run, Path]]
) -> None:
    launched("hydra.run.dir=here")
    status, lines = launched("hydra.run.dir=here", "seed=1")
    assert status == 2
    (line,) = lines
    assert "here holds a run of another config, which differs in seed (0 there, 1 here):" in line
    assert line.endswith("continues it as it is, hydra.run.dir=FOLDER starts another one")
    status, lines = launched("hydra.run.dir=here", "lora.r=4", "seed=1", "optimizer=adafactor")
    assert status == 2
    assert "lora.r (16 there, 4 here), optimizer." in lines[0]
    assert "more: resume=here" in lines[0]
    assert len(started) == 1


def test_the_same_command_goes_on_with_the_run_in_its_folder(
    launched: Launch, started: list[tuple[config.Run, Path]]
) -> None:
    command = ("hydra.run.dir=here", "trainer=brief", "lora.r=4")
    assert launched(*command) == (0, [])
    assert launched(*command) == (0, [])
    assert launched(*command, "tracking=files", "trainer.checkpoint_steps=1") == (0, [])
    assert {folder.name for _, folder in started} == {"here"}
    assert started[0] == started[1]
    assert started[2][0].trainer.checkpoint_steps == 1
    (Path("here") / "result.json").write_text('{"status": "finished"}', encoding="utf-8")
    assert launched(*command) == (0, [])
    assert len(started) == 3


def test_hydra_full_error_gives_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "lora.r=0"])
    with pytest.raises(ValueError, match=r"lora\.r must be at least 1"):
        start()


# --- how a run ends -----------------------------------------------------------------------------


class DivergedError(Exception):
    pass


def stub_run(monkeypatch: pytest.MonkeyPatch, end: BaseException | str) -> None:
    """Put a run in place that ends with an exception or a status."""

    def run(run_config: config.Run, folder: Path) -> SimpleNamespace:
        config.save(run_config, folder / "config.yaml")
        if isinstance(end, BaseException):
            raise end
        return SimpleNamespace(status=Status(end))

    module = types.ModuleType("dollyllama.run")
    monkeypatch.setattr(module, "run", run, raising=False)
    fit = types.ModuleType("dollyllama.training.fit")
    monkeypatch.setattr(fit, "Diverged", DivergedError, raising=False)
    monkeypatch.setitem(sys.modules, "dollyllama.run", module)
    monkeypatch.setitem(sys.modules, "dollyllama.training.fit", fit)
    monkeypatch.setattr(preflight, "check", lambda run: None)


@pytest.mark.parametrize(
    ("end", "status", "lines"),
    [
        ("finished", 0, []),
        (ValueError("rows.jsonl line 3\nis not JSON"), 2, ["error: rows.jsonl line 3 is not JSON"]),
        (DivergedError("the loss is nan"), 1, ["error: the loss is nan"]),
        ("interrupted", 75, ["interrupted: python train.py resume=here goes on"]),
        (KeyboardInterrupt(), 75, ["interrupted: python train.py resume=here goes on"]),
    ],
    ids=["finished", "bad data", "diverged", "interrupted", "interrupted early"],
)
def test_a_runs_end_decides_status_and_line(
    end: BaseException | str,
    status: int,
    lines: list[str],
    launched: Launch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_run(monkeypatch, end)
    assert launched("hydra.run.dir=here") == (status, lines)


@pytest.mark.parametrize(("ends", "status"), [("failed", 1), ("diverged", 1), ("finished", 0)])
def test_a_cell_that_fails_does_not_stop_the_others_but_shows_in_the_status(
    ends: str,
    status: int,
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = []

    def end(run: config.Run, planned: Planned, sweep: Path, **_: Any) -> tuple[str, str]:
        seeds.append(run.seed)
        how = ends if run.seed == 0 else "finished"
        write_json(sweep / planned.folder / "result.json", {"status": how, "error": "no reason"})
        return how, "no reason"

    monkeypatch.setattr(sweeping, "run_cell", end)
    assert launched("--multirun", "seed=0,1")[0] == status
    assert seeds == [0, 1]


def test_the_first_cells_that_all_fail_of_one_error_end_the_sweep(
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = []

    def fail(run: config.Run, planned: Planned, sweep: Path, **_: Any) -> tuple[str, str]:
        seeds.append(run.seed)
        write_json(sweep / planned.folder / "result.json", {"status": "failed", "error": "alike"})
        return "failed", "alike"

    monkeypatch.setattr(sweeping, "run_cell", fail)
    assert launched("--multirun", "seed=range(6)", "sweep.fail_fast=2")[0] == 1
    assert seeds == [0, 1]
    # They are tried again when the sweep is, and all of them where that is wished.
    assert launched("--multirun", "seed=range(6)", "sweep.fail_fast=null")[0] == 1
    assert seeds == [0, 1, *range(6)]


def test_an_interrupt_stops_a_sweep(
    launched: Launch,
    cells: list[tuple[config.Run, Planned, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "run_cell", interrupt)
    status, lines = launched("--multirun", "seed=0,1")
    assert (status, lines[-1]) == (75, "interrupted: the same command goes on")


# --- resuming -----------------------------------------------------------------------------------


@pytest.fixture
def stopped(launched: Launch, started: list[tuple[config.Run, Path]]) -> Path:
    """A run that was started and has not finished."""
    launched("lora.r=4", "hydra.run.dir=stopped")
    started.clear()
    return Path("stopped")


def test_resume_goes_on_in_the_same_folder_with_the_same_config(
    stopped: Path,
    launched: Launch,
    started: list[tuple[config.Run, Path]],
    working_folder: Path,
) -> None:
    before = config.load(stopped / "config.yaml")
    assert launched("resume=stopped") == (0, [])
    assert started == [(before, stopped)]
    assert list((working_folder / "runs").iterdir()) == []


def test_resume_takes_other_tracking_and_nothing_else(
    stopped: Path, launched: Launch, started: list[tuple[config.Run, Path]]
) -> None:
    assert launched("resume=stopped", "tracking=files") == (0, [])
    assert started[0][0].tracking.wandb is config.WandbMode.disabled
    assert launched("resume=stopped", "tracking=wandb", "tracking.group=night") == (0, [])
    assert started[1][0].tracking.group == "night"
    free = ("trainer.checkpoint_steps=7", "trainer.keep_checkpoints=3")
    assert launched("resume=stopped", *free) == (0, [])
    assert started.pop()[0].trainer.checkpoint_steps == 7
    status, lines = launched("resume=stopped", "lora.r=8")
    assert status == 2
    assert "lora.r=8 would change the run" in lines[0]
    assert len(started) == 2


def test_resume_of_a_finished_run_says_so_and_does_nothing(
    stopped: Path,
    launched: Launch,
    started: list[tuple[config.Run, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (stopped / "result.json").write_text(json.dumps({"status": "finished"}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["train.py", "resume=stopped"])
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 0
    assert capsys.readouterr().out == "stopped is finished: there is nothing to resume\n"
    assert started == []


def test_resume_names_the_damaged_file(stopped: Path, launched: Launch) -> None:
    text = (stopped / "config.yaml").read_text(encoding="utf-8")
    (stopped / "config.yaml").write_text(text.replace("dropout", "droput"), encoding="utf-8")
    status, lines = launched("resume=stopped")
    assert status == 2
    assert lines[0] == (
        "error: stopped/config.yaml: lora.droput is no key of this config: "
        "did you mean lora.dropout?"
    )


# --- what answers at once -----------------------------------------------------------------------


def test_help_config_and_errors_import_nothing_heavy() -> None:
    code = f"""
import contextlib, io, runpy, sys
for argument in ("--help", "--cfg=job", "lora.r=0", "optimizer=adamx", "model.path=/nowhere"):
    sys.argv = ["train.py", argument]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            runpy.run_path("train.py", run_name="__main__")
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_help_shows_every_group_with_its_options(
    launched: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        start()
    text = capsys.readouterr().out
    for group in launch.groups():
        options = sorted(path.stem for path in (launch.CONF / group).glob("*.yaml"))
        assert f"{group}: {', '.join(options)}" in " ".join(text.split())
    assert "runs/" in text
