"""``generate``: one answer, and a file of them that survives damage and a stop in the middle."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from dollyllama import answers
from dollyllama.__main__ import main
from dollyllama.config import RowFormat
from dollyllama.data.example import Question
from dollyllama.data.formats import FORMATS, sql_instruction
from dollyllama.data.prompt import Stretches, text_of
from dollyllama.decoding.generate import PromptTooLargeError
from dollyllama.files import read_signed_json, write_signed_json

GOOD: list[dict[str, Any]] = [
    {"instruction": "Name a bird.", "id": 7},
    {"instruction": "Two\u2028lines."},
    {"question": "How many?", "context": "CREATE TABLE head (age VARCHAR)"},
]


def write_input(path: Path, *lines: str) -> Path:
    rows = [json.dumps(row, ensure_ascii=False) for row in GOOD]
    path.write_text("\n".join([rows[0], *lines, *rows[1:]]) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def generate(run: Path, source: Path, output: Path, *overrides: str) -> int:
    arguments = ["--input", str(source), "--output", str(output)]
    return main(["generate", str(run), *overrides, *arguments])


def test_an_instruction_is_answered(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(small_run), "--instruction", "Say hello."]) == 0
    said = capsys.readouterr()
    assert said.out.strip()
    assert "cut off after 8 tokens" in said.err


def test_a_question_with_a_schema_is_asked_as_in_training() -> None:
    row = {"question": " Who? ", "context": "CREATE TABLE a (b VARCHAR)", "answer": "SELECT b"}
    fields = FORMATS[RowFormat.sql_create_context].read(row)
    assert fields.instruction == sql_instruction(row["question"], row["context"])
    assert fields.instruction.endswith("Who?, given the following schema: a (b STRING)")


def test_a_file_is_answered_in_order_with_its_fields(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path / "in.jsonl")
    assert generate(small_run, source, tmp_path / "out.jsonl") == 0
    assert "not asked, only repeated in the output: id\n" in capsys.readouterr().err
    rows = read(tmp_path / "out.jsonl")
    assert [
        {name: row[name] for name in want} for row, want in zip(rows, GOOD, strict=True)
    ] == GOOD
    assert all(row["tokens"] == 8 and row["stopped_by"] == "length" for row in rows)


def test_damaged_lines_are_named_and_the_others_answered(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        "{",
        "[1]",
        '{"instruction": " "}',
        '{"text": 1}',
        f'{{"instruction": "{"a b " * 900}"}}',
    ]
    bad += ['{"instruction": "\\ud800"}', "[" * 100_000, '{"instruction": "a", "error": "mine"}']
    source = write_input(tmp_path / "in.jsonl", *bad)
    assert generate(small_run, source, tmp_path / "out.jsonl") == 1
    said = capsys.readouterr().err
    assert f"{source} line 2: it is no JSON" in said
    assert "3 of 11 lines answered" in said
    assert "and 3 more" in said
    rows = read(tmp_path / "out.jsonl")
    assert ["error" in row for row in rows] == [False, *[True] * 8, False, False]
    assert "positions" in rows[5]["error"]
    assert "surrogate" in rows[6]["error"]
    assert rows[8] == {"instruction": "a", "error": "the field error is an answer's: rename it"}
    # Once more: nothing to do, and the same lines are named.
    assert generate(small_run, source, tmp_path / "out.jsonl") == 1
    assert read(tmp_path / "out.jsonl") == rows


def test_a_half_written_output_is_continued_to_the_same_answers(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_WINDOW_BATCHES", 1)
    drawn = ("decoding=nucleus", "decoding.max_new_tokens=8", "evaluation=loss_only")
    drawn = (*drawn, "evaluation.batch_size=2")
    source = write_input(tmp_path / "in.jsonl", "{")
    output = tmp_path / "out.jsonl"
    assert generate(small_run, source, output, *drawn) == 1
    whole = output.read_bytes()
    for kept in (0, 5, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        output.write_bytes(whole[:kept])
        assert generate(small_run, source, output, *drawn) == 1
        assert output.read_bytes() == whole


def test_a_mended_line_is_asked_again_and_what_stands_behind_it(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_WINDOW_BATCHES", 1)
    drawn = ("decoding=nucleus", "decoding.max_new_tokens=8")
    good = '{"instruction": "Name a fish."}'
    fresh = tmp_path / "fresh.jsonl"
    assert generate(small_run, write_input(tmp_path / "a.jsonl", good), fresh, *drawn) == 0
    output = tmp_path / "out.jsonl"
    source = write_input(tmp_path / "in.jsonl", "{")
    assert generate(small_run, source, output, *drawn) == 1
    write_input(source, good)
    assert generate(small_run, source, output, *drawn) == 0
    assert output.read_bytes() == fresh.read_bytes()
    # Another input is no mended one, even where this one's line was damaged.
    write_input(source, "{")
    output.unlink()
    assert generate(small_run, source, output, *drawn) == 1
    before = output.read_bytes()
    source.write_text(f"{good}\n" * 4, encoding="utf-8")
    assert generate(small_run, source, output, *drawn) == 2
    assert output.read_bytes() == before


def test_a_schema_may_be_called_so(tmp_path: Path) -> None:
    rows = [GOOD[2], {"question": GOOD[2]["question"], "schema": GOOD[2]["context"]}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, other = answers.read_requests(tmp_path / "in.jsonl")
    assert one.question == other.question
    assert other.error is None


def test_an_adapter_that_is_gone_is_not_to_be_trained_again(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    assert main(["generate", str(run), "--instruction", "a"]) == 2
    assert "is finished, but its adapter is gone" in capsys.readouterr().err
    (run / "result.json").unlink()
    source = write_input(tmp_path / "in.jsonl")
    assert generate(run, source, tmp_path / "out.jsonl") == 2
    assert f"python train.py resume={run} goes on" in capsys.readouterr().err


def test_an_input_stands_below_its_instruction_as_in_training(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Sort these.", "input": "3, 1"},
        {"instruction": "Sort these.", "input": "<noinput>"},
        {"instruction": "Sort these.", "input": None},
        {"instruction": "Sort these.", "input": 7},
    ]
    data = "\n".join(json.dumps(row) for row in rows).encode()
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(data))
    requests = answers.read_requests(tmp_path / "in.jsonl.gz")
    trained = FORMATS[RowFormat.alpaca].read({**rows[0], "output": "1, 3"})
    alone = Question("Sort these.")
    assert [each.question for each in requests] == [
        Question(trained.instruction, trained.input),
        alone,
        alone,
        Question(""),
    ]
    assert requests[3].error == "input is no text"
    (tmp_path / "half.gz").write_bytes(gzip.compress(data)[:-9])
    with pytest.raises(ValueError, match=r"half\.gz is not a whole gzip file"):
        answers.read_requests(tmp_path / "half.gz")


def test_a_context_stands_below_its_instruction_as_in_training(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Summarise.", "context": "Farms are old.", "category": "qa"},
        {"instruction": "Summarise.", "context": "Farms are old.", "input": ""},
        {"instruction": "Summarise.", "context": "", "input": "Farms are old."},
        {"instruction": "Summarise.", "context": 7},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    requests = answers.read_requests(tmp_path / "in.jsonl")
    trained = FORMATS[RowFormat.databricks_dolly].read({**rows[0], "response": "Old."})
    about = Question(trained.instruction, trained.input)
    assert about.input == "Farms are old."
    assert [each.question for each in requests] == [about, about, about, Question("")]
    assert requests[3].error == "context is no text"
    assert answers.only_repeated(requests) == ["category"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a", "schema": "CREATE TABLE a (b INT)"}, "schema would not be asked"),
        ({"instruction": "a", "input": "b", "context": "c"}, "beside instruction and input"),
        ({"question": "a", "schema": "b", "input": "c"}, "would not be asked beside question and"),
        ({"instruction": "a", "question": "b", "context": "c"}, "instruction would not be asked"),
        ({"instruction": "a", "system": "Be brief."}, "system would not be asked"),
    ],
)
def test_no_part_of_a_question_is_dropped_in_silence(
    tmp_path: Path, row: dict[str, str], said: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (request,) = answers.read_requests(tmp_path / "in.jsonl")
    assert said in str(request.error)
    assert request.fields == row


def test_a_prompt_too_large_for_the_memory_is_named_and_the_others_answered(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = answers.generate

    def scarce(model: Any, tokenizer: Any, prompts: list[Stretches], *rest: Any, **how: Any) -> Any:
        for row, prompt in enumerate(prompts):
            if "Huge" in text_of(prompt):
                raise PromptTooLargeError(row, "out of memory with one prompt")
        return real(model, tokenizer, prompts, *rest, **how)

    monkeypatch.setattr(answers, "generate", scarce)
    source = write_input(tmp_path / "in.jsonl", '{"instruction": "Huge."}')
    assert generate(small_run, source, tmp_path / "out.jsonl") == 1
    rows = read(tmp_path / "out.jsonl")
    assert ["error" in row for row in rows] == [False, True, False, False]


@pytest.mark.parametrize("damage", ["output", "settings"])
def test_a_damaged_output_is_named(
    small_run: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    assert generate(small_run, source, output) == 0
    file = output if damage == "output" else tmp_path / "out.jsonl.settings.json"
    file.write_text("1\n" if damage == "output" else "{", encoding="utf-8")
    capsys.readouterr()
    assert generate(small_run, source, output) == 2
    assert f"{file} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["decoding", "batch", "input", "foreign"])
def test_an_output_of_something_else_is_left_alone(
    small_run: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_input(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    if change == "foreign":
        output.write_text("mine\n", encoding="utf-8")
    else:
        assert generate(small_run, source, output) == 0
    before = output.read_bytes()
    changed = {
        "decoding": ["decoding.max_new_tokens=4"],
        "batch": ["evaluation=loss_only", "evaluation.batch_size=2"],
    }
    overrides = changed.get(change, [])
    if change == "input":
        source.write_text('{"instruction": "Other."}\n' * 3, encoding="utf-8")
    capsys.readouterr()
    assert generate(small_run, source, output, *overrides) == 2
    assert "name another --output" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "absent.jsonl", "--output", "out.jsonl"], "absent.jsonl is not there"),
        (["--input", "absent.jsonl"], "go together"),
        (["--instruction", " "], "instruction is empty"),
        (["--input", ".", "--output", "out.jsonl"], "--input . is a folder"),
        (["--input", "a.jsonl", "--output", "."], "--output . is a folder"),
        (["--instruction", "a", "--schema", ""], "--schema is empty"),
        (["--instruction", "a", "decoding=gready"], "did you mean decoding=greedy?"),
        (["--instruction", "a", "decoding=contrastive", "decoding.repetition_penalty=2"], "has no"),
        (["--instruction", "word " * 3000], "shorten it"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(small_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_input_is_not_written_over(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path / "in.jsonl")
    before = source.read_bytes()
    assert generate(small_run, source, source) == 2
    assert "is the input" in capsys.readouterr().err
    assert source.read_bytes() == before


class Terminal:
    """``generate RUN`` at a terminal of its own."""

    def __init__(self, run: Path, *overrides: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dollyllama", "generate", str(run), *overrides],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # A session of its own with this terminal in charge, so that Ctrl-C arrives: two
            # system calls, which other threads cannot disturb.
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # noqa: PLW1509
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self._seen = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, pattern: str) -> str:
        """What it shows up to and with ``pattern``, from where the last call ended."""
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._ours], [], [], 120)
            assert ready, f"it never came: {pattern!r} in {self._seen!r}"
            try:
                self._seen += os.read(self._ours, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                raise AssertionError(f"it ended: {self._seen!r}") from None
        shown, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_at_a_terminal_it_streams_keeps_a_history_and_outlives_ctrl_c(small_run: Path) -> None:
    hot = ("decoding=temperature", "decoding.temperature=2", "decoding.max_new_tokens=400")
    terminal = Terminal(small_run, *hot)
    try:
        terminal.until("instruction> ")
        terminal.type("Name a bird.\n")
        terminal.until(r"Name a bird\.\r\n.+")  # the first piece of an answer of 400 tokens
        terminal.type("\x03")
        terminal.until(r"\(stopped\)")
        terminal.until("instruction> ")
        terminal.type("word " * 600 + "\n")
        terminal.until("shorten it")
        terminal.until("instruction> ")
        terminal.type("\x1b[A\x1b[A\n")  # arrow up twice: the first instruction again
        terminal.until(r"Name a bird\.\s*\r\n.+")
        terminal.type("\x03")
        terminal.until("instruction> ")
        terminal.type("\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_named(
    small_run: Path, tmp_path: Path, name: str, recorded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    file = run / "adapter" / name
    said = f"{file} is missing"
    if name.endswith(".json"):
        file.write_text("{", encoding="utf-8")
        said = f"{name} differs" if recorded else f"{file} is damaged"
    else:
        file.unlink()
    if not recorded:  # as runs of an earlier version are
        origin = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        del origin["adapter"]
        (run / "provenance.json").write_text(json.dumps(origin), encoding="utf-8")
        result = read_signed_json(run / "result.json")
        write_signed_json(run / "result.json", {**result, "files": {}})
    assert main(["generate", str(run), "--instruction", "a"]) == 2
    assert said in capsys.readouterr().err


def test_what_is_required_is_the_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate"]) == 2
    assert "are required: run;" in capsys.readouterr().err
