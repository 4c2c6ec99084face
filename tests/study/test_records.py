"""What is read from folders, and that no folder, however damaged, stops the reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from omegaconf import OmegaConf

from dollyllama.evaluation.suite import pass_at
from dollyllama.files import write_json, write_json_lines, write_text
from dollyllama.study.analyse import analyse
from dollyllama.study.page import page
from dollyllama.study.records import (
    Cell,
    CellStatus,
    Observation,
    differences,
    head_scores,
    measured_losses,
    measured_scores,
    read_sweep,
    recorded,
)
from tests.study import record as study_record


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    variants = {"baseline": {}, "rank_8": {"shift": 0.02, "settings": {"lora__r": 8}}}
    return study_record.write_sweep(tmp_path / "sweep", variants, seeds=(0, 1))


def cell_of(folder: Path) -> Cell:
    return read_sweep([folder])[1][0]


def test_a_sweep_names_its_cells(sweep: Path) -> None:
    plan, cells = read_sweep([sweep])
    assert (plan.baseline, plan.primary, plan.answers_primary) == (
        *("baseline", "loss/all", "score/all"),
    )
    assert [(cell.variant, cell.seed) for cell in cells] == [
        *(("baseline", 0), ("baseline", 1), ("rank_8", 0), ("rank_8", 1)),
    ]
    assert {cell.status for cell in cells} == {CellStatus.finished}
    assert plan.seeds == [0, 1]
    assert not plan.warnings


def test_a_planned_cell_without_a_folder_is_there(sweep: Path) -> None:
    shutil.rmtree(sweep / "rank_8.seed_1")
    cell = read_sweep([sweep])[1][-1]
    assert (cell.variant, cell.seed, cell.status) == ("rank_8", 1, CellStatus.planned)


def test_a_folder_outside_the_plan_is_named_and_left_out(sweep: Path) -> None:
    study_record.write_cell(sweep / "rank_4.seed_0", variant="rank_4")
    plan, cells = read_sweep([sweep])
    assert "rank_4" not in {cell.variant for cell in cells}
    assert plan.warnings == ["not in the plan of its sweep, left out: rank_4.seed_0"]
    for seed in (1, 2, 3, 4):
        study_record.write_cell(sweep / f"rank_4.seed_{seed}", variant="rank_4", seed=seed)
    named = "rank_4.seed_0, rank_4.seed_1, rank_4.seed_2 and 2 more"
    assert read_sweep([sweep])[0].warnings == [f"not in the plan of its sweep, left out: {named}"]


def test_order_and_repetition_of_folders_change_nothing(sweep: Path, tmp_path: Path) -> None:
    other = study_record.write_sweep(
        tmp_path / "other", {"baseline": {}, "rank_4": {"settings": {"lora__r": 4}}}, seeds=(0, 1)
    )
    once = read_sweep([sweep, other])
    assert read_sweep([other, sweep, sweep / "rank_8.seed_0", other]) == once
    # The baseline's cells have the same fingerprints in both.
    assert [(cell.variant, cell.seed) for cell in once[1]] == [
        *(("baseline", 0), ("baseline", 1), ("rank_4", 0), ("rank_4", 1)),
        *(("rank_8", 0), ("rank_8", 1)),
    ]


@pytest.mark.parametrize(
    ("shift", "told"), [(0.0, "with the same results"), (0.001, "1 of them with other results")]
)
def test_cells_of_two_machines_are_one_study(tmp_path: Path, shift: float, told: str) -> None:
    machines = {
        "east": ("rank_8", 8, (0, 1), 0.0, "2026-11-28"),
        "west": ("rank_4", 4, (1, 2), shift, "2026-11-29"),
    }
    folders = []
    for name, (variant, r, seeds, moved, day) in machines.items():
        own = {"shift": moved, "provenance": {"started": day, "machine": {"processor": name}}}
        variants = {"baseline": own, variant: {**own, "settings": {"lora__r": r}}}
        folders.append(study_record.write_sweep(tmp_path / name, variants, seeds=seeds))
    plan, cells = read_sweep(folders)
    assert [(each.variant, each.seed, each.folder.parent.name) for each in cells] == [
        *(("baseline", 0, "east"), ("baseline", 1, "west"), ("baseline", 2, "west")),
        *(("rank_4", 1, "west"), ("rank_4", 2, "west")),
        *(("rank_8", 0, "east"), ("rank_8", 1, "east")),
    ]
    assert plan.warnings == [
        f"cells that ran in several of the folders: 1, {told}"
        + (", as on another machine" if shift else "")
        + "; of each the latest counts, once"
    ]


def test_of_a_cell_in_two_sweeps_the_finished_one_counts(sweep: Path, tmp_path: Path) -> None:
    other = study_record.write_sweep(
        tmp_path / "a_copy", {"baseline": {"status": "failed", "error": "killed"}}, seeds=(0, 1)
    )
    _, cells = read_sweep([other, sweep])
    assert {cell.status for cell in cells} == {CellStatus.finished}


def test_a_repeated_run_is_told(tmp_path: Path) -> None:
    early = study_record.write_cell(tmp_path / "early")
    late = study_record.write_cell(tmp_path / "late", provenance={"started": "2027-01-01"})
    plan, cells = read_sweep([late, early])
    assert [cell.folder.name for cell in cells] == ["late"]
    assert "was run 2 times" in plan.warnings[0]


def test_plain_runs_are_called_by_what_differs_from_the_first(tmp_path: Path) -> None:
    first = study_record.write_cell(tmp_path / "z")
    second = study_record.write_cell(
        tmp_path / "a", settings={"lora__r": 8, "data__loss_on": "full_text"}
    )
    third = study_record.write_cell(tmp_path / "b", seed=1)
    plan, cells = read_sweep([first, second, third])
    assert plan.baseline == "baseline"
    assert plan.primary == study_record.config()["evaluation"]["primary"]
    assert {(cell.folder.name, cell.variant, cell.seed) for cell in cells} == {
        ("z", "baseline", 0),
        ("b", "baseline", 1),
        ("a", "data.loss_on=full_text, lora.r=8", 0),
    }
    chosen, _ = read_sweep([first, second], baseline="data.loss_on=full_text, lora.r=8")
    assert chosen.baseline == "data.loss_on=full_text, lora.r=8"


def test_a_folder_of_runs_is_read_like_its_runs(tmp_path: Path) -> None:
    runs = [
        study_record.write_cell(tmp_path / "multirun" / str(r), settings={"lora__r": r})
        for r in (4, 8)
    ]
    assert read_sweep([tmp_path / "multirun"])[1] == read_sweep(runs)[1]


def test_a_plain_run_with_a_variants_config_belongs_to_it(sweep: Path, tmp_path: Path) -> None:
    run = study_record.write_cell(tmp_path / "run", seed=7, settings={"lora__r": 8})
    _, cells = read_sweep([sweep, run])
    assert [cell.seed for cell in cells if cell.variant == "rank_8"] == [0, 1, 7]


def test_a_name_for_several_configs_is_told_apart(sweep: Path, tmp_path: Path) -> None:
    longer = study_record.write_sweep(
        tmp_path / "longer",
        {"baseline": {"settings": {"trainer__batch_size": 32}, "fingerprint": "f" * 16}},
        seeds=(0, 1, 2),
    )
    plan, cells = read_sweep([sweep, longer])
    names = {cell.variant for cell in cells}
    usual = study_record.config()["trainer"]["batch_size"]
    assert names == {
        f"baseline: trainer.batch_size={usual}",
        "baseline: trainer.batch_size=32",
        "rank_8",
    }
    # The one with more cells.
    assert plan.baseline == "baseline: trainer.batch_size=32"
    assert "baseline stands for several configs" in plan.warnings[0]
    chosen, _ = read_sweep([sweep, longer], baseline=f"baseline: trainer.batch_size={usual}")
    assert chosen.baseline == f"baseline: trainer.batch_size={usual}"
    assert not chosen.warnings


ROW = {"phase": "after", "source": "sql", "id": "a"}
ANSWER = {**ROW, "prompt": "?", "completion": "!", "reference": "!", "scores": {"exact": 1.0}}
CONFIG = {"seed": 1, "lora": {}, "trainer": {}, "evaluation": {}, "data": {"sources": {}}}
METRIC = {"name": "loss/all", "value": 0.5, "n": 40}

#: File -> what it must not hold; values are written as JSON, which YAML reads too.
DAMAGE: dict[str, list[Any]] = {
    "config.yaml": [
        *("", "a: [", "seed: 0\n", "- 1\n"),
        *({**CONFIG, "evaluation": None}, {**CONFIG, "evaluation": {"primary": 5}}),
        *({**CONFIG, "data": {"sources": {"x": None}}}, {**CONFIG, "seed": "one"}),
        {**CONFIG, "model": "a name"},
    ],
    "result.json": [
        *('{"status": "fin', "[]", '{"status": "asleep"}'),
        *({"status": "finished", "train": []}, {"status": "finished", "seconds": 5}),
        {"status": "finished", "train": {"seconds": "many"}},
        {"status": "finished", "metrics": [1]},
        {"status": "finished", "metrics": {"after": [{"name": "loss/all", "n": 40}]}},
        {"status": "finished", "metrics": {"after": [{**METRIC, "value": "low"}]}},
        {"status": "finished", "metrics": {"after": [{**METRIC, "name": None}]}},
    ],
    "provenance.json": ["{", {"packages": ["torch"]}, {"base_model": {"files": []}}],
    "data.json": ["{", {"sources": []}, {"sources": {"sql": {"digests": ["a"]}}}],
    "losses.jsonl": [
        '{"phase": "after", "loss": 1.0',
        '{"phase": "after", "loss": ' + "[" * 200_000,
        '{"phase": "after", "loss": NaN, "tokens": 3, "id": "a", "source": "sql"}',
        '{"phase": "after", "loss": 1.0, "tokens": 0, "id": "a", "source": "sql"}',
        '{"phase": "after", "loss": 1.0, "tokens": 3, "source": "sql"}',
        {**ROW, "loss": 10**400, "tokens": 3},
        ANSWER,
    ],
    "samples.jsonl": [
        *({**ANSWER, "scores": [1]}, {**ANSWER, "completion": None}, {**ROW, "scores": {}}),
        {**ROW, "loss": 1.0, "tokens": 3},
    ],
    "cell.json": ["{", "[]", {"variant": 5}, {"fingerprint": []}, {"seed": "one"}],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts]
)
def test_a_damaged_file_damages_its_cell_alone(sweep: Path, name: str, text: Any) -> None:
    line = text if isinstance(text, str) else json.dumps(text)
    write_text(sweep / "rank_8.seed_1" / name, line)
    _, cells = read_sweep([sweep])
    assert [str(cell.status) for cell in cells] == ["finished"] * 3 + ["damaged"]
    assert (cells[-1].variant, cells[-1].seed) == ("rank_8", 1)
    assert name in str(cells[-1].reason)
    assert page(analyse(*read_sweep([sweep])))


def test_rows_that_do_not_make_up_the_record_damage_a_cell(sweep: Path) -> None:
    """The run says how many examples it measured, and what came of them."""
    losses, samples = (sweep / "rank_8.seed_1" / f"{name}.jsonl" for name in ("losses", "samples"))
    whole = {path: path.read_text(encoding="utf-8") for path in (losses, samples)}
    halves = {path: "".join(text.splitlines(keepends=True)[:-5]) for path, text in whole.items()}
    rows = [json.loads(line) for line in whole[losses].splitlines()]
    other = [{**row, "loss": row["loss"] * (1 + 1e-5)} for row in rows]

    def reason() -> str | None:
        *others, cell = read_sweep([sweep])[1]
        assert {each.status for each in others} == {CellStatus.finished}
        assert cell.status is (CellStatus.damaged if cell.reason else CellStatus.finished)
        return cell.reason

    write_text(losses, halves[losses])
    expected = "losses.jsonl is damaged or missing: it holds 35 examples of loss/all where"
    assert str(reason()).startswith(expected)
    write_json_lines(losses, other)
    assert "losses.jsonl is damaged or missing: it does not add up to" in str(reason())
    write_text(losses, whole[losses])
    assert reason() is None
    write_text(samples, halves[samples])
    assert str(reason()).startswith("samples.jsonl is damaged or missing: it holds 5 examples of")
    rows = [json.loads(line) for line in whole[samples].splitlines()]
    first = rows[0]["scores"]
    rows[0]["scores"] = {name: 1 - value for name, value in first.items()}
    write_json_lines(samples, rows)
    assert "samples.jsonl is damaged or missing: it does not add up to" in str(reason())
    samples.unlink()
    losses.unlink()
    assert str(reason()).count("is damaged or missing: it holds 0 examples") == 2


def test_a_run_without_any_measurement_is_whole(sweep: Path) -> None:
    folder = sweep / "rank_8.seed_1"
    write_json(folder / "result.json", {"status": "finished", "metrics": {}})
    (folder / "losses.jsonl").unlink()
    (folder / "samples.jsonl").unlink()
    assert read_sweep([sweep])[1][-1].status is CellStatus.finished


def test_bytes_that_are_no_text_damage_a_cell(sweep: Path) -> None:
    (sweep / "rank_8.seed_1" / "samples.jsonl").write_bytes(b"\xff\xfe")
    assert read_sweep([sweep])[1][-1].status is CellStatus.damaged


def test_a_cell_without_a_result_is_running(sweep: Path) -> None:
    (sweep / "rank_8.seed_1" / "result.json").unlink()
    assert read_sweep([sweep])[1][-1].status is CellStatus.running


def test_how_a_cell_failed_is_kept(tmp_path: Path) -> None:
    folder = study_record.write_cell(tmp_path / "a", status="failed", error="killed:\nno memory")
    cell = cell_of(folder)
    assert (cell.status, cell.reason) == (CellStatus.failed, "killed: no memory")
    stopped = study_record.write_cell(tmp_path / "b", status="interrupted", error=None)
    assert cell_of(stopped).reason == "interrupted"


def test_a_curve_that_is_being_written_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    folder = study_record.write_cell(tmp_path / "a")
    write_text(
        folder / "metrics.jsonl",
        '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": NaN}\n'
        '{"step": 2, "loss/all": 1}\n{"step": 3, "train/loss": 1.5}\n{"step": 4, "train/l',
    )
    assert cell_of(folder).curve == [(1, 2.5), (3, 1.5)]


def test_the_config_is_what_omegaconf_reads(tmp_path: Path) -> None:
    for seed in (3, 4):
        folder = study_record.write_cell(tmp_path / str(seed), seed=seed)
        expected = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        assert cell_of(folder).config == expected
        assert cell_of(folder).seed == seed


def test_only_the_phase_after_training_counts(tmp_path: Path) -> None:
    folder = study_record.write_cell(tmp_path / "a")
    rows = study_record.losses(seed=0)
    write_json_lines(
        folder / "losses.jsonl", [{**row, "phase": "before", "loss": 99.0} for row in rows] + rows
    )
    cell = cell_of(folder)
    assert len(cell.losses) == len(rows)
    assert ratio(measured_losses(cell)["loss/all"]) == pytest.approx(recorded(cell)["loss/all"])


def ratio(found: Mapping[str, Observation]) -> float:
    return sum(each.total for each in found.values()) / sum(each.weight for each in found.values())


def test_what_was_measured_makes_up_the_recorded_metrics(tmp_path: Path) -> None:
    cell = cell_of(study_record.write_cell(tmp_path / "a"))
    found = {name: ratio(own) for name, own in measured_losses(cell).items()}
    found |= {name: fmean(own.values()) for name, own in measured_scores(cell).items()}
    values = recorded(cell)
    assert {name: found[name] for name in values} == pytest.approx(values)
    assert {"loss/all", "loss/sql"} <= measured_losses(cell).keys()
    assert {"score/all", "execution/sql", "tokens/sql"} <= measured_scores(cell).keys()
    assert "rep_2/sql" not in measured_scores(cell)


def test_several_answers_to_a_question_are_one_observation(tmp_path: Path) -> None:
    passed = [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    samples = [
        {"id": f"code/{number}", "source": "code", "scores": {"passes": score}}
        for number, own in enumerate(passed)
        for score in own
    ]
    cell = replace(cell_of(study_record.write_cell(tmp_path / "a")), samples=samples)
    assert list(measured_scores(cell)["passes/code"].values()) == [0.4, 0.2]
    expected = {metric.name: metric.value for metric in pass_at("code", passed)}
    assert expected.keys() == {"pass@1/code", "pass@5/code"}
    for name, value in expected.items():
        assert fmean(measured_scores(cell)[name].values()) == pytest.approx(value)


def test_head_scores_are_the_graders_first(tmp_path: Path) -> None:
    cell = cell_of(study_record.write_cell(tmp_path / "a"))
    assert head_scores([cell]) == ["parses/code", "f1/dolly", "exact/maths", "execution/sql"]


def test_differences_name_keys_and_values() -> None:
    ours = {"lora": {"r": 8, "bias": None}, "data": {"sources": {"sql": {"weight": 0}}}}
    theirs = {"lora": {"r": 16, "bias": None}, "data": {"sources": {}}, "seed": [1, 2]}
    assert differences(ours, theirs) == {
        "data.sources.sql.weight": "0",
        "lora.r": "8",
        "seed": "absent",
    }


def test_sweeps_that_disagree_are_told(sweep: Path, tmp_path: Path) -> None:
    other = study_record.write_sweep(
        tmp_path / "other", {"baseline": {}}, primary="loss/sql", tips={"rank_8": "more is better"}
    )
    plan, _ = read_sweep([sweep, other])
    assert plan.primary == "loss/sql"  # "other" comes before "sweep"
    assert plan.tips == {"rank_8": "more is better"}
    assert any("differ in primary: loss/sql, loss/all" in line for line in plan.warnings)


def test_what_cannot_be_read_at_all_is_refused_in_one_line(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        read_sweep([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no sweep and no run"):
        read_sweep([tmp_path / "empty"])
    with pytest.raises(ValueError, match="there is no variant rank_9 to be the baseline: there a"):
        read_sweep([sweep], baseline="rank_9")
    with pytest.raises(ValueError, match="there is no folder"):
        read_sweep([])


def test_what_is_chosen_afterwards_is_told(sweep: Path, tmp_path: Path) -> None:
    plan = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    write_json(sweep / "sweep.json", {**plan, "tips": {"rank_8": "16 is better"}})
    assert read_sweep([sweep], baseline="baseline", primary="loss/all")[0].warnings == []
    chosen, _ = read_sweep([sweep], baseline="rank_8", primary="loss/sql")
    # The claim is made against the plan's baseline.
    assert chosen.tips == {}
    assert chosen.warnings == [
        "chosen after the cells were run: the baseline rank_8 and the metric loss/sql",
        "the claims of sweep are not judged: they are made against another baseline than rank_8",
    ]
    run = study_record.write_cell(tmp_path / "run")
    own = study_record.config()["evaluation"]["primary"]
    assert read_sweep([run], primary=own)[0].warnings == []
    assert "the metric loss/sql" in read_sweep([run], primary="loss/sql")[0].warnings[0]


def test_merged_sweeps_keep_their_claims_and_the_baselines_plan(tmp_path: Path) -> None:
    """A variant's name may stand for several configs; its claim goes with each that is tested."""
    sweeps = []
    for name, size, ranks in (("a_long", 32, (8, 9)), ("short", 8, (8,)), ("z_short", 8, (9,))):
        settings = {"trainer__batch_size": size}
        variants = {"baseline": {"settings": settings}}
        variants |= {f"rank_{r}": {"settings": {**settings, "lora__r": r}} for r in ranks}
        seeds = (0,) if name == "a_long" else (0, 1)
        sweeps.append(
            study_record.write_sweep(
                tmp_path / name,
                variants,
                seeds=seeds,
                tips={f"rank_{r}": f"{r} is too few" for r in ranks},
                budget=f"batches of {size}",
                relevant=size / 100,
                primary="loss/all" if size == 8 else "loss/sql",
            )
        )
    plan, _ = read_sweep(sweeps)
    assert plan.baseline == "baseline: trainer.batch_size=8"
    assert plan.tips == {
        "rank_8: trainer.batch_size=8": "8 is too few",
        "rank_9: trainer.batch_size=8": "9 is too few",
    }
    assert (plan.budget, plan.relevant, plan.primary) == ("batches of 8", 0.08, "loss/all")
    assert any(line.startswith("the claims of a_long are not judged") for line in plan.warnings)


