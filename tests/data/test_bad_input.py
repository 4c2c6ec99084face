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
import pandas as pd
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

NOT_UTF8 = "is not UTF-8: convert the file to UTF-8"
BAD_LINES = {
    b'{"prompt": "p", ': "is not JSON: Expecting property name enclosed in double quotes",
    b'{"prompt": "caf\xe9", "response": "r"}': NOT_UTF8,
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
        3: (6, f"{NOT_UTF8}, or this line alone where others are UTF-8"),
        6: (10, "is not CSV: ',' expected after '\"'"),
    }
    assert [each for each in entries if not isinstance(each, Damaged)] == [
        {"prompt": "1", "response": "2"},
        {"prompt": "8", "response": "café"},
        {"prompt": "two\nlines", "response": 'He said "ho"'},
        {"prompt": "10", "response": "11"},
    ]


# --- quotes of CSV that are open by mistake ----------------------------------------------------


def csv_rows(count: int) -> list[dict[str, Any]]:
    """Rows of four columns; each tenth has a text of three lines in quotes."""
    return [
        {
            "prompt": f"p{n}" if n % 10 else f'p{n},\n\n"q"',
            "input": "",
            "response": f"r{n}",
            "id": str(n),
        }
        for n in range(count)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], changes: dict[int, str]) -> dict[int, int]:
    """Rows as CSV, some as other text; the line at which each row begins."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    starts = {}
    for number, row in enumerate(rows):
        starts[number] = out.getvalue().count("\n") + 1
        if number in changes:
            out.write(changes[number])
        else:
            writer.writerow(row)
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    return starts


@pytest.mark.parametrize("chunk_rows", [1, 7, 2048])
@pytest.mark.parametrize(
    "close",
    [
        'x" stray,,resp,x\n',  # not CSV there
        'x",,resp,x,y\n',  # too many values
        'x",resp,x\n',  # too few
        "",  # none, up to the end
    ],
)
def test_an_open_quote_costs_its_line_and_not_the_rows_after_it(
    tmp_path: Path, close: str, chunk_rows: int
) -> None:
    rows = csv_rows(300)
    for number in range(51, 202):  # nothing that would close the quote earlier
        rows[number]["prompt"] = f"p{number}"
    opening = '"an open quote here,,resp,x\n'
    lines = write_csv(tmp_path / "a.csv", rows, {51: opening} | ({201: close} if close else {}))
    entries = read(tmp_path / "a.csv", chunk_rows=chunk_rows)
    assert len(entries) == 300
    first, *others = bad(entries).items()
    assert first[0] == 51
    assert (first[1].number, first[1].text) == (lines[51], opening.rstrip("\n"))
    assert first[1].reason == "unreadable_line"
    assert first[1].problem.startswith("opens a quote: read to line ")
    assert {row for row, _ in others} <= {201}
    kept = [number for number in range(300) if number not in bad(entries)]
    assert [entries[n] for n in kept if n != 201] == [rows[n] for n in kept if n != 201]


def test_a_quote_that_is_never_closed_costs_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "response": "r"} for number in range(400)]
    lines = write_csv(tmp_path / "a.csv", rows, {50: '"p50,r\n', 60: 'p60,"r\n', 399: '"p399,r'})
    entries = read(tmp_path / "a.csv")
    not_csv = "is not CSV: ',' expected after '\"'"
    assert {row: (each.number, each.problem, each.text) for row, each in bad(entries).items()} == {
        50: (lines[50], f"opens a quote: read to line {lines[60]}, it {not_csv}", '"p50,r'),
        60: (lines[60], f"opens a quote: read to line {lines[399]}, it {not_csv}", 'p60,"r'),
        399: (lines[399], "ends inside a quote", '"p399,r'),
    }
    assert [entries[row] for row in range(400) if row not in (50, 60, 399)] == [
        rows[row] for row in range(400) if row not in (50, 60, 399)
    ]


def test_a_quote_that_is_open_to_the_end_costs_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "response": "r"} for number in range(400)]
    write_csv(tmp_path / "a.csv", rows, {50: '"p50,r\n'})
    entries = read(tmp_path / "a.csv")
    assert bad(entries) == {
        50: Damaged(52, "opens a quote: read to line 401, it ends inside a quote", '"p50,r')
    }
    assert entries[51:] == rows[51:]


@pytest.mark.parametrize("line", ['x","y\n', 'x,"y\n', '"x\n', '"\n', 'x""","y\n', '"",","\n'])
def test_a_file_full_of_open_quotes_is_read_a_few_times_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    given = 0
    give = readers._Lines.__next__

    def count(lines: readers._Lines) -> str:
        nonlocal given
        given += 1
        return give(lines)

    monkeypatch.setattr(readers._Lines, "__next__", count)
    monkeypatch.setattr(readers, "MAX_ROW", 10_000)
    (tmp_path / "a.csv").write_text("a,b,c\nd,e,f\n" + line * 5000, encoding="utf-8")
    entries = read(tmp_path / "a.csv")
    assert len(bad(entries)) == 5000
    assert [each.number for each in bad(entries).values()] == list(range(3, 5003))
    assert given < 5 * 5000


