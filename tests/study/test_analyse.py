"""The study's numbers against the same numbers worked out from the rows by other means."""

from __future__ import annotations

import json
import random
import shutil
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dollyllama.files import read_json_lines, write_json, write_json_lines
from dollyllama.study import wording
from dollyllama.study.analyse import (
    Comparison,
    Standing,
    Study,
    Variant,
    analyse,
    cost,
    direction,
    ranked,
)
from dollyllama.study.compare import Effect, Verdict, detectable, with_shared_luck
from dollyllama.study.records import read_sweep
from tests.study import record as study_record

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "attention_only": {"shift": 0.2, "settings": {"lora__target_modules": ["q_proj"]}},
    "rank_8": {"shift": 0.001, "settings": {"lora__r": 8}},
    "rank_32": {"shift": -0.2, "settings": {"lora__r": 32}},
    "rank_4": {"shift": 0.0005, "settings": {"lora__r": 4}},
    "nucleus": {
        "chance": 0.3,
        "trained_by": "baseline.seed_0",
        "settings": {"decoding__strategy": "nucleus"},
    },
}
TIPS = {"attention_only": "adapt all linear layers", "rank_32": "16 is rank enough"}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return study_record.write_sweep(tmp_path / "sweep", VARIANTS, tips=TIPS)


def study_of(*folders: Path, **choices: str) -> Study:
    return analyse(*read_sweep(folders, **choices))


def named(study: Study, name: str) -> Variant:
    return next(each for each in study.variants if each.name == name)


def primary(study: Study, name: str) -> Comparison:
    comparison = named(study, name).comparison
    assert comparison is not None
    return comparison


def loss_of(folder: Path) -> float:
    rows = read_json_lines(folder / "losses.jsonl")
    return float(sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows))


def test_an_effect_is_the_mean_difference_of_paired_cells(sweep: Path) -> None:
    comparison = primary(study_of(sweep), "rank_8")
    expected = fmean(
        loss_of(sweep / f"rank_8.seed_{seed}") - loss_of(sweep / f"baseline.seed_{seed}")
        for seed in range(3)
    )
    assert comparison.effect is not None
    assert comparison.effect.value == pytest.approx(expected, rel=1e-9)
    assert (comparison.effect.seeds, comparison.effect.examples) == (3, 40)
    baseline = fmean(loss_of(sweep / f"baseline.seed_{seed}") for seed in range(3))
    assert comparison.baseline == pytest.approx(baseline)
    assert comparison.relevant == pytest.approx(0.02 * baseline)


def test_whose_training_an_adapter_is_decides_nothing(tmp_path: Path) -> None:
    """Of cells that share an adapter the first that runs trains it, and that may be any of them."""
    swapped = {
        **VARIANTS,
        "baseline": {"trained_by": "nucleus.seed_0"},
        "nucleus": VARIANTS["nucleus"] | {"trained_by": None},
    }
    study = study_of(study_record.write_sweep(tmp_path / "sweep", swapped))
    assert primary(study, "nucleus").metric == "score/all"
    assert primary(study, "rank_8").metric == "loss/all"
    baseline, nucleus = named(study, "baseline"), named(study, "nucleus")
    assert baseline.decides == "loss/all"
    assert baseline.costs["training_seconds"].n == 3
    assert "training_seconds" not in nucleus.costs
    assert "evaluation_seconds" in nucleus.costs
    # A sum over cells counts each training once.
    assert [cost(cell, "training_seconds") for cell in baseline.cells] == [None] * 3
    assert [cost(cell, "training_seconds") for cell in nucleus.cells] == [60.0, 61.0, 62.0]
    assert len(nucleus.cells[0].curve) == 24
    assert baseline.cells[0].curve == nucleus.cells[0].curve


def test_a_seed_that_the_baseline_lacks_changes_no_metric_that_decides(tmp_path: Path) -> None:
    sweep = study_record.write_sweep(tmp_path / "sweep", VARIANTS)
    extra = tmp_path / "extra"
    study_record.write_sweep(extra, {"nucleus": VARIANTS["nucleus"]}, seeds=(3,))
    for folder in (sweep, extra):  # training depends on the seed, as in a real sweep
        for file in folder.glob("*/cell.json"):
            about = json.loads(file.read_text(encoding="utf-8"))
            write_json(file, about | {"training": f"{about['training']} {about['seed']}"})
    study = study_of(sweep, extra, baseline="baseline")
    assert [cell.seed for cell in named(study, "nucleus").cells] == [0, 1, 2, 3]
    assert primary(study, "nucleus").metric == "score/all"
    assert primary(study, "rank_8").metric == "loss/all"


