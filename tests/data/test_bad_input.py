"""Files as people have them: what is refused says why, and one bad row costs one row."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dollyllama.data import readers
from dollyllama.data.formats import MAX_ROW
from dollyllama.data.readers import Chunk, Damaged
from dollyllama.data.sources import Place, digest_place, iter_rows, locate, read_rows
from tests.data.build import make_source, numbered_rows

Entry = dict[str, Any] | Damaged


def place_of(path: Path) -> Place:
    return Place(None, None, path)


def chunks(path: Path, **options: Any) -> Iterator[Chunk]:
    return iter_rows(place_of(path), name="s", split="train", **options)


def read(path: Path, **options: Any) -> list[Entry]:
    return [entry for chunk in chunks(path, **options) for entry in chunk.parse("s")]


def bad(entries: list[Entry]) -> dict[int, Damaged]:
    """What is no row, by row number."""
    return {row: each for row, each in enumerate(entries) if isinstance(each, Damaged)}


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"^data\.sources\.s: .*$|^s line .*$") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines_of(rows: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


# --- one bad row costs one row ------------------------------------------------------------------

BAD_LINES = {
    b'{"prompt": "p", ': "is not JSON: Expecting property name enclosed in double quotes",
    b'{"prompt": "caf\xe9", "response": "r"}': "is not UTF-8: convert the file to UTF-8",
    b"12": "is a int, not an object with columns",
    b'["p", "r"]': "is a list, not an object with columns",
    b"null": "is a NoneType, not an object with columns",
    b"[" * 100_000: "is not JSON: it is nested too deeply",
    b'{"a": ' + b"1" * 5000 + b"}": "is not JSON: Exceeds the limit",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("number", range(len(BAD_LINES)))
def test_a_bad_line_is_one_row_and_the_others_stay(
    tmp_path: Path, number: int, packed: bool
) -> None:
    line, problem = list(BAD_LINES.items())[number]
    rows = numbered_rows(10)
    lines = lines_of(rows)
    data = b"\n".join([*lines[:4], b"", line, *lines[4:], b" \r"])
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    for chunk_rows in (1, 4, 5, 2048):  # also where the line stands first in a chunk, and last
        entries = read(path, chunk_rows=chunk_rows)
        (at,) = bad(entries)
        assert [each for each in entries if not isinstance(each, Damaged)] == rows
        damaged = bad(entries)[at]
        assert (at, damaged.number, damaged.reason) == (4, 6, "unreadable_line")
        assert damaged.problem.startswith(problem)
        assert damaged.text == line.decode("utf-8", "replace")[:10_000]


def test_chunks_number_all_rows_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*lines_of(numbered_rows(9)), b"", b"{", b'{"a": 1}']))
    first = 0
    for chunk in chunks(path, chunk_rows=4):
        assert chunk.first == first
        assert len(chunk) == len(chunk.parse("s")) <= 4
        first += len(chunk)
    assert first == 11


def test_a_file_of_blank_lines_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n \r\n\t\n")
    assert "has no rows" in refusal(path)


def test_an_element_of_a_list_that_is_no_object_costs_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n"x\\ud800", {"a": 2},\n3]', encoding="utf-8")
    entries = read(path)
    assert {row: each.number for row, each in bad(entries).items()} == {1: 2, 3: 3}
    assert [each.text for each in bad(entries).values()] == [r'"x\ud800"', "3"]
    assert [entries[0], entries[2]] == [{"a": 1}, {"a": 2}]


def test_csv_rows_that_do_not_fit_are_named_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"prompt,response\n1,2\n3\n\n4,5,6\n7,caf\xe9\n8,caf\xc3\xa9\n"
        b'"two\nlines","He said ""ho"""\n9,"x" y\n10,11\n'
    )
    entries = read(path)
    assert {row: (each.number, each.problem) for row, each in bad(entries).items()} == {
        1: (3, "has 1 values and the first line 2 names"),
        2: (5, "has 3 values and the first line 2 names"),
        3: (6, "is not UTF-8: convert the file to UTF-8"),
        6: (10, "is not CSV: ',' expected after '\"'"),
    }
    assert [each for each in entries if not isinstance(each, Damaged)] == [
        {"prompt": "1", "response": "2"},
        {"prompt": "8", "response": "café"},
        {"prompt": "two\nlines", "response": 'He said "ho"'},
        {"prompt": "10", "response": "11"},
    ]


