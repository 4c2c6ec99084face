from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from dollyllama.data import readers
from dollyllama.data.sources import Place, digest_place, locate, read_rows
from tests.data.build import make_source, numbered_rows

WriteRows = Callable[..., Path]


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


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_first_line_of_a_csv_tells_what_is_between_columns(
    tmp_path: Path, separator: str
) -> None:
    lines = [['"what, if; so"', '"response"'], ['"1,5; so\n\tit is"', "hi"]]
    text = "\n".join(separator.join(line) for line in lines)
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert load(tmp_path / "a.csv") == [{"what, if; so": "1,5; so\n\tit is", "response": "hi"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl line 3 is not JSON"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n1\n', r"a\.jsonl line 2 is a int"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, r"a\.jsonl line 1 is not JSON: .* too deeply"),
        ("a.json", b'[{"a": 1},\n[1]]', r"a\.json line 2 is a list"),
        ("a.json", b'[{"a": 1},\n"\xff"]', r"a\.json line 2 is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"line 2 is not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl has no rows"),
        ("a.csv", b"", r"a\.csv has no rows"),
        ("a.csv", b"prompt,response\n", r"a\.csv has no rows"),
        ("a.parquet", b"PAR1 no", r"a\.parquet cannot be read as parquet \(.*\): copy or"),
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


def place(path: str = "owner/name", *, root: str | None = None, **changes: Any) -> Place:
    return locate("s", make_source(path, **changes), root=root)


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


@pytest.mark.parametrize("path", ["/gone/rows.jsonl", "./rows.jsonl", "gone/rows.jsonl", "a.csv"])
def test_a_named_file_that_is_not_there_is_not_replaced_by_the_roots(
    path: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(ValueError, match=r"path=.*: there is no such file or folder"):
        place(path, root=str(tmp_path))
    assert place("rows.jsonl", root=str(tmp_path)).local == tmp_path / "rows.jsonl"


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
    monkeypatch.setattr(readers, "hub_answers", lambda endpoint: False)
    with pytest.raises(ValueError, match=r"data\.sources\.s: owner/name .*set data\.root=FOLDER"):
        read_rows(Place("owner/name", None, None), name="s", split="train")


def test_digests_change_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("a")
    before = digest_place(Place(None, None, path))
    path.write_text("b")
    assert digest_place(Place(None, None, path)) != before
    assert set(digest_place(Place(None, None, tmp_path))) == {"rows.jsonl"}
