from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from dollyllama.config import RowFormat
from dollyllama.data import sources
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import format_prompt
from dollyllama.data.sources import (
    FORMATS,
    Place,
    check_columns,
    digest_place,
    locate,
    read_example,
    read_rows,
)
from tests.data.build import numbered_rows

WriteRows = Callable[..., Path]


def read(row: dict[str, Any], row_format: RowFormat) -> tuple[Example, tuple[str, ...]]:
    outcome = read_example(row, name="s", number=7, row_format=row_format)
    assert not isinstance(outcome, Rejected), outcome
    return outcome


def refuse(row: dict[str, Any], row_format: RowFormat) -> Rejected:
    outcome = read_example(row, name="s", number=7, row_format=row_format)
    assert isinstance(outcome, Rejected)
    return outcome


def test_every_row_format_has_a_reader() -> None:
    assert set(FORMATS) == set(RowFormat)


def test_sql_row_reads_in_the_recipes_words() -> None:
    row = {
        "question": "How many heads are older than 56 ? ",
        "context": "CREATE TABLE head (age INTEGER, name VARCHAR); CREATE TABLE t (x VARCHAR)",
        "answer": "SELECT COUNT(*) FROM head WHERE age > 56",
    }
    example, _ = read(row, RowFormat.sql_create_context)
    assert example.instruction == (
        "Generate SQL query: How many heads are older than 56 ?, given the following schema: "
        "head (age INTEGER, name STRING); t (x STRING)"
    )
    assert example.response == row["answer"]
    assert example.context == row["context"]
    assert (example.source, example.row) == ("s", 7)


def test_a_column_named_like_the_type_keeps_its_name() -> None:
    row = {"question": "q", "context": "CREATE TABLE t (VARCHAR_id VARCHAR)", "answer": "a"}
    example, _ = read(row, RowFormat.sql_create_context)
    assert example.instruction.endswith("t (VARCHAR_id STRING)")


@pytest.mark.parametrize(
    "row",
    [
        {  # the schema does not execute: a column twice
            "question": "q",
            "context": "CREATE TABLE t (a VARCHAR, a VARCHAR)",
            "answer": "SELECT a FROM t",
        },
        {  # the answer asks for a column that the schema lacks
            "question": "q",
            "context": "CREATE TABLE t (a VARCHAR)",
            "answer": "SELECT b FROM t",
        },
        {  # damaged upstream
            "question": "q",
            "context": "CREATE TABLE t (week VARCHAR)",
            "answer": 'SELECT week FROM t WHERE "week" = "week"',
        },
    ],
)
def test_doubtful_sql_is_read_as_upstream_has_it(row: dict[str, Any]) -> None:
    example, repairs = read(row, RowFormat.sql_create_context)
    assert (example.context, example.response, repairs) == (row["context"], row["answer"], ())