def test_interactions_share_luck_within_their_metric_alone(tmp_path: Path) -> None:
    answering = {"trained_by": "baseline.seed_0"}
    variants: dict[str, dict[str, Any]] = {
        "baseline": {},
        "a": {"shift": 0.05, "settings": {"lora__r": 2}},
        "b": {"shift": 0.08, "settings": {"lora__r": 3}},
        "a+b": {"shift": 0.33, "settings": {"lora__r": 4}},
    }
    alone = study_of(study_record.write_sweep(tmp_path / "alone", variants)).joint
    variants["d"] = {"settings": {"decoding__strategy": "nucleus"}, "chance": 0.6, **answering}
    variants["a+d"] = {
        "shift": 0.05,
        "chance": 0.9,
        "settings": {"lora__r": 2, "decoding__strategy": "nucleus"},
        "trained_by": "a.seed_0",
    }
    joint = study_of(study_record.write_sweep(tmp_path / "both", variants)).joint
    assert {(each.variant, each.metric) for each in joint} == {
        ("a × b", "loss/all"),
        ("a × d", "score/all"),
    }
    (own,) = [each for each in joint if each.variant == "a × b"]
    assert own.effect == alone[0].effect


@pytest.mark.parametrize(
    ("shift", "standing"),
    [(-0.5, Standing.unknown), (0.0, Standing.unknown), (0.5, Standing.worse)],
)
def test_seeds_that_diverged_are_an_outcome(
    tmp_path: Path, shift: float, standing: Standing
) -> None:
    variants = {"baseline": {}, "rank_8": {"shift": shift, "settings": {"lora__r": 8}}}
    sweep = study_record.write_sweep(
        tmp_path / "sweep", variants, seeds=range(5), tips={"rank_8": "rank 16"}
    )
    for seed in (3, 4):
        path = sweep / f"rank_8.seed_{seed}"
        study_record.write_cell(
            path,
            variant="rank_8",
            seed=seed,
            settings={"lora__r": 8},
            status="diverged",
            error="NaN",
        )
    study = study_of(sweep)
    comparison = primary(study, "rank_8")
    assert comparison.standing is standing
    assert (comparison.effect is None) is (shift <= 0)
    (line,) = wording.tip_lines(study)
    assert "2 of 5 seeds diverged" in line
    assert "contradicted" not in line
    assert "not supported" not in line


def test_a_cells_curve_is_read_from_no_folder_but_one_beside_it(tmp_path: Path) -> None:
    study_record.write_cell(tmp_path / "outside", variant="baseline")
    for trained_by in ("../outside", "..", ""):
        variants = {"baseline": {"trained_by": trained_by}}
        shutil.rmtree(tmp_path / "sweep", ignore_errors=True)
        study = study_of(study_record.write_sweep(tmp_path / "sweep", variants))
        assert named(study, "baseline").cells[0].curve == []


def test_claims_about_the_recipe_are_not_judged_against_another(sweep: Path) -> None:
    rewrite_plan(sweep, baseline="rank_32")
    study = study_of(sweep)
    assert study.plan.baseline == "rank_32"
    assert [each.name for each in study.variants if each.tip] == []
    assert any("no claim is judged: the baseline, rank_32" in line for line in study.warnings)


def test_what_is_to_decide_is_named_before_the_cells_are_run(sweep: Path) -> None:
    first = {"primary": "loss/all", "answers_primary": "score/all", "relevant": 0.02}
    rewrite_plan(sweep, judged_first=first)
    assert not any("chosen after" in line for line in study_of(sweep).warnings)
    rewrite_plan(sweep, primary="f1/dolly", relevant=0.9)
    (line,) = [line for line in study_of(sweep).warnings if "chosen after" in line]
    assert "the metric f1/dolly in place of loss/all" in line
    assert "the share that matters, 0.9 in place of 0.02" in line


