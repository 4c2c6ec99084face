from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dollyllama import config, embedded, launch
from dollyllama.config import Commercial, Licences
from dollyllama.data.licences import EMBEDDED_LICENCE, commercial_use, stated_licence
from tests.data.build import make_data, make_source


def data(*overrides: str) -> config.Data:
    ConfigStore.instance().store(name="schema", node=config.Run)
    with initialize_config_dir(str(launch.CONF), version_base="1.3"):
        section = OmegaConf.to_object(compose("train", list(overrides)).data)
    assert isinstance(section, config.Data)
    return section


def manifest(**uses: str) -> dict[str, Any]:
    return {name: {"licence": {"commercial": use}} for name, use in uses.items()}


@pytest.mark.parametrize("use", [Commercial.forbidden, Commercial.unclear])
def test_a_commercial_mix_refuses_a_source_by_name_before_anything_is_read(
    use: Commercial,
) -> None:
    sources = {
        "good": make_source("/nowhere/good.jsonl"),
        "odd": make_source(
            "/nowhere/odd.jsonl",
            commercial=use,
            licence="CC-BY-NC-4.0",
            licence_stated_at="its card",
        ),
    }
    with pytest.raises(ValueError, match=rf"data\.sources\.odd.* is {use} .*CC-BY-NC-4\.0") as no:
        make_data(sources, licences=Licences.commercial)
    assert "its card" in str(no.value)
    assert "data.sources.odd.commercial=allowed" in str(no.value)
    assert "good" not in str(no.value)
    make_data(sources, licences=Licences.any)


def test_the_recipe_as_it_stands_is_not_commercial_for_codealpacas_two_licences() -> None:
    with pytest.raises(Exception, match=r"data\.sources\.code.*unclear.*CC-BY-NC-4\.0.*DATA_LICE"):
        data("data=dollyllama", "data.licences=commercial")


@pytest.mark.parametrize(
    "way_out",
    [
        ["data=without_code"],
        ["data=dollyllama", "~data.sources.code"],
        ["data=dollyllama", "data.sources.code.commercial=allowed"],
        ["data=sample"],
    ],
)
def test_each_way_out_that_the_refusal_names_is_one(way_out: list[str]) -> None:
    assert data(*way_out, "data.licences=commercial").licences is Licences.commercial


@pytest.mark.parametrize(
    "path", sorted((launch.CONF / "source").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_licence_that_says_nc_is_not_called_allowed(path: Path) -> None:
    source = data("data=sql", f"source@data.sources.sql={path.stem}").sources["sql"]
    unsure = "-NC" in source.licence or source.licence == "not stated"
    assert (source.commercial is Commercial.allowed) == (not unsure)


def test_the_manifest_states_the_source_and_for_the_sample_the_project() -> None:
    source = make_source("f", licence="X", licence_stated_at="Y", commercial=Commercial.forbidden)
    assert stated_licence(source, Path("rows.jsonl")) == {
        "name": "X",
        "stated_at": "Y",
        "commercial": "forbidden",
    }
    assert stated_licence(source, embedded.DATA / "rows.jsonl") == EMBEDDED_LICENCE


@pytest.mark.parametrize(
    ("uses", "said"),
    [
        ({"b": "allowed", "a": "allowed"}, "Every source allows commercial use."),
        ({"b": "unclear", "a": "allowed"}, "Commercial use is unclear for b."),
        (
            {"d": "unclear", "c": "forbidden", "b": "unclear", "a": "allowed"},
            "Commercial use is forbidden for c, and unclear for b and d.",
        ),
    ],
)
def test_commercial_use_is_one_sentence(uses: dict[str, str], said: str) -> None:
    assert commercial_use(manifest(**uses)) == said


def test_the_table_in_the_docs_is_what_the_sources_state() -> None:
    docs = Path(__file__).parents[2] / "docs" / "data.md"
    rows = [line for line in docs.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    for name in sorted(path.stem for path in (launch.CONF / "source").glob("*.yaml")):
        shown = "`sample_*`" if name.startswith("sample_") else f"`{name}`"
        source = data("data=sql", f"source@data.sources.sql={name}").sources["sql"]
        if source.path == "rows.jsonl":  # rows of the user's own
            assert source.licence == "not stated"
            continue
        (row,) = [row for row in rows if shown in row.split("|")[1]]
        assert row.split("|")[2].strip() == source.licence
        assert row.split("|")[3].strip().startswith(source.commercial)
