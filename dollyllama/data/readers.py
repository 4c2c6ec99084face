"""Files and data sets to rows, a chunk at a time, and what stands in a row's place and is none.

JSON and CSV are read here: ``datasets`` 5.2 turns every string of a column into quoted JSON when
one row holds another type, names no row when one is broken, and gives up the rows after it. Saved
data sets and the Hub are read through ``datasets``.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from dollyllama.data.formats import MAX_ROW, Inside, Row, one_object
from dollyllama.hub import hub_answers, root_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")

#: A chunk is closed when its lines have so many bytes, however few they are.
_CHUNK_BYTES = 8_000_000

#: How much of a line is kept to show what was rejected, in characters.
SHOWN = 10_000

#: First bytes of what is often saved under a wrong name, and what to do about it.
_SIGNATURES = (
    (b"PAR1", "is Parquet: give it the suffix .parquet"),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"\x1f\x8b", "is packed with gzip: give it the suffix .gz"),
    (b"BZh", "is packed with bzip2: unpack it"),
    (b"\xfd7zXZ", "is packed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd: unpack it"),
    (b"ARROW1", "is an Arrow file: save it as Parquet"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"\xff\xfe", "is UTF-16: convert it to UTF-8"),
    (b"\xfe\xff", "is UTF-16: convert it to UTF-8"),
    (b"<", "is HTML or XML, perhaps a page saved in the file's place: download it again"),
)


@dataclass(frozen=True, slots=True)
class Damaged:
    """What stands in a row's place and is none.

    number: its line, from 1. problem: "is not …". text: the line, at most 10,000 characters of it,
    with a mark for each byte that is no UTF-8. reason: what its rejection is called.
    """

    number: int
    problem: str
    text: str
    reason: str = "unreadable_line"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a place; JSON Lines come unparsed, so that workers share the parsing.

    first: the number of its first row, from 0. line: the line of its first entry, from 1.
    entries: rows, what stands in a row's place, and unparsed lines; b"" is a blank one and no row.
    """

    first: int
    line: int
    entries: list[bytes | Row | Damaged]

    def __len__(self) -> int:
        """How many rows there are, damaged ones counted."""
        return len(self.entries) - self.entries.count(b"")

    def parse(self, where: str) -> list[Row | Damaged]:
        """All rows in order. ValueError, after ``where``, when a file begins with no row at all.

        Such a file is most likely of another type, and every other line would be rejected.
        """
        parsed = [
            _parse_line(entry, number) if isinstance(entry, bytes) else entry
            for number, entry in enumerate(self.entries, start=self.line)
            if entry != b""
        ]
        if self.first == 0 and isinstance(start := parsed[0], Damaged):
            raise ValueError(
                f"{where} line {start.number} {start.problem} (later lines like it are left out, "
                f"but the first must be a row: mend or remove the line where others are rows)"
            )
        return parsed


def read_file(path: Path, where: str, *, chunk_rows: int) -> Iterator[Chunk]:
    """Read a Parquet, CSV or JSON file. ValueError, after ``where``, when it cannot be read."""
    if path.stat().st_size == 0:
        return iter(())
    if path.suffix == ".parquet":
        return in_chunks(_read_parquet(path, where, chunk_rows), chunk_rows)
    head = _head(path, where)
    if path.suffix == ".csv":
        return in_chunks(_read_csv(path, where), chunk_rows)
    if head.startswith(b"["):
        return in_chunks(_read_list(path, where), chunk_rows)
    if head.startswith(b"{") and isinstance(_parse_line(head.partition(b"\n")[0], 1), Damaged):
        _refuse_one_object(path, where)
    return _read_lines(path, where, chunk_rows)


def in_chunks(rows: Iterator[Row | Damaged], chunk_rows: int) -> Iterator[Chunk]:
    """Chunks of rows that are parsed already; ``Damaged`` knows its line, so the chunk need not."""
    first = 0
    while entries := list(islice(rows, chunk_rows)):
        yield Chunk(first, 0, [*entries])
        first += len(entries)