def test_a_column_missing_in_a_late_row_is_that_rows_matter(tmp_path: Path) -> None:
    rows = numbered_rows(50_010)
    del rows[50_000]["response"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines_of(rows)))
    assert read(tmp_path / "a.jsonl") == rows


# --- a row of 100 MB ----------------------------------------------------------------------------

HUGE = 100_000_000


def write_huge(path: Path) -> None:
    """Three rows, the second with a response of 100 MB."""
    before, huge, after = (json.dumps(row).encode() for row in numbered_rows(3))
    if path.suffix == ".csv":
        before, huge, after = b"prompt,response\na,b", b"c,It is 1.", b"e,f"
    start, end = huge.split(b"It is 1.")
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(before + b"\n" + start)
        for _ in range(100):
            file.write(b"x" * (HUGE // 100))
        file.write(end + b"\n" + after + b"\n")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_huge_row_is_rejected_by_name_and_not_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_huge(path)
    tracemalloc.start()
    try:
        entries = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * MAX_ROW
    assert len(entries) == 3
    damaged = bad(entries)[1]
    assert damaged.reason == "row_too_large"
    assert damaged.problem == "is longer than 10,000,000 bytes"
    assert len(damaged.text) == 10_000


def test_a_huge_row_of_a_list_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"a": "' + "x" * (2 * MAX_ROW) + '"}]', encoding="utf-8")
    assert "a.json line 2 begins a row longer than" in refusal(path)


def test_large_rows_make_small_chunks(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "response": "x" * 1_000_000} for number in range(20)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines_of(rows)))
    sizes = [len(chunk) for chunk in chunks(tmp_path / "a.jsonl")]
    assert sum(sizes) == 20
    assert max(sizes) <= 9
    assert read(tmp_path / "a.jsonl") == rows


# --- the whole file -----------------------------------------------------------------------------


def test_a_truncated_gzip_is_refused_however_far_it_can_be_read(tmp_path: Path) -> None:
    noise = random.Random(0)
    rows = [{"prompt": str(noise.random())} for _ in range(20_000)]
    whole = gzip.compress(b"\n".join(lines_of(rows)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-1000])
    reading = chunks(tmp_path / "a.jsonl.gz")
    assert len(next(reading)) == 2048
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not a whole gzip file .*copy it again"):
        list(reading)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", "{}")
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": ["x"]}), file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(), "is a zip archive: unpack it"),
        (parquet(), "is Parquet: give it the suffix .parquet"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), "is packed with gzip: give it the suffix .gz"),
        (b"\n<!DOCTYPE html>\n<html>", "is HTML or XML"),
        ('{"a": 1}\n'.encode("utf-16"), "is UTF-16: convert it to UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    ],
)
def test_a_file_of_another_type_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    assert f"{name} {message}" in refusal(path) or message in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if path.suffix == ".gz" else b"")
    assert refusal(path).endswith(f"{name} has no rows")


@pytest.mark.parametrize("first", [b"prompt,response", b'"prompt"', b"{", b'{"a": "\xe9"}'])
def test_a_file_that_begins_with_no_row_is_refused(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"", first, *lines_of(numbered_rows(5))]))
    message = refusal(path)
    assert "line 2 is" in message
    assert "remove the line" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2 is not JSON: Expecting , or ]"),
        ('[{"a": 1},\n{"a": 2}', "line 2 is not JSON: Expecting , or ] (cut short?)"),
        ('[{"a": 1},\n{"a": "2', "line 2 is not JSON: Unterminated string starting at"),
        ('[{"a": 1}]\n{"a": 2}', "line 2 has something after the end of the list"),
        ('[{"a": 1},\n\n', "line 3 is not JSON: Expecting value"),
        ("[", "line 1 is not JSON: Expecting value"),
        ('[{"a": 1},\n' + "[" * 100_000, "line 2 is not JSON: it is nested too deeply"),
        ('[{"a": 1},\n{"a": ' + "1" * 5000 + "}]", "line 2 is not JSON: Exceeds the limit"),
        ("[]", "has no rows"),
    ],
)
def test_a_broken_list_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert message in refusal(tmp_path / "a.json")


