from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dollyllama.config import Data, GroupBy, LossOn, RowFormat, Rule
from dollyllama.data.prepare import PreparedData, prepare
from dollyllama.data.show import count_table, show_examples
from tests.data.build import make_data, make_source, numbered_rows

WriteRows = Callable[..., Path]
Prepare = Callable[..., PreparedData]

SQL = [
    {
        "question": f"How many of kind {number}?",
        "context": f"CREATE TABLE things_{number % 20} (kind VARCHAR)",
        "answer": f"SELECT COUNT(*) FROM things_{number % 20} WHERE kind = {number}",
    }
    for number in range(60)
]
DIRT = [
    {"prompt": "Say number 3.", "response": "it is  3."},  # a copy of row 3
    {"prompt": "", "response": "x"},
    {"prompt": "y", "response": " "},
    {"prompt": "y", "response": 5},
    {"prompt": " ".join(map(str, range(300))), "response": "x"},
    {"prompt": "A long answer, please.", "response": "word " * 5_200},
    {"prompt": "Read this\u2028twice. ", "response": "Yes.\r\n"},
]


@pytest.fixture
def mix(write_rows: WriteRows) -> Data:
    """Two sources with every kind of dirt."""
    sql = [*SQL, {**SQL[0], "answer": "SELECT x FROM table_1"}]
    return make_data(
        {
            "words": make_source(write_rows([*numbered_rows(60), *DIRT], "words.jsonl")),
            "sql": make_source(
                write_rows(sql, "sql.jsonl"),
                format=RowFormat.sql_create_context,
                group_by=GroupBy.context,
                rules=[Rule.real_table_names],
            ),
        }
    )