def test_a_baseline_and_claims_that_are_chosen_later_are_told(sweep: Path) -> None:
    first = {"baseline": "baseline", "tips": TIPS, "better": {}}
    rewrite_plan(sweep, judged_first=first)
    assert not any("chosen after" in line for line in study_of(sweep).warnings)
    rewrite_plan(sweep, baseline="rank_4", better={"rank_8": "foo"})
    (line,) = [line for line in study_of(sweep).warnings if "chosen after" in line]
    assert "the baseline rank_4 in place of baseline" in line
    assert "what is claimed of rank_8" in line


def test_seeds_that_were_added_later_are_told(sweep: Path) -> None:
    rewrite_plan(sweep, judged_first={"seeds": [0, 1, 2]})
    assert not any("seeds added" in line for line in study_of(sweep).warnings)
    rewrite_plan(sweep, judged_first={"seeds": [0]})
    (line,) = [line for line in study_of(sweep).warnings if "seeds added" in line]
    assert "finished: 1, 2;" in line


def test_with_a_relevant_share_of_nothing_everything_matters(sweep: Path) -> None:
    rewrite_plan(sweep, relevant=0.0)
    assert primary(study_of(sweep), "rank_8").relevant == 0.0


def rewrite_plan(sweep: Path, **changes: Any) -> None:
    path = sweep / "sweep.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def test_sources_weigh_the_same_in_the_overall_score(sweep: Path) -> None:
    """Also where one of them has fewer answers."""
    heads = {source: scores[0] for source, scores in study_record.SOURCES.items()}
    means = []
    for folder in sweep.glob("*.seed_*"):
        rows = read_json_lines(folder / "samples.jsonl")
        few = {row["id"] for row in rows if row["source"] == "sql"}
        few = set(sorted(few)[:3])
        write_json_lines(
            folder / "samples.jsonl",
            [row for row in rows if row["source"] != "sql" or row["id"] in few],
        )
        study_record.measure_again(folder)
    for seed in range(3):
        scores = {}
        for name in ("nucleus", "baseline"):
            rows = read_json_lines(sweep / f"{name}.seed_{seed}" / "samples.jsonl")
            scores[name] = fmean(
                fmean(row["scores"][head] for row in rows if row["source"] == source)
                for source, head in heads.items()
            )
        means.append(scores["nucleus"] - scores["baseline"])
    comparison = primary(study_of(sweep), "nucleus")
    assert comparison.metric == "score/all"
    assert comparison.effect is not None
    assert comparison.effect.value == pytest.approx(fmean(means), rel=1e-9)
    assert comparison.effect.examples == 33


def test_swapping_baseline_and_variant_negates(sweep: Path) -> None:
    """Of two; in a larger study the value alone, as other comparisons share their luck then."""
    left = primary(study_of(sweep), "rank_8").effect
    right = primary(study_of(sweep, baseline="rank_8"), "baseline").effect
    assert left is not None
    assert right is not None
    assert left.value == -right.value
    one = pair(sweep, "rank_8")
    other = pair(sweep, "baseline", baseline="rank_8")
    assert one is not None
    assert other is not None
    assert other.low is not None
    assert (one.value, one.high, one.p) == (-other.value, -other.low, other.p)


def test_the_order_of_cells_changes_nothing(sweep: Path) -> None:
    plan, cells = read_sweep([sweep])
    shuffled = list(cells)
    random.Random(3).shuffle(shuffled)
    assert shuffled != cells
    assert analyse(plan, shuffled) == analyse(plan, cells)


def test_p_values_are_corrected_over_the_claims_and_over_the_other_variants(sweep: Path) -> None:
    study = study_of(sweep)
    assert {variant.tip is None for variant in study.variants if variant.comparison} == {
        True,
        False,
    }
    for claims in (True, False):
        family = [
            variant.comparison
            for variant in study.variants
            if variant.comparison and (variant.tip is not None) is claims
        ]
        raw = sorted(each.effect.p for each in family if each.effect and each.effect.p)
        corrected = sorted(each.corrected_p for each in family if each.corrected_p)
        assert len(raw) == len(family)
        # Holm: the smallest times how many there are, the next times one fewer, never falling;
        # twice that, since two families share the 5 %.
        expected: list[float] = []
        for rank, p in enumerate(raw):
            expected.append(max([min(1.0, 2 * p * (len(raw) - rank)), *expected]))
        assert corrected == pytest.approx(expected)
    every = [each for variant in study.variants for each in variant.exploratory]
    assert {each.metric for each in every} >= {"loss/sql", "execution/sql", "score/all"}
    assert all(each.corrected_p is None and each.verdict is None for each in every)