def test_an_error_deep_in_a_list_has_its_line(tmp_path: Path) -> None:
    rows = [json.dumps({"a": "x" * 1000}) for _ in range(5000)]
    rows[3456] = '{"a": x}'
    (tmp_path / "a.json").write_text("[" + ",\n".join(rows) + "]", encoding="utf-8")
    assert "line 3457 is not JSON: Expecting value" in refusal(tmp_path / "a.json")
    rows[3456] = '{"a": "\udce9"}'
    text = "[" + ",\n".join(rows) + "]"
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "line 3457 is not UTF-8" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_a_list_reads_alike_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(readers, "_BLOCK", block)
    values = [
        {
            "a": 'é"\\\u2028😀\n',
            "b": [1, -2.5e-10, None, True, {"c": []}],
            "": float("inf"),
        },
        {},
        {"a": "\\u12", "b": -123456789, "c": {"d": False}},
        {"a": [[[]]]},
    ]
    for indent in (None, 1):
        for escaped in (True, False):
            text = json.dumps(values, indent=indent, ensure_ascii=escaped)
            (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + f" \r\n{text}\n\n".encode())
            assert read(tmp_path / "a.json") == values


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response,prompt\n1,2,3\n", encoding="utf-8")
    assert "a.csv has two columns prompt" in refusal(tmp_path / "a.csv")


# --- places -------------------------------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"prompt": "p", "response": "late"}\n')


def swap(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes().replace(b"number 3", b"number 4"))
    other.replace(path)


@pytest.mark.parametrize("change", [grow, swap, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines_of(numbered_rows(10))) + b"\n")
    digests = digest_place(place_of(path))
    assert len(read(path, chunk_rows=2, digests=digests)) == 10
    reading = chunks(path, chunk_rows=2, digests=digests)
    next(reading)
    change(path)
    with pytest.raises(ValueError, match=r"a\.jsonl changed while it was read: run again"):
        list(reading)


def test_a_path_with_spaces_and_foreign_letters_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "Mein Ordner [1]" / "größe & 数据"
    folder.mkdir(parents=True)
    rows = numbered_rows(3)
    (folder / "größe 1.jsonl").write_bytes(b"\n".join(lines_of(rows)))
    with (folder / "größe 1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet(folder / "größe 1.parquet")
    for path in sorted(folder.iterdir()):
        found = locate("s", make_source(path), root=None)
        assert read_rows(found, name="s", split="train") == rows


def test_a_folder_of_files_reads_as_each_file_would(tmp_path: Path) -> None:
    rows = [*numbered_rows(5), {"prompt": 3, "response": ["x"]}]
    (tmp_path / "train-0.jsonl").write_bytes(b"\n".join(lines_of(rows[:4])))
    (tmp_path / "train-1.jsonl").write_bytes(b"\n".join([*lines_of(rows[4:]), b"{"]))
    (tmp_path / "test-0.jsonl").write_bytes(b"\n".join(lines_of(numbered_rows(1, 50))))
    (tmp_path / "README.md").write_text("Notes.", encoding="utf-8")
    parts = list(chunks(tmp_path, chunk_rows=3))
    assert [chunk.first for chunk in parts] == [0, 3, 4]
    entries = [entry for chunk in parts for entry in chunk.parse("s")]
    assert entries[:6] == rows
    assert list(bad(entries)) == [6]


@pytest.mark.parametrize("name", ["empty", "odd [*] name"])
def test_a_folder_without_rows_says_so(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    message = refusal(folder)
    assert "doesn't contain any data files" in message
    assert ("rename the folder" in message) == ("*" in name)


def test_a_folder_that_is_called_like_a_file_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b"\n".join(lines_of(numbered_rows(2))))
    assert read(folder) == numbered_rows(2)