def test_an_open_quote_before_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 1000)
    text = 'a,b\n1,2\n"3,4\n5,6\n' + "x" * 5000 + ',7\n8,9\n"10,11\n' + "12,13\n" * 500
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    entries = read(tmp_path / "a.csv")
    long = "opens a quote: read to line {}, it is longer than 1,000 characters"
    assert [
        (row, each.number, each.problem, each.reason) for row, each in bad(entries).items()
    ] == [
        (1, 3, long.format(5), "unreadable_line"),
        (3, 5, "is longer than 1,000 bytes", "row_too_large"),
        (5, 7, long.format(173), "unreadable_line"),
    ]
    assert len(entries) == 6 + 500


def test_texts_of_many_lines_are_read_whole_wherever_chunks_end(tmp_path: Path) -> None:
    rows = [{"a": f'{n},\n\r\n"x"\n', "b": "\n" * (n % 3000)} for n in range(0, 20_000, 97)]
    write_csv(tmp_path / "a.csv", rows, {})
    for chunk_rows in (1, 2, 2048):
        assert read(tmp_path / "a.csv", chunk_rows=chunk_rows) == rows


def test_a_quote_that_is_open_in_the_first_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,"b\n' + "1,2\n" * 9, encoding="utf-8")
    message = refusal(tmp_path / "a.csv")
    assert "a.csv line 1 opens a quote: read to line 10, it ends inside a quote" in message


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
    assert f"{name} has no rows: check" in refusal(path)


@pytest.mark.parametrize("first", [b"prompt,response", b'"prompt"', b"{", b'{"a": "\xe9"}'])
def test_a_file_that_begins_with_no_row_is_refused(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"", first, *lines_of(numbered_rows(5))]))
    message = refusal(path)
    assert "line 2 is" in message
    assert "mend or remove the line where others are rows" in message


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


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("extra", "out"),
    [
        ({}, "and data holds a list of objects: write it by itself, e.g. jq -c '.data[]' FILE"),
        ({"more": [[], {}]}, "and data, more hold lists of objects: write one by itself, e.g. jq"),
        ({"n": 1, "names": ["x"], "none": []}, "and data holds a list of objects"),
    ],
)
def test_one_object_over_many_lines_or_longer_than_a_row_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    indent: int | None,
    extra: dict[str, Any],
    out: str,
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 70_000)
    value = {"version": "1.0", "data": numbered_rows(2000), **extra}
    text = f"\n {json.dumps(value, indent=indent)}\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert f"{name} is one object, not rows" in refusal(tmp_path / name)
    assert out in refusal(tmp_path / name)
    assert len(refusal(tmp_path / name)) < 400


def test_one_object_without_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n"a": {"b": 1}\n}', encoding="utf-8")
    assert refusal(tmp_path / "a.json").endswith("write each row in one line of a .jsonl file")


def test_what_pandas_writes_as_one_object_becomes_rows_as_told(tmp_path: Path) -> None:
    rows = [
        {**row, "digits": f"0{n}", "date": "2020-01-01"} for n, row in enumerate(numbered_rows(99))
    ]
    table = pd.DataFrame(rows)
    for orient, way in (
        ("index", "jq -c '.[]' FILE"),
        ("columns", "pandas.read_json(FILE, dtype=False)"),
    ):
        table.to_json(tmp_path / "a.json", orient=orient, indent=1)
        assert way in refusal(tmp_path / "a.json")
    pd.read_json(tmp_path / "a.json", dtype=False).to_json(
        tmp_path / "new.jsonl", orient="records", lines=True
    )
    assert read(tmp_path / "new.jsonl") == rows


@pytest.mark.parametrize("text", ['{["a"]: 1\n}', '{{"a": 1}: 1\n}', '{1: [{"a": 1}]\n}'])
def test_an_object_whose_keys_are_no_texts_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert "line 1 is not JSON: Expecting property name" in refusal(tmp_path / "a.json")


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_one_object_in_a_line_is_a_row(tmp_path: Path, end: str) -> None:
    row = {"messages": [{"role": "user", "content": "x" * 100_000}]}
    (tmp_path / "a.json").write_text(json.dumps(row) + end, encoding="utf-8")
    assert read(tmp_path / "a.json") == [row]


@pytest.mark.parametrize(
    "first", [b'{"a": "\xe9"}', b'{"a": "\xe9", "b": "' + b"x" * 70_000 + b'"}']
)
@pytest.mark.parametrize("other", [b'{"a": "\xe9"}', '{"a": "é"}'.encode()])
def test_a_first_line_in_another_encoding_says_what_to_convert(
    tmp_path: Path, first: bytes, other: bytes
) -> None:
    (tmp_path / "a.jsonl").write_bytes(first + b"\n" + other + b"\n")
    assert f"line 1 {NOT_UTF8}, or this line alone where others are UTF-8" in refusal(
        tmp_path / "a.jsonl"
    )


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