@contextmanager
def _unpacked(path: Path, where: str) -> Iterator[BufferedIOBase]:
    """Open a file, unpacked when its name ends in .gz. ValueError for no whole gzip file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{where} is not a whole gzip file ({error}): copy it again") from error
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}") from error


def _head(path: Path, where: str) -> bytes:
    """The first bytes that are no white space. ValueError when they tell of another file type."""
    with _unpacked(path, where) as file:
        head = file.read(65536).removeprefix(codecs.BOM_UTF8).lstrip()
    for signature, problem in _SIGNATURES:
        if head.startswith(signature):
            raise ValueError(f"{where} {problem}")
    return head


# --- JSON Lines ---


def _read_lines(path: Path, where: str, chunk_rows: int) -> Iterator[Chunk]:
    """Lines, unparsed. They end at line feeds alone: U+2028 belongs to a string."""
    with _unpacked(path, where) as file:
        file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
        entries: list[bytes | Row | Damaged] = []
        first, start, rows, size = 0, 1, 0, 0
        for number, line in enumerate(iter(partial(file.readline, MAX_ROW), b""), start=1):
            if len(line) == MAX_ROW and not line.endswith(b"\n"):
                entries.append(_too_long(number, line[: 4 * SHOWN]))
                while (line := file.readline(MAX_ROW)) and not line.endswith(b"\n"):
                    pass
                rows += 1
            elif line.isspace():
                entries.append(b"")
            else:
                entries.append(line)
                rows, size = rows + 1, size + len(line)
            if rows == chunk_rows or size > _CHUNK_BYTES:
                yield Chunk(first, start, entries)
                entries, first, start, rows, size = [], first + rows, number + 1, 0, 0
        if rows:
            yield Chunk(first, start, entries)


#: A file in another encoding, or lines of one among others: what mends the one ruins the other.
_NOT_UTF8 = "is not UTF-8: convert the file to UTF-8, or this line alone where others are UTF-8"


def _too_long(number: int, start: bytes) -> Damaged:
    problem = f"is longer than {MAX_ROW:,} bytes"
    return Damaged(number, problem, _show(start), "row_too_large")


def _show(line: bytes) -> str:
    return line.rstrip(b"\r\n")[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]


def _parse_line(line: bytes, number: int) -> Row | Damaged:
    try:
        row = json.loads(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError:
        return Damaged(number, _NOT_UTF8, _show(line))
    except (ValueError, RecursionError) as error:
        return Damaged(number, f"is not JSON: {_why(error)}", _show(line))
    return row if isinstance(row, dict) else _no_object(row, number, _show(line))


def _no_object(value: Any, number: int, text: str) -> Damaged:
    return Damaged(number, f"is a {type(value).__name__}, not an object with columns", text)


def _why(error: Exception) -> str:
    """What json found wrong, without the place."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


# --- one JSON list or object ---

_BLOCK = 1 << 20

#: No word that json takes as a whole is longer; it names the start of one that is cut. (Two
#: escapes that make one character are the longest.)
_LONGEST_WORD = 12


def _read_list(path: Path, where: str) -> Iterator[Row | Damaged]:
    """The objects of one JSON list, a block of text at a time.

    ValueError with the line of what is no JSON: nothing says where the next row would begin.
    """
    with _unpacked(path, where) as file:
        text = _Text(file, where)
        for number, value in _elements(text):
            yield value if isinstance(value, dict) else _no_object(value, number, text.last())
        if text.peek():
            raise text.error("has something after the end of the list")


def _elements(text: _Text) -> Iterator[tuple[int, Any]]:
    """The values of the list that stands here, each with its line."""
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        text.peek()
        number = text.line
        yield number, text.value()
        if text.take(",]") == "]":
            return


def _refuse_one_object(path: Path, where: str) -> None:
    """ValueError for a file that is one object, on several lines or longer than a row.

    One in a line of its own may be the only row: its columns tell.
    """
    with _unpacked(path, where) as file:
        text = _Text(file, where)
        try:
            text.peek()
            first = text.line
            inside = _inside(text)
            last = text.line
            alone = not text.peek()
        except ValueError:
            return  # other files begin so too, and reading them says what is wrong
        if alone and (last > first or text.size > MAX_ROW):
            raise ValueError(f"{where} {one_object(inside)}")


def _inside(text: _Text) -> dict[str, Inside]:
    """What the keys of the object that stands here hold."""
    inside = {}
    text.take("{")
    while True:
        text.peek()
        key = text.value()
        if not isinstance(key, str):
            raise text.error("is not JSON: a key is no text")
        text.take(":")
        if text.peek() == "[":  # perhaps all rows of the file, so one at a time
            kinds = {type(value) for _, value in _elements(text)}
            inside[key] = Inside.rows if dict in kinds else Inside.other
        else:
            inside[key] = Inside.of(text.value())
        if text.take(",}") == "}":
            return inside


