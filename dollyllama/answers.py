"""A file of instructions to a file of answers: JSON Lines in and out, in order, resumable.

Each output line carries its input's fields and ``completion``, ``tokens`` and ``stopped_by``, or
``error`` where the line could not be asked. So line n of the output belongs to the n-th line of the
input that is not blank, also where that line is damaged. The settings that the answers were made
with lie beside the output, in ``<output>.settings.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollyllama.config import Decoding, PromptFormat
from dollyllama.data.example import Question
from dollyllama.data.formats import read_input, sql_instruction
from dollyllama.data.prompt import build_prompt
from dollyllama.data.tokens import encode_prompts
from dollyllama.decoding.generate import Completion, PromptTooLargeError, generate
from dollyllama.files import parse_json, read_unpacked, write_json

#: So many batches are answered at once: within them, prompts of like length go together.
_WINDOW_BATCHES = 8


#: What an answer adds to a line; an input that has one of these cannot be told from an answer.
_ANSWER_FIELDS = ("completion", "tokens", "stopped_by", "error")


@dataclass(slots=True)
class Request:
    """One line of the input.

    fields: what the output line repeats of it. error: why it cannot be asked, else None.
    """

    line: int
    fields: dict[str, Any]
    question: Question
    error: str | None = None


#: What formats of training call a part of what is asked: such a field is asked, or an error.
#: Any other is the caller's own (an id, a reference), and only repeated.
_ASKED = frozenset(
    """
    instruction input context question schema prompt system history messages conversations turns
    """.split()
)

#: What a line asks that cannot be asked.
_NONE = Question("")


def read_requests(path: Path) -> list[Request]:
    """Read every line that is not blank; a damaged one becomes a request with an error.

    Lines end at line feeds alone: U+2028 inside a string is no line break. A name in .gz is
    unpacked.
    """
    lines = read_unpacked(path, f"--input {path}").split(b"\n")
    return [_read(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _read(number: int, line: bytes) -> Request:
    try:
        fields = json.loads(line.decode("utf-8"))
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return Request(number, {}, _NONE, "it holds half a surrogate pair, which is no text")
    except ValueError as error:
        return Request(number, {}, _NONE, f"it is no JSON ({error})")
    except RecursionError:
        return Request(number, {}, _NONE, "it is nested too deeply")
    if not isinstance(fields, dict):
        return Request(number, {}, _NONE, "it is no JSON object")
    if taken := [name for name in _ANSWER_FIELDS if name in fields]:
        kept = {name: value for name, value in fields.items() if name not in _ANSWER_FIELDS}
        return Request(number, kept, _NONE, f"the field {taken[0]} is an answer's: rename it")
    schema = "schema" if "schema" in fields else "context"
    # Alpaca's name and Dolly's for what an instruction is about.
    given = next((name for name in ("input", "context") if fields.get(name)), "input")
    asks_sql = "question" in fields
    wanted = ("question", schema) if asks_sql else ("instruction",)
    taken_up = wanted if asks_sql else (*wanted, given)
    for name in wanted:
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            what = "is empty" if isinstance(value, str) else "is missing or no text"
            return Request(number, fields, _NONE, f"{name} {what}")
    ignored = [name for name in fields if name in _ASKED and fields[name] and name not in taken_up]
    if ignored:
        said = f"{ignored[0]} would not be asked beside {' and '.join(taken_up)}: leave it out"
        return Request(number, fields, _NONE, said)
    if asks_sql:
        instruction = sql_instruction(fields["question"], fields[schema])
        return Request(number, fields, Question(instruction))
    text = fields.get(given)
    if text is not None and not isinstance(text, str):
        return Request(number, fields, _NONE, f"{given} is no text")
    return Request(number, fields, Question(fields["instruction"], read_input(text)[0]))


def only_repeated(requests: Sequence[Request]) -> list[str]:
    """The fields of ``requests`` that no prompt has any of."""
    return sorted(
        {name for each in requests if each.error is None for name in each.fields} - _ASKED
    )


def resume_at(output: Path, requests: Sequence[Request], settings: dict[str, Any]) -> int:
    """How many requests ``output`` has answered already; a half-written last line is cut off.

    It is cut too at an error whose input line has been mended since: what stands behind was drawn
    with other neighbours. ValueError when it was made with other settings or from another input.
    """
    if not output.exists():
        return 0
    kept = _settings_file(output)
    if not kept.is_file() or _read_settings(kept) != settings:
        raise ValueError(
            f"{output} exists and was not made by this run with this decoding: name another "
            f"--output, or remove it"
        )
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    if len(lines) > len(requests):
        raise ValueError(f"{output} has more lines than the input: it belongs to another one")
    mended = len(lines)
    for number, (line, request) in enumerate(zip(lines, requests, strict=False), start=1):
        try:
            fields = parse_json(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise ValueError(f"{output} is damaged in line {number}: remove it")
        if any(fields.get(name) != value for name, value in request.fields.items()):
            if "error" in fields and request.error is None:
                mended = min(mended, number - 1)
                continue
            raise ValueError(
                f"{output} line {number} does not belong to line {request.line} of the input: name "
                f"another --output, or remove it"
            )
        request.error = fields.get("error")
    whole = b"".join(line + b"\n" for line in lines[:mended])
    if whole != content:
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return mended


def answer_lines(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Request],
    output: Path,
    *,
    start: int,
    settings: dict[str, Any],
    prompt: PromptFormat,
    decoding: Decoding,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    """Append the answers to ``requests[start:]`` to ``output``, window by window.

    Draws depend on the seed and the window alone, and windows begin at the same lines whenever the
    work was stopped, if ``settings`` holds all that decides: ``batch_size`` too. A prompt without
    room for an answer gets an error. progress: called with the number of lines done.
    """
    write_json(_settings_file(output), settings)
    size = batch_size * _WINDOW_BATCHES
    for begin in range(start // size * size, len(requests), size):
        window = requests[begin : begin + size]
        _check_lengths(model, tokenizer, window, prompt)
        how = {"batch_size": batch_size, "seed": seed + begin}
        completions = iter(_answer(model, tokenizer, window, prompt, decoding, **how))
        lines = []
        for request in window:
            if request.error is None:
                done = next(completions)
                outcome = {
                    "completion": done.text,
                    "tokens": done.tokens,
                    "stopped_by": done.stopped_by,
                }
            else:
                outcome = {"error": request.error}
            lines.append(json.dumps({**request.fields, **outcome}, ensure_ascii=False) + "\n")
        with output.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(lines[max(start - begin, 0) :])
        progress(begin + len(window))


def _answer(
    model: Any,
    tokenizer: Any,
    window: Sequence[Request],
    prompt: PromptFormat,
    decoding: Decoding,
    **how: Any,
) -> list[Completion]:
    """Answer the requests without an error; one too large for the memory gets an error instead."""
    while True:
        good = [request for request in window if request.error is None]
        prompts = [build_prompt(request.question, prompt, tokenizer) for request in good]
        try:
            return generate(model, tokenizer, prompts, decoding, **how)
        except PromptTooLargeError as error:
            good[error.row].error = str(error)


def _check_lengths(
    model: Any, tokenizer: Any, window: Sequence[Request], prompt: PromptFormat
) -> None:
    positions = model.config.max_position_embeddings
    good = [request for request in window if request.error is None]
    prompts = [build_prompt(request.question, prompt, tokenizer) for request in good]
    encoded = encode_prompts(prompts, tokenizer) if prompts else []
    for request, ids in zip(good, encoded, strict=True):
        if len(ids) >= positions:
            request.error = f"its prompt has {len(ids)} tokens and the model {positions} positions"


def _read_settings(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and its output") from None


def _settings_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.settings.json")