@pytest.fixture
def run(byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Prepare:
    def call(data: Data, seed: int = 0, cache: str = "cache", **changes: Any) -> PreparedData:
        return prepare(data, byte_tokenizer, seed=seed, cache=tmp_path / cache, **changes)

    return call


def test_every_row_read_is_used_or_rejected_with_a_reason(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    rejected = Counter(each.source for each in prepared.rejected)
    used = {
        (each.example.source, each.example.row) for each in (*prepared.train, *prepared.held_out)
    }
    for name, source in prepared.manifest["sources"].items():
        rows = source["rows"]
        assert rows["read"] == sum(name == s for s, _ in used) + rejected[name]
        assert sum(source["rejected"].values()) == rejected[name]
    assert prepared.manifest["total"]["rows"]["read"] == 60 + len(DIRT) + 61
    assert prepared.manifest["total"]["rejected"] == {
        "duplicate_row": 1,
        "empty_instruction": 1,
        "empty_response": 1,
        "prompt_too_long": 1,
        "real_table_names": 1,
        "wrong_type": 1,
    }


def test_rejected_rows_carry_the_row_as_upstream_has_it(mix: Data, run: Prepare) -> None:
    raw = {each.reason: each.raw for each in run(mix).rejected if each.source == "words"}
    assert raw["duplicate_row"] == DIRT[0]
    assert raw["prompt_too_long"] == DIRT[4]


def test_steps_add_up(mix: Data, run: Prepare) -> None:
    for source in run(mix).manifest["sources"].values():
        rows = source["rows"]
        assert rows["read"] >= rows["cleaned"] >= rows["rules"] >= rows["deduplicated"]
        assert rows["deduplicated"] == rows["train"] + rows["held_out"]
        lost = rows["mixed"] - rows["trained"] + rows["held_out"] - rows["evaluated"]
        assert lost == source["rejected"].get("prompt_too_long", 0)


def test_token_counts_are_those_of_the_examples(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    counted = prepared.manifest["total"]["tokens"]["train"]
    labels = [label for each in prepared.train for label in each.labels]
    assert counted["tokens"] == len(labels)
    assert counted["supervised"] == sum(label != -100 for label in labels)
    assert counted["truncated"] == sum(each.truncated for each in prepared.train)
    both = prepared.manifest["sources"]["words"]["tokens"].values()
    assert sum(part["truncated"] for part in both) == 1


def test_repairs_are_counted(mix: Data, run: Prepare) -> None:
    assert run(mix).manifest["sources"]["words"]["repaired"] == {"line_ends": 1}


def test_no_group_key_is_in_two_splits(mix: Data, run: Prepare) -> None:
    prepared = run(mix)
    train, held = (
        {each.example.group for each in side} for side in (prepared.train, prepared.held_out)
    )
    assert train
    assert held
    assert not train & held


def test_the_order_of_sources_changes_nothing(mix: Data, run: Prepare) -> None:
    turned = make_data(dict(reversed(mix.sources.items())))
    assert list(turned.sources) != list(mix.sources)
    assert run(turned, cache="other") == run(mix)


def test_the_split_is_the_same_for_every_seed_and_the_order_is_not(mix: Data, run: Prepare) -> None:
    zero, one = run(mix, seed=0), run(mix, seed=1)
    assert zero.held_out == one.held_out
    assert zero.train != one.train
    assert {each.example for each in zero.train} == {each.example for each in one.train}


def test_cached_data_are_the_fresh_data(
    mix: Data, run: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = run(mix)
    monkeypatch.setattr("dollyllama.data.prepare.encode_all", None)
    assert run(mix) == fresh


@pytest.mark.parametrize("name", ["examples.jsonl", "tokens.npz", "manifest.json", "digests.json"])
def test_a_damaged_cache_is_made_again(mix: Data, run: Prepare, tmp_path: Path, name: str) -> None:
    fresh = run(mix)
    damaged = tmp_path / "cache" / fresh.fingerprint / name
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert run(mix) == fresh
    assert run(mix) == fresh
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [fresh.fingerprint]


def test_a_failed_preparation_leaves_nothing_behind(
    mix: Data, run: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dollyllama.data.prepare.np.savez", fail)
    with pytest.raises(KeyboardInterrupt):
        run(mix)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_fingerprint_follows_settings_files_seed_and_tokenizer(
    mix: Data, run: Prepare, tmp_path: Path
) -> None:
    prints = {run(mix).fingerprint, run(mix, seed=1).fingerprint}
    prints.add(run(make_data(mix.sources, loss_on=LossOn.full_text)).fingerprint)
    with (tmp_path / "words.jsonl").open("a") as file:
        file.write('{"prompt": "More?", "response": "More."}\n')
    prints.add(run(mix).fingerprint)
    assert len(prints) == 4


def test_weights_touch_the_training_side_alone(write_rows: WriteRows, run: Prepare) -> None:
    path = write_rows(numbered_rows(80))
    once, twice, half = (
        run(make_data({"a": make_source(path, weight=weight)})) for weight in (1.0, 2.0, 0.5)
    )
    assert once.held_out == twice.held_out == half.held_out
    assert len(twice.train) == 2 * len(once.train)
    rows = half.manifest["sources"]["a"]["rows"]
    assert rows["read"] == rows["trained"] + rows["evaluated"] + rows["not_drawn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 8}, "no training example.*max_length=8"),
        ({"held_out": 1e-9}, "no held-out example.*raise data.held_out"),
    ],
)
def test_an_empty_side_is_an_error(
    write_rows: WriteRows, run: Prepare, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(make_data({"a": make_source(write_rows(numbered_rows(20)))}, **changes))


def test_progress_names_its_stages(mix: Data, run: Prepare) -> None:
    seen: list[str] = []
    run(mix, progress=lambda stage, done, total: seen.append(stage))
    assert list(dict.fromkeys(seen)) == ["reading", "cleaning", "deduplicating", "tokenising"]


def test_the_manifest_states_licence_place_and_digests(mix: Data, run: Prepare) -> None:
    source = run(mix).manifest["sources"]["words"]
    assert source["licence"] == {"name": "MIT", "stated_at": "its card"}
    assert list(source["digests"]) == ["words.jsonl"]


# --- what a reader sees -------------------------------------------------------------------------


def test_the_table_shows_each_rejection(mix: Data, run: Prepare) -> None:
    table = count_table(run(mix).manifest)
    (line,) = [line for line in table.splitlines() if "real_table_names" in line]
    assert line.split() == ["-", "real_table_names", "-1", "·", "-1"]
    assert "recipe" not in table


def test_masked_tokens_are_marked(
    write_rows: WriteRows, run: Prepare, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = run(make_data({"a": make_source(write_rows(numbered_rows(20)))}))
    text = show_examples(prepared, byte_tokenizer, 1, colour=False)
    response = prepared.train[0].example.response
    assert f"### Response:\n›{response}\n### End</s>" in text
    coloured = show_examples(prepared, byte_tokenizer, 1, colour=True)
    assert f"\x1b[0m{response}" in coloured


# --- the real files -----------------------------------------------------------------------------


def _count(path: Path) -> int:
    return sum(1 for line in gzip.decompress(path.read_bytes()).split(b"\n") if line)


def test_the_recipes_rows_add_up_on_the_shared_files(shared: Path, tmp_path: Path) -> None:
    """The three small sources whole; SQL by its 941-row sample, whose numbers the README gives."""
    files = shared / "data"
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "open_llama_v2")
    data = make_data(
        {
            "code": make_source(files / "code_alpaca_20k.jsonl.gz", format=RowFormat.alpaca),
            "maths": make_source(
                files / "grade_school_math_instructions.jsonl.gz",
                format=RowFormat.grade_school_math,
                group_by=GroupBy.longest_line,
            ),
            "sql": make_source(
                files / "sql_create_context_sample.jsonl.gz",
                format=RowFormat.sql_create_context,
                group_by=GroupBy.context,
                rules=[Rule.real_table_names],
            ),
        },
        max_rows=300,
        held_out=0.02,
    )
    prepared = prepare(data, tokenizer, seed=0, cache=tmp_path)
    sources = prepared.manifest["sources"]
    assert sources["code"]["rows"]["read"] == _count(files / "code_alpaca_20k.jsonl.gz") == 19_021
    assert sources["code"]["rejected"] == {"empty_response": 5}
    assert sources["code"]["repaired"]["no_input_marker"] == 23
    assert sources["maths"]["repaired"] == {"repeated_instruction": 219}
    real = [
        json.loads(line)
        for line in gzip.decompress((files / "sql_create_context_sample.jsonl.gz").read_bytes())
        .decode()
        .split("\n")
        if line and "FROM table_" not in line
    ]
    assert sources["sql"]["rows"]["rules"] == len(real)
    assert len(prepared.train) == 300