def test_planted_effects_are_found_and_judged(sweep: Path) -> None:
    study = study_of(sweep)
    assert primary(study, "attention_only").standing is Standing.worse
    assert primary(study, "attention_only").verdict is Verdict.supported
    assert primary(study, "rank_32").standing is Standing.better
    assert primary(study, "rank_32").verdict is Verdict.contradicted
    assert named(study, "rank_32").tip == "16 is rank enough"
    assert named(study, "rank_8").tip is None


def test_a_claim_that_a_variant_follows_is_judged_the_other_way(tmp_path: Path) -> None:
    better = {"rank_32": "more rank helps", "attention_only": "attention is enough"}
    study = study_of(study_record.write_sweep(tmp_path, VARIANTS, better=better))
    assert primary(study, "rank_32").verdict is Verdict.supported
    assert primary(study, "attention_only").verdict is Verdict.contradicted
    assert wording.finding(named(study, "rank_32")).startswith("with it loss/all is lower by 0.")
    # A variant without a claim reads as one that drops it.
    assert wording.verdict(named(study, "rank_8")) == "no difference detected"


def test_variants_that_were_also_run_together_are_tested_for_interaction(tmp_path: Path) -> None:
    shifts = {"baseline": 0.0, "a": 0.05, "b": 0.08, "a+b": 0.33, "a+b+c": 0.5, "x+y": 0.1}
    variants = {
        name: {"shift": shift, "settings": {"lora__r": place + 1}}
        for place, (name, shift) in enumerate(shifts.items())
    }
    sweep = study_record.write_sweep(tmp_path / "sweep", variants)
    (found,) = study_of(sweep).joint
    expected = fmean(
        loss_of(sweep / f"a+b.seed_{seed}")
        - loss_of(sweep / f"a.seed_{seed}")
        - loss_of(sweep / f"b.seed_{seed}")
        + loss_of(sweep / f"baseline.seed_{seed}")
        for seed in range(3)
    )
    assert (found.variant, found.metric, found.standing) == ("a × b", "loss/all", Standing.worse)
    assert found.effect is not None
    assert found.effect.value == pytest.approx(expected, rel=1e-9)
    assert found.effect.value == pytest.approx(0.2, abs=0.03)
    assert found.effect.p is not None
    assert found.corrected_p == 2 * found.effect.p  # one of two families, each with half of the 5 %


def test_a_product_of_axes_tells_interactions(tmp_path: Path) -> None:
    shifts = {(8, 1): 0.0, (16, 1): 0.05, (8, 2): 0.08, (16, 2): 0.33, (32, 1): 0.1}
    variants = {
        f"lora.r={r}+optimizer.lr={lr}": {
            "shift": shift,
            "settings": {"lora__r": r, "optimizer__lr": float(lr)},
        }
        for (r, lr), shift in shifts.items()
    }
    sweep = study_record.write_sweep(
        tmp_path / "sweep", variants, baseline="lora.r=8+optimizer.lr=1"
    )
    (found,) = study_of(sweep).joint
    assert (found.variant, found.standing) == ("lora.r=16 × optimizer.lr=2", Standing.worse)
    assert found.effect is not None
    assert found.effect.value == pytest.approx(0.2, abs=0.03)


def factorial(tmp_path: Path) -> Path:
    """a costs 0.1, b 0.2, c nothing; a and b together 0.3 on top."""
    names = ["+".join(each) for size in range(4) for each in combinations(["a", "b", "c"], size)]
    variants: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        a, b = "a" in name, "b" in name
        shift = 0.1 * a + 0.2 * b + 0.3 * (a and b)
        variants[name or "baseline"] = {"shift": shift, "settings": {"lora__r": place + 1}}
    return study_record.write_sweep(tmp_path / "sweep", variants, factors=["a", "b", "c"])