def test_a_humaneval_row_keeps_what_its_tests_need() -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def one() -> int:\n    """One."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    example, _ = read(row, RowFormat.humaneval)
    assert example.instruction.startswith("Complete the following Python function.")
    assert example.instruction.endswith(row["prompt"])
    assert example.response == 'def one() -> int:\n    """One."""\n    return 1\n'
    assert json.loads(example.context) == {
        key: row[key] for key in ("prompt", "test", "entry_point")
    }


def test_alpaca_input_goes_below_the_instruction() -> None:
    row = {"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"}
    example, repairs = read(row, RowFormat.alpaca)
    assert (example.instruction, example.response, repairs) == ("Sort.\n[2, 1]", "[1, 2]", ())


@pytest.mark.parametrize(
    "marker",
    ["No input.", "[noinput]", "< noinput >", "Noinput", "No input", "<noinputn>", "None", "N/A"],
)
def test_no_input_marker_is_left_out_and_counted(marker: str) -> None:
    row = {"instruction": "Sort.", "input": marker, "output": "x"}
    example, repairs = read(row, RowFormat.alpaca)
    assert (example.instruction, repairs) == ("Sort.", ("no_input_marker",))


def test_an_input_that_speaks_of_none_is_an_input() -> None:
    row = {"instruction": "Is it None?", "input": "None = 1", "output": "x"}
    assert read(row, RowFormat.alpaca)[0].instruction == "Is it None?\nNone = 1"


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}, {"input": " \n"}])
def test_alpaca_without_input_is_the_instruction_alone(given: dict[str, Any]) -> None:
    row = {"instruction": "Sort.", "output": "x", **given}
    assert read(row, RowFormat.alpaca)[0].instruction == "Sort."


def test_prompt_with_the_template_loses_it() -> None:
    row = {"prompt": format_prompt("Who?"), "response": "Me."}
    example, repairs = read(row, RowFormat.prompt_response)
    assert (example.instruction, repairs) == ("Who?", ("template_removed",))


def test_databricks_context_goes_below_the_instruction() -> None:
    row = {"instruction": "Who?", "context": "It was me.", "response": "You.", "category": "qa"}
    example, _ = read(row, RowFormat.databricks_dolly)
    assert (example.instruction, example.context) == ("Who?\nIt was me.", "")


def test_gsm8k_loses_calculator_notes_and_ends_in_a_sentence() -> None:
    row = {"question": "q", "answer": "16 - 3 = <<16-3=13>>13 eggs\n13 * 2 = 26\n#### 1,026"}
    example, _ = read(row, RowFormat.gsm8k)
    assert example.response == "16 - 3 = 13 eggs\n13 * 2 = 26\nThe answer is 1,026."


def test_messages_keep_system_words_and_the_first_exchange() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Again")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    example, repairs = read(row, RowFormat.messages)
    assert (example.instruction, example.response) == ("Be brief.\nHi", "Ho")
    assert repairs == ("shortened_conversation",)


def test_sharegpt_names_of_roles_read_too() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert read(row, RowFormat.messages)[0].response == "Ho"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "x"}], ["x"], [{"role": "user", "content": None}]],
)
def test_a_conversation_without_an_exchange_is_rejected(messages: list[Any]) -> None:
    assert refuse({"messages": messages}, RowFormat.messages).reason == "unreadable_conversation"


@pytest.mark.parametrize("value", [3, None, ["x"], {"a": "b"}, True])
def test_a_field_that_is_no_text_is_rejected_with_its_row(value: Any) -> None:
    row = {"prompt": "p", "response": value}
    rejected = refuse(row, RowFormat.prompt_response)
    assert (rejected.reason, rejected.row, rejected.raw) == ("wrong_type", 7, row)
    assert "response" in rejected.detail


def test_wrong_columns_name_those_found_and_the_format_that_fits() -> None:
    rows = [{"prompt": "p", "response": "r"}]
    with pytest.raises(
        ValueError,
        match=r"alpaca does not fit f\.jsonl.*instruction.*prompt, res"
        r".*format=prompt_response would fit",
    ):
        check_columns(rows, name="s", location="f.jsonl", row_format=RowFormat.alpaca)


def test_two_columns_that_could_be_the_response_are_refused() -> None:
    rows = [{"instruction": "p", "response": "r", "output": "o"}]
    with pytest.raises(ValueError, match="output and response"):
        check_columns(rows, name="s", location="f", row_format=RowFormat.alpaca)


# --- files --------------------------------------------------------------------------------------


def load(path: Path, split: str = "train") -> list[dict[str, Any]]:
    return read_rows(Place(None, None, path), name="s", split=split)


def test_a_line_separator_inside_a_string_breaks_no_line(write_rows: WriteRows) -> None:
    rows = [{"prompt": "a\u2028b\u2029c\x85d", "response": "r"}]
    assert load(write_rows(rows)) == rows


def test_one_odd_type_leaves_the_other_rows_as_they_are(write_rows: WriteRows) -> None:
    rows = [{"prompt": "p", "response": "r"}, {"prompt": 3, "response": "r"}]
    assert load(write_rows(rows)) == rows


def test_every_file_type_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [*numbered_rows(5), {"prompt": "12", "response": "N/A\n1,5"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "e.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n"), newline="")
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "f.parquet")
    table.to_csv(tmp_path / "g.csv", index=False)
    table.save_to_disk(str(tmp_path / "h"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "i"))
    (tmp_path / "j" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "j" / "data" / "train-00000-of-00001.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert load(path) == rows, path.name


def test_a_csv_of_numbers_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response\n1,2\n3,\n")
    assert load(tmp_path / "a.csv") == [
        {"prompt": "1", "response": "2"},
        {"prompt": "3", "response": ""},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl line 3 is not JSON"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n1\n', r"a\.jsonl line 2 is a int"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, r"a\.jsonl line 1 is not JSON: .* too deeply"),
        ("a.json", b'[{"a": 1},\n[1]]', r"a\.json row 2 is a list"),
        ("a.json", b'[{"a": 1},\n"\xff"]', r"a\.json line 2 is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2 is not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl has no rows"),
        ("a.csv", b"", r"a\.csv has no rows"),
        ("a.csv", b"prompt,response\n", r"a\.csv has no rows"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read as parquet"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", r"not a whole gzip file"),
        ("a.jsonl.gz", b"plain", r"not a whole gzip file"),
        ("a.txt", b"plain", r"a\.txt is none of \.jsonl"),
    ],
)
def test_an_unreadable_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "data.sources.s" in str(caught.value)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        load(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("save", ["dict", "hub"])
def test_a_missing_split_names_those_that_exist(tmp_path: Path, save: str) -> None:
    table = datasets.Dataset.from_list(numbered_rows(2))
    folder = tmp_path / "set"
    if save == "dict":
        datasets.DatasetDict(train=table).save_to_disk(str(folder))
    else:
        folder.mkdir()
        table.to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"(?i)split.*train"):
        load(folder, split="test")


# --- places -------------------------------------------------------------------------------------


def place(path: str = "owner/name", **changes: Any) -> Place:
    values: dict[str, Any] = {
        "name": "s",
        "file": "rows",
        "revision": None,
        "split": "train",
        "root": None,
    }
    return locate(path=path, **(values | changes))


def test_an_id_without_root_is_the_hubs() -> None:
    assert place(revision="abc") == Place("owner/name", "abc", None)


def test_root_is_searched_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json.gz").touch()
    assert place(root=str(tmp_path)).local == tmp_path / "rows.json.gz"


def test_a_file_of_the_split_goes_before_a_plain_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "rows_test.jsonl").touch()
    assert place(root=str(tmp_path), split="test").local == tmp_path / "rows_test.jsonl"
    assert place(root=str(tmp_path)).local == tmp_path / "rows.jsonl"


def test_a_path_that_exists_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    assert place(str(tmp_path / "mine.jsonl"), root="/nowhere").local == tmp_path / "mine.jsonl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/nowhere"}, r"data\.root=/nowhere: there is no such folder"),
        ({"path": "./rows.jsonl"}, r"data\.sources\.s\.path=\./rows\.jsonl: there is no such"),
        ({"path": "rows.parquet"}, r"there is no such file"),
    ],
)
def test_a_place_that_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(**changes)


def test_a_missing_file_lists_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").touch()
    with pytest.raises(ValueError, match=r"rows_train.*\.parquet.*it has other\.jsonl.*file=NAME"):
        place(root=str(tmp_path))


@pytest.mark.parametrize("changes", [{"revision": "abc"}, {"split": "test"}])
def test_keys_without_effect_on_a_local_file_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (tmp_path / "rows.jsonl").touch()
    (key,) = changes
    with pytest.raises(ValueError, match=re.escape(f"data.sources.s.{key}=")):
        place(root=str(tmp_path), **changes)


def test_a_hub_that_cannot_be_reached_says_how_to_use_local_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "hub_answers", lambda endpoint: False)
    with pytest.raises(ValueError, match=r"data\.sources\.s: owner/name .*set data\.root=FOLDER"):
        read_rows(Place("owner/name", None, None), name="s", split="train")


def test_digests_change_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("a")
    before = digest_place(Place(None, None, path))
    path.write_text("b")
    assert digest_place(Place(None, None, path)) != before
    assert set(digest_place(Place(None, None, tmp_path))) == {"rows.jsonl"}
