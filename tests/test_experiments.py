"""The config tree: every option composes, presets hold deltas alone, configs load back equal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from dollyllama import config
from dollyllama.launch import CONF, groups

OPTIONS = [
    (group, path.stem) for group in groups() for path in sorted((CONF / group).glob("*.yaml"))
]
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
ABLATIONS = [option for group, option in OPTIONS if group == "ablation" and option != "baseline"]


def composed(*overrides: str, conf: Path = CONF) -> DictConfig:
    ConfigStore.instance().store(name="schema", node=config.Run)
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", list(overrides))


@cache
def composed_once(*overrides: str) -> DictConfig:
    """Of the tree as it is, for who only reads: composing takes most of these tests' time."""
    found = composed(*overrides)
    OmegaConf.set_readonly(found, True)
    return found


def plain(*overrides: str, conf: Path = CONF) -> Any:
    found = composed_once(*overrides) if conf is CONF else composed(*overrides, conf=conf)
    return OmegaConf.to_container(found)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paged optimizers are refused without CUDA; what they compose to is the same anywhere."""
    monkeypatch.setattr(config, "cuda_is_available", lambda: True)


def override(group: str, option: str) -> list[str]:
    extra = {
        ("model", "local"): ["model.path=somewhere"],
        ("lora", "pissa"): ["quantization=none"],
        ("ablation", "fp4"): ["quantization=nf4_double"],
    }
    return [f"{group}={option}", *extra.get((group, option), [])]


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("group", "option"), [each for each in OPTIONS if each[0] != "source"], ids=str
)
def test_every_option_composes_to_a_valid_config(group: str, option: str) -> None:
    if (group, option) == ("sweep", "search"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs '.[optuna]'")
    run = config.build(composed_once(*override(group, option)))
    assert isinstance(run, config.Run)


def test_every_source_composes_into_one_mix() -> None:
    sources = [option for group, option in OPTIONS if group == "source"]
    mix = [f"+source@data.sources.{name}_too={name}" for name in sources]
    run = config.build(composed(*mix))
    assert {f"{name}_too" for name in sources} <= run.data.sources.keys()


def test_every_group_of_the_plan_has_a_second_option() -> None:
    wanted = {
        *("model", "quantization", "precision", "lora", "target_modules", "optimizer", "schedule"),
        *("source", "data", "benchmarks", "trainer", "decoding", "evaluation", "tracking"),
        *("experiment", "ablation", "debug", "sweep"),
    }
    assert set(groups()) == wanted
    assert {group for group in wanted if sum(g == group for g, _ in OPTIONS) < 2} == set()


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("name", [*EXPERIMENTS, None])
def test_a_saved_config_loads_back_equal(name: str | None, tmp_path: Path) -> None:
    run = config.build(composed(*([f"experiment={name}"] if name else [])))
    config.save(run, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == run


def test_a_config_from_before_a_key_is_as_it_was(tmp_path: Path) -> None:
    run = config.build(composed())
    config.save(run, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    older = text.replace("  prune_after: null\n", "")
    assert older != text
    (tmp_path / "config.yaml").write_text(older, encoding="utf-8")
    assert config.load(tmp_path / "config.yaml") == run
    (tmp_path / "config.yaml").write_text(older.replace("  fail_fast: 3\n", ""), encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep\.fail_fast has no value"):
        config.load(tmp_path / "config.yaml")


def leaves(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def without(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {key: value for key, value in values.items() if key != head}
    return values | {head: without(values[head], tuple(rest))}


PRESETS = [(group, name) for group, name in OPTIONS if group in {"experiment", "ablation", "debug"}]


def copied_tree(tmp_path: Path) -> Path:
    """A tree whose preset can be edited: everything else is linked to the real one."""
    conf = tmp_path / "conf"
    conf.mkdir()
    for path in CONF.iterdir():
        if path.is_dir():
            (conf / path.name).mkdir()
            for file in path.iterdir():
                (conf / path.name / file.name).symlink_to(file)
        else:
            (conf / path.name).symlink_to(path)
    return conf


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), PRESETS, ids=str)
def test_a_preset_restates_nothing(group: str, name: str, tmp_path: Path) -> None:
    base = ["experiment=dollyllama_3b"] if group == "debug" else []
    conf = copied_tree(tmp_path)
    preset = conf / group / f"{name}.yaml"
    text = preset.read_text(encoding="utf-8")
    head = text.splitlines()[0]
    values = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(values, dict)
    whole = plain(*base, f"{group}={name}", conf=conf)
    # A debug preset ends whichever budget an experiment has; on top of one, two of these are null
    # already.
    exempt = {("trainer", key) for key in ("epochs", "max_steps", "max_tokens", "max_seconds")}
    paths = [path for path in leaves(values) if path != ("defaults",)]
    parts = [without(values, path) for path in paths if not (group == "debug" and path in exempt)]
    defaults = values.get("defaults", [])
    parts += [
        values | {"defaults": [each for each in defaults if each is not dropped]}
        for dropped in defaults
    ]
    for part in parts:
        preset.unlink()
        preset.write_text(f"{head}\n{OmegaConf.to_yaml(OmegaConf.create(part))}", encoding="utf-8")
        assert plain(*base, f"{group}={name}", conf=conf) != whole, part


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_factor(name: str) -> None:
    baseline, changed = plain(), plain(f"ablation={name}")
    different = {key for key in baseline if baseline[key] != changed[key]}
    assert len(different) == 1
    (section,) = different
    assert changed[section] != baseline[section]


def test_the_original_recipe_is_as_the_brief_states_it() -> None:
    run = plain("experiment=dollyllama_7b")
    assert run["model"]["path"] == "openlm-research/open_llama_7b_v2"
    assert run["quantization"] == {"method": "nf4", "double": True, "compute_dtype": "bfloat16"}
    assert run["lora"] == {
        "r": 16,
        "alpha": 32,
        "dropout": 0.05,
        "variant": "lora",
        "target_modules": ["all-linear", "lm_head"],
    }
    assert run["optimizer"]["name"] == "paged_adamw_32bit"
    assert run["optimizer"]["lr"] == 1e-5
    assert run["schedule"] == {"name": "linear", "warmup_ratio": 0.03}
    assert (run["trainer"]["batch_size"], run["trainer"]["accumulation"]) == (4, 4)
    assert (run["trainer"]["epochs"], run["trainer"]["max_grad_norm"]) == (3, 0.3)
    assert run["trainer"]["batching"] == "length_grouped"
    assert (run["data"]["max_length"], run["data"]["held_out"]) == (512, 0.05)
    assert run["data"]["loss_on"] == "full_text"
    assert set(run["data"]["sources"]) == {"sql", "code", "dolly", "maths"}
    assert (run["decoding"]["strategy"], run["decoding"]["alpha"], run["decoding"]["k"]) == (
        "contrastive",
        0.5,
        4,
    )


def test_a_debug_preset_and_an_ablation_win_over_an_experiment() -> None:
    run = plain("experiment=dollyllama_7b", "ablation=sgd", "debug=one_batch")
    assert run["optimizer"]["name"] == "sgd"
    assert (run["trainer"]["epochs"], run["trainer"]["max_steps"]) == (None, 1)


def test_the_order_of_overrides_does_not_matter() -> None:
    one = plain("data=sql", "lora.r=4", "experiment=dollyllama_7b")
    other = plain("experiment=dollyllama_7b", "lora.r=4", "data=sql")
    assert one == other