def test_a_factorial_design_tells_main_effects_and_interactions(tmp_path: Path) -> None:
    study = study_of(factorial(tmp_path))
    found = {each.variant: each for each in study.joint}
    # Averaged over the other factors: half of what a does together with b belongs to each.
    expected = {"a": 0.25, "b": 0.35, "c": 0.0, "a × b": 0.3, "a × c": 0.0, "b × c": 0.0}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        effect = found[name].effect
        assert effect is not None
        assert effect.value == pytest.approx(value, abs=0.03), name
    assert found["a × b"].standing is Standing.worse
    assert found["c"].standing is Standing.no_difference
    assert not study.warnings


def test_a_design_is_of_its_own_sweeps_variants(tmp_path: Path) -> None:
    """Those of another sweep, of a half factorial say, are no part of it."""
    alone = factorial(tmp_path / "whole")
    other = study_record.write_sweep(
        tmp_path / "tips", {"baseline": {}, "b": {"shift": 0.9}, "d": {"settings": {"lora__r": 99}}}
    )
    apart, together = study_of(alone).joint, study_of(alone, other).joint
    assert [each.variant for each in together] == ["a", "b", "c", "a × b", "a × c", "b × c"]
    for ours, theirs in zip(together, apart, strict=True):
        assert ours.effect is not None
        assert theirs.effect is not None
        assert ours.effect.value == pytest.approx(theirs.effect.value, abs=1e-12)


def test_an_unfinished_design_says_so(tmp_path: Path) -> None:
    sweep = factorial(tmp_path)
    for folder in sweep.glob("a+c.*"):
        shutil.rmtree(folder)
    study = study_of(sweep)
    assert study.joint == []
    assert study.warnings == ["the factorial design has runs without a result: no main effects yet"]


def test_within_the_noise_there_is_no_ranking(sweep: Path) -> None:
    study = study_of(sweep)
    groups = {standing: [each.name for each in own] for standing, own in ranked(study)}
    assert groups == {
        Standing.worse: ["attention_only"],
        Standing.better: ["rank_32"],
        Standing.no_difference: ["nucleus", "rank_4", "rank_8"],
    }
    assert all((primary(study, name).detectable or 0) > 0 for name in ("rank_4", "rank_8"))


def test_clear_effects_go_by_size(tmp_path: Path) -> None:
    shifts = {"a": 0.1, "b": 0.3, "c": 0.2}
    variants = {"baseline": {}} | {
        name: {"shift": shift, "settings": {"lora__r": place + 1}}
        for place, (name, shift) in enumerate(shifts.items())
    }
    (_, worse), *rest = ranked(study_of(study_record.write_sweep(tmp_path, variants)))
    assert [each.name for each in worse] == ["b", "c", "a"]
    assert not rest


def test_only_pairs_of_seeds_are_compared(sweep: Path) -> None:
    shutil.rmtree(sweep / "rank_8.seed_1")
    study_record.write_cell(
        sweep / "rank_4.seed_2",
        variant="rank_4",
        seed=2,
        status="failed",
        error="killed",
        settings={"lora__r": 4},
    )
    study = study_of(sweep)
    expected = fmean(
        loss_of(sweep / f"rank_8.seed_{seed}") - loss_of(sweep / f"baseline.seed_{seed}")
        for seed in (0, 2)
    )
    effect = primary(study, "rank_8").effect
    assert effect is not None
    assert effect.seeds == 2
    assert effect.value == pytest.approx(expected, rel=1e-9)
    assert "rank_8 lacks seed 1 (planned): 2 pairs compared" in study.warnings
    assert "rank_4 lacks seed 2 (failed): 2 pairs compared" in study.warnings


def test_only_shared_examples_are_compared(sweep: Path) -> None:
    for seed in range(3):
        path = sweep / f"rank_8.seed_{seed}" / "losses.jsonl"
        rows = read_json_lines(path)
        for row in rows[:4]:
            row["id"] = f"new{row['id']}"
        write_json_lines(path, rows)
    study = study_of(sweep)
    comparison = primary(study, "rank_8")
    assert comparison.effect is not None
    assert (comparison.effect.examples, comparison.unpaired) == (36, 8)
    assert any(line.startswith("rank_8 was measured on other held-out") for line in study.warnings)


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    variants = {"baseline": {}, "rank_8": {"shift": 0.5, "settings": {"lora__r": 8}}}
    study = study_of(study_record.write_sweep(tmp_path, variants, seeds=(0,)))
    comparison = primary(study, "rank_8")
    assert comparison.effect is not None
    assert comparison.effect.value == pytest.approx(0.5, abs=0.1)
    assert comparison.effect.low is None
    assert comparison.corrected_p is None
    assert comparison.standing is Standing.unknown
    assert any("the baseline has one seed" in line for line in study.warnings)


