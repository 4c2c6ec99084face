from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dollyllama import config
from dollyllama.data.formats import read_example
from dollyllama.data.licences import EMBEDDED_LICENCE, stated_licence
from dollyllama.data.sources import locate, read_rows
from dollyllama.embedded import EMBEDDED
from dollyllama.files import write_json_lines

CONF = Path(__file__).parents[2] / "conf"
ANSWER = {"role": "assistant", "content": "Hi."}
RECIPE = {"sql", "code", "dolly", "maths"}


def data(*overrides: str) -> config.Data:
    ConfigStore.instance().store(name="schema", node=config.Run)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        section = OmegaConf.to_object(compose("train", list(overrides)).data)
    assert isinstance(section, config.Data)
    return section


@pytest.mark.parametrize("name", sorted(RECIPE))
def test_without_a_source_leaves_the_other_three_and_alone_leaves_one(name: str) -> None:
    assert set(data(f"data=without_{name}").sources) == RECIPE - {name}
    assert set(data(f"data={name}").sources) == {name}


def test_the_recipe_is_four_sources_and_starcoder_one_more() -> None:
    assert set(data("data=dollyllama").sources) == RECIPE
    assert set(data("data=dollyllama_starcoder").sources) == RECIPE | {"starcoder"}


def test_the_sample_is_the_recipe_on_the_projects_own_rows() -> None:
    sample, recipe = data("data=sample"), data("data=dollyllama")
    assert sample.root == EMBEDDED
    for name, source in sample.sources.items():
        place = locate(name, source, root=sample.root)
        assert stated_licence(source, place.local) == EMBEDDED_LICENCE
        assert source.format == recipe.sources[name].format
        assert source.grader == recipe.sources[name].grader


@pytest.mark.parametrize("name", ["alpaca", "messages", "prompt_response"])
def test_a_file_of_ones_own_is_a_mix_of_one_source(name: str, tmp_path: Path) -> None:
    rows = {
        "alpaca": {"instruction": "Say hi.", "input": "", "output": "Hi."},
        "messages": {"messages": [{"role": "user", "content": "Say hi."}, ANSWER]},
        "prompt_response": {"prompt": "Say hi.", "completion": [ANSWER]},
    }
    path = tmp_path / "mine.jsonl"
    write_json_lines(path, [rows[name]])
    mix = data("data=own", f"source@data.sources.own={name}", f"data.sources.own.path={path}")
    (source,) = mix.sources.values()
    place = locate("own", source, root=mix.root)
    (row,) = read_rows(place, name="own", split=source.split)
    example, repairs = read_example(row, name="own", number=0, source=source)
    assert (example.instruction, example.response, repairs) == ("Say hi.", "Hi.", ())


@pytest.mark.parametrize("path", sorted((CONF / "source").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_source_states_a_licence_and_where(path: Path) -> None:
    source = data("data=sql", f"source@data.sources.sql={path.stem}").sources["sql"]
    assert source.licence
    assert source.licence_stated_at