ROWS = [{"folder": "rank_8.seed_0", "variant": "rank_8", "seed": 0}]


@pytest.mark.parametrize(
    "plan",
    [
        *("{", "[]", {}, {"cells": []}, {"cells": {}}, {"cells": [{"seed": 0}]}, {"cells": [1]}),
        *({"cells": [{**ROWS[0], "folder": None}]}, {"cells": ROWS, "relevant": "much"}),
        *({"cells": ROWS, "tips": ["rank_8"]}, {"cells": ROWS, "better": {"rank_8": 3}}),
        *({"cells": ROWS, "factors": "a"}, {"cells": ROWS, "command": [1]}),
        *({"cells": ROWS, "baseline": 5}, {"cells": ROWS, "left_out": []}),
        *({"cells": [{**ROWS[0], "folder": name}]} for name in ("../private", "/etc", "..", "")),
        '{"cells":' + "[" * 200_000,
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(sweep: Path, plan: Any) -> None:
    write_text(sweep / "sweep.json", plan if isinstance(plan, str) else json.dumps(plan))
    with pytest.raises(ValueError, match=r"sweep\.json is damaged: .+") as refused:
        read_sweep([sweep])
    assert "\n" not in str(refused.value)


def test_cells_alone_name_a_study_too(sweep: Path) -> None:
    """A run folder of a sweep keeps its name where the sweep's plan is not there."""
    (sweep / "sweep.json").unlink()
    plan, cells = read_sweep([sweep])
    assert plan.baseline == "baseline"
    assert {cell.variant for cell in cells} == {"baseline", "rank_8"}
    write_json(sweep / "rank_8.seed_0" / "cell.json", {"variant": "mine"})
    assert {cell.variant for cell in read_sweep([sweep])[1]} == {"baseline", "rank_8", "mine"}