def test_a_study_without_its_baseline_says_so(sweep: Path) -> None:
    for seed in range(3):
        shutil.rmtree(sweep / f"baseline.seed_{seed}")
    study = study_of(sweep)
    assert {each.missing for each in study.comparisons} == {"the baseline has no finished cell"}
    assert study.warnings[0].startswith("no cell of the baseline, baseline, is finished")
    assert [standing for standing, _ in ranked(study)] == [Standing.unknown]


def test_a_metric_that_was_not_measured_cannot_be_paired(sweep: Path) -> None:
    for folder in sweep.glob("rank_8.*"):
        write_json_lines(folder / "losses.jsonl", [])
        study_record.measure_again(folder)
    comparison = primary(study_of(sweep), "rank_8")
    assert comparison.missing == "loss/all was not measured example by example"


def test_a_truncated_file_costs_its_seed_alone(sweep: Path) -> None:
    """Not the metric, and not the other seeds."""
    before = named(study_of(sweep), "rank_4")
    path = sweep / "rank_8.seed_1" / "losses.jsonl"
    write_json_lines(path, read_json_lines(path)[:20])
    study = study_of(sweep)
    assert pair(sweep, "rank_8") == without_seed_1(sweep, "rank_8")
    assert "rank_8 lacks seed 1 (damaged): 2 pairs compared" in study.warnings
    values = [effect_values(variant) for variant in (before, named(study, "rank_4"))]
    assert values[0] == values[1]
    # Of the baseline it costs every variant that seed, and nothing more.
    path = sweep / "baseline.seed_2" / "losses.jsonl"
    path.unlink()
    effect = primary(study_of(sweep), "rank_4").effect
    assert effect is not None
    assert (effect.seeds, effect.examples) == (2, 40)


def effect_values(variant: Variant) -> list[tuple[str, float, int]]:
    """Of its other metrics, less what the luck of other variants says of them."""
    return [
        (each.metric, each.effect.value, each.effect.seeds)
        for each in variant.exploratory
        if each.effect is not None
    ]


def test_variants_that_train_share_their_luck(sweep: Path) -> None:
    """By metric; those that only answer in another way, with an adapter of another's, do not."""
    study = study_of(sweep)
    trained = ["attention_only", "rank_32", "rank_4", "rank_8"]
    alone = [pair(sweep, name) for name in trained]
    shared = with_shared_luck([each for each in alone if each is not None])
    for name, own, expected in zip(trained, alone, shared, strict=True):
        found = primary(study, name).effect
        assert found is not None
        assert (found.low, found.p, found.lenders) == (expected.low, expected.p, expected.lenders)
        assert found != own
        # Two families share the 5 %: two claims, and three other variants.
        alpha = 0.05 / 2 / (2 if name in TIPS else 3)
        assert primary(study, name).detectable == pytest.approx(detectable(expected, alpha=alpha))
    assert {each.lenders for each in shared} == {3}
    assert primary(study, "nucleus").effect == pair(sweep, "nucleus")
    other = next(
        each for each in named(study, "rank_8").exploratory if each.metric == "loss/sql"
    ).effect
    assert other is not None
    assert other.lenders == 3


def without_seed_1(sweep: Path, name: str) -> Effect | None:
    return pair(sweep, name, seeds=(0, 2))


def pair(
    sweep: Path, name: str, *, baseline: str = "baseline", seeds: tuple[int, ...] = (0, 1, 2)
) -> Effect | None:
    """The effect in a study of these two alone, where nobody else has a say in it."""
    plan, cells = read_sweep([sweep], baseline=baseline)
    own = [cell for cell in cells if cell.variant in (name, baseline) and cell.seed in seeds]
    return primary(analyse(plan, own), name).effect


def test_a_seed_that_lacks_a_metric_is_left_out_of_it_alone(sweep: Path) -> None:
    folder = sweep / "rank_8.seed_1"
    write_json_lines(folder / "losses.jsonl", [])
    study_record.measure_again(folder)
    study = study_of(sweep)
    assert pair(sweep, "rank_8") == without_seed_1(sweep, "rank_8")
    other = {each.metric: each.effect for each in named(study, "rank_8").exploratory}
    score = other["score/all"]
    assert score is not None
    assert score.seeds == 3
    assert "rank_8 has no loss/all for seed 1: left out of it" in study.warnings