class _Text:
    """A window on a long JSON text; what stands before ``at`` is done with.

    line: that of ``at``, from 1. size: how many characters were read.
    """

    def __init__(self, file: BufferedIOBase, where: str) -> None:
        self.file, self.where = file, where
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.start, self.at, self.line, self.ended = "", 0, 0, 1, False
        self.size = 0

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the end."""
        while True:
            after = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self._go(after)
            if after < len(self.text) or self.ended:
                return self.text[after : after + 1]
            self._read()

    def take(self, expected: str) -> str:
        """The next character, one of ``expected``."""
        found = self.peek()
        if not found or found not in expected:
            wanted = " or ".join(expected)
            raise self.error(
                f"is not JSON: Expecting {wanted}" + ("" if found else " (cut short?)")
            )
        self._go(self.at + 1)
        return found

    def value(self) -> Any:
        """The value that stands here, as a whole."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    self._go(error.pos)
                    raise self.error(f"is not JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise self.error(f"is not JSON: {_why(error)}") from error
            else:
                if end < len(self.text) or self.ended:
                    self.start = self.at
                    self._go(end)
                    return value
            if len(self.text) - self.at > MAX_ROW:
                raise self.error(f"begins a row longer than {MAX_ROW:,} characters: shorten it")
            self._read()

    def last(self) -> str:
        """The text of the last value, or the beginning of it."""
        return self.text[self.start : self.at][:SHOWN]

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend this: it is about the end of what there is, or a string."""
        at_end = error.pos >= len(self.text) - _LONGEST_WORD
        return at_end or error.msg.startswith("Unterminated string")

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self.where} line {self.line} {problem}")

    def _go(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def _read(self) -> None:
        block = self.file.read(_BLOCK)
        self.ended = not block
        try:
            new = self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            self._go(len(self.text))
            self.line += error.object.count(b"\n", 0, error.start)
            raise self.error(_NOT_UTF8) from error
        self.text, self.at = self.text[self.at :] + new, 0
        self.size += len(new)


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


# --- CSV and Parquet ---

_OPEN = "ends inside a quote"


class _Lines:
    """The lines of a CSV file, a record at a time; those of a damaged record come again.

    A quote that is open by mistake takes in the lines after it, up to another quote or the end,
    and they are rows most likely. number: of the last line, from 1. record: its lines since
    ``begin``, of at most MAX_ROW characters; csv.Error when there are more.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.number, self.size = file, 0, 0
        self.record: list[str] = []
        self.again: deque[str] = deque()
        self.tried = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        # What opens a quote before the line where an earlier record failed would fail there too:
        # so each line is read a few times at most, however many quotes there are.
        if self.record and self.number < self.tried:
            raise _Ended(_OPEN)
        line = self.again.popleft() if self.again else self._read()
        if not line and self.record:
            raise _Ended(_OPEN)
        if not line:
            raise StopIteration
        self.number += 1
        self.record.append(line)
        self.size += len(line)
        if self.size > MAX_ROW:
            raise _Ended(f"is longer than {MAX_ROW:,} characters")
        return line

    def begin(self) -> int:
        """Begin a record; the number of its first line."""
        self.record, self.size = [], 0
        return self.number + 1

    def damage(self, problem: str) -> Damaged:
        """The first line of the record as damaged; the others come again, as records of theirs."""
        first, *others = self.record
        if others:
            problem = f"opens a quote: read to line {self.number}, it {problem}"
        self.tried = max(self.tried, self.number)
        self.number -= len(others)
        self.again.extendleft(reversed(others))
        return Damaged(self.number, problem, _show(_bytes(first)))

    def _read(self) -> str:
        """The next line; of one that is longer than MAX_ROW characters only the beginning."""
        line = end = self.file.readline(MAX_ROW + 1)
        while len(line) > MAX_ROW and end and not end.endswith(("\n", "\r")):
            end = self.file.readline(MAX_ROW)
        return line


class _Ended(csv.Error):
    """A record gets no more lines; what is wrong with it, in the words of ``Damaged``."""


def _columns(line: str, delimiter: str) -> int:
    """How many columns a line of CSV has, the last one as it stands when its quote is open."""
    return len(next(csv.reader([line], delimiter=delimiter), []))


def _read_csv(path: Path, where: str) -> Iterator[Row | Damaged]:
    """Rows of text under the names in the first line; an empty line is no row.

    Between the columns are commas, semicolons (as where numbers have commas) or tabs: what makes
    most of the first line. ValueError when two columns have one name.
    """
    # Bytes that are no UTF-8 become lone surrogates, so that only their own row is rejected.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        csv.field_size_limit(MAX_ROW)
        try:
            first = next(lines, "")
            delimiter = max(",;\t", key=lambda each: _columns(first, each))
            header = next(csv.reader(chain([first], lines), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise ValueError(f"{where} line 1 {lines.damage(_why_csv(error)).problem}") from error
        if not _is_utf8("".join(header)):
            raise ValueError(f"{where} line 1 {_NOT_UTF8}")
        if len(set(header)) < len(header):
            twice = next(column for column in header if header.count(column) > 1)
            raise ValueError(f"{where} has two columns {twice}: rename one in its first line")
        yield from _records(lines, header, delimiter)


def _records(lines: _Lines, header: list[str], delimiter: str) -> Iterator[Row | Damaged]:
    """The rows after the first line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.size > MAX_ROW and len(lines.record) == 1:
                yield _too_long(number, _bytes(lines.record[0]))
            else:
                yield lines.damage(_why_csv(error))
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            yield lines.damage(f"has {len(cells)} values and the first line {len(header)} names")
        elif not _is_utf8("".join(cells)):
            yield Damaged(number, _NOT_UTF8, _show(_bytes("".join(lines.record))))
        else:
            yield dict(zip(header, cells, strict=True))


def _why_csv(error: csv.Error) -> str:
    """What is wrong with a record, in the words of ``Damaged``."""
    return str(error) if isinstance(error, _Ended) else f"is not CSV: {error}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(line: str) -> bytes:
    return line[:SHOWN].encode(errors="surrogateescape")


def _read_parquet(path: Path, where: str, batch_rows: int) -> Iterator[Row]:
    import pyarrow.parquet as pq

    try:
        # Else all of a row group is in memory at once, and a file may have but one.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BLOCK) as file:
            for batch in file.iter_batches(batch_rows):
                yield from batch.to_pylist()
    except _LIBRARY_FAULTS as error:
        raise ValueError(
            f"{where} cannot be read as parquet ({root_line(error)}): copy or download it again"
        ) from error


#: What pyarrow and datasets raise for a damaged file, its own description included.
_LIBRARY_FAULTS = (
    *(ValueError, OSError, KeyError, IndexError, TypeError, AttributeError),
    *(NotImplementedError, RuntimeError),
)


# --- through datasets: folders and the Hub ---


def _load_datasets() -> Any:
    """Import ``datasets`` without telemetry, bars or warnings."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    return datasets


def _stream(dataset: Any, batch_rows: int) -> Iterator[Row]:
    for batch in dataset.with_format("arrow").iter(batch_size=batch_rows):
        batch.validate(full=True)  # else a damaged offset ends the process: the file is mapped
        yield from batch.to_pylist()


def read_folder(folder: Path, where: str, *, split: str, chunk_rows: int) -> Iterator[Chunk]:
    """A data set saved with ``save_to_disk``, or a folder laid out like a Hub repository."""
    datasets = _load_datasets()
    try:
        data = _open_folder(datasets, folder, split)
    except (*_LIBRARY_FAULTS, datasets.exceptions.DatasetsError) as error:
        odd = "; datasets takes [ ] * ? in a path for patterns: rename the folder"
        hint = odd if set(str(folder)) & set("[]*?") else ""
        raise ValueError(f"{where} cannot be read: {root_line(error)}{hint}") from error
    if not isinstance(data, list):
        try:
            yield from in_chunks(_stream(data, chunk_rows), chunk_rows)
        except _LIBRARY_FAULTS as error:
            raise ValueError(f"{where} cannot be read: {root_line(error)}") from error
        return
    first = 0
    for path in data:
        name = path.relative_to(folder.absolute())
        for chunk in read_file(path, f"{where}/{name}", chunk_rows=chunk_rows):
            yield replace(chunk, first=first)
            first += len(chunk)


def _open_folder(datasets: Any, folder: Path, split: str) -> Any:
    """The split's files, when all are of SUFFIXES, or a data set."""
    if (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    if (folder / "dataset_dict.json").exists():
        splits = datasets.load_from_disk(str(folder))
    else:
        splits = datasets.load_dataset_builder(str(folder.absolute())).config.data_files
    if split not in splits:
        raise ValueError(f"there is no split {split}; the splits are {', '.join(map(str, splits))}")
    if not isinstance(splits[split], list):
        return splits[split]
    files = [Path(file) for file in splits[split]]
    if all(file.name.endswith(SUFFIXES) for file in files):
        return files
    return datasets.load_dataset(str(folder), split=split, streaming=True)


def read_hub(
    hub: str, revision: str | None, where: str, *, split: str, batch_rows: int
) -> Iterator[Row]:
    """A data set of the Hub, through the ordinary Hugging Face cache.

    ``OWNER/NAME:CONFIGURATION`` picks one of several configurations.
    """
    datasets = _load_datasets()
    import huggingface_hub

    answers = hub_answers(huggingface_hub.constants.ENDPOINT)
    if not answers:
        # Five retries of a name that does not resolve take 23 s and print ten lines.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    name, _, configuration = hub.partition(":")
    try:
        data = datasets.load_dataset(name, configuration or None, revision=revision, split=split)
        yield from _stream(data, batch_rows)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        why = root_line(error) if answers else "it does not answer from here"
        raise ValueError(
            f"{where} cannot be had from the Hub ({why}): "
            f"set data.root=FOLDER to a folder with local copies, or use data=sample"
        ) from error
