"""Files appear whole, in strict and stable JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dollyllama import files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_lone_surrogate_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "new \ud800")
    assert path.read_text() == "old"


def test_json_keys_are_sorted_and_text_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "a.json"
    files.write_json(path, {"b": "é", "a": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "é"\n}\n'


def test_json_lines_survive_line_separators_within_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one\u2028two\x85three"}, {"text": "a\nb\r\n"}, []]
    files.write_json_lines(path, rows)
    assert files.read_json_lines(path) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00llama" * 100_000)
    assert files.digest(path) == hashlib.sha256(b"\x00llama" * 100_000).hexdigest()