def test_a_length_is_neither_better_nor_worse(sweep: Path) -> None:
    """Of a claim, too, a length says nothing."""
    for folder in sweep.glob("rank_32.*"):
        rows = read_json_lines(folder / "samples.jsonl")
        for row in rows:
            row["scores"]["tokens"] += 5
        write_json_lines(folder / "samples.jsonl", rows)
    study = study_of(sweep, primary="tokens/sql")
    found = named(study, "rank_32")
    assert (primary(study, "rank_32").standing, primary(study, "rank_32").verdict) == (
        *(Standing.different, None),
    )
    assert found.tip
    assert wording.verdict(found) == "different"
    same = named(study, "attention_only")
    assert same.tip
    assert (primary(study, "attention_only").verdict, wording.verdict(same)) == (None, "")


def test_the_level_is_of_the_examples_that_are_compared(sweep: Path) -> None:
    for folder in sweep.glob("rank_8.*"):
        rows = read_json_lines(folder / "losses.jsonl")
        for row in rows[:4]:
            row["id"], row["loss"] = f"new{row['id']}", row["loss"] + 1000
        write_json_lines(folder / "losses.jsonl", rows)
        study_record.measure_again(folder)
    study = study_of(sweep)
    comparison, level = primary(study, "rank_8"), named(study, "rank_8").level
    assert comparison.effect is not None
    assert comparison.baseline is not None
    assert comparison.unpaired == 8
    assert level is not None
    assert level.value == pytest.approx(comparison.baseline + comparison.effect.value, rel=1e-9)


def test_a_primary_metric_that_was_not_measured_is_told(sweep: Path) -> None:
    study = study_of(sweep, primary="loss/prose")
    assert any(line.startswith("loss/prose, which decides, was not") for line in study.warnings)


def test_an_axis_that_changes_nothing_is_told(sweep: Path) -> None:
    for seed in range(3):
        for name in ("rank_4", "rank_8"):
            study_record.write_cell(
                sweep / f"{name}.seed_{seed}", variant=name, seed=seed, fingerprint=f"{seed}" * 16
            )
    assert (
        "rank_4 and rank_8 are the same run: the axis changes nothing" in study_of(sweep).warnings
    )


def test_mixed_code_machines_and_packages_are_told(sweep: Path) -> None:
    assert not study_of(sweep).warnings
    study_record.write_cell(
        sweep / "rank_8.seed_0",
        variant="rank_8",
        settings={"lora__r": 8},
        provenance={
            "code": {"digest": "elsewhere", "commit": None, "dirty": False},
            "machine": {"processor": "Another", "cores": 8},
            "packages": {"torch": "3.0", "peft": "0.21.2"},
        },
    )
    told = study_of(sweep).warnings
    assert told == [
        "cells differ in code: d (17 cells), elsewher (1 cell)",
        (
            "cells differ in machine: A Processor with 2 cores (17 cells), Another with 8 cores "
            "(1 cell)"
        ),
        "cells differ in packages: torch 2.13.0 and 3.0",
    ]


def test_costs_have_their_spread(sweep: Path) -> None:
    study = study_of(sweep)
    seconds = named(study, "baseline").costs["training_seconds"]
    assert (seconds.mean, seconds.low, seconds.high, seconds.n) == (61.0, 60.0, 62.0, 3)
    assert named(study, "baseline").costs["adapter_bytes"].mean == 4096
    # Another cell's training is not its cost, wherever its record comes from.
    assert "training_seconds" not in named(study, "nucleus").costs
    path = sweep / "nucleus.seed_0" / "result.json"
    write_json(path, json.loads((sweep / "baseline.seed_0" / "result.json").read_text()))
    assert "training_seconds" not in named(study_of(sweep), "nucleus").costs
    assert named(study, "nucleus").costs["evaluation_seconds"].mean == 10.0


def test_what_is_better(sweep: Path) -> None:
    assert direction("loss/sql") == -1
    assert direction("execution/sql") == direction("score/all") == 1
    assert direction("tokens/sql") == 0
    assert named(study_of(sweep), "rank_8").differences == {"lora.r": "8"}
