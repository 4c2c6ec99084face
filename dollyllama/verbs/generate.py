"""``generate``: answers of a trained run, to one instruction, to a person, or to a file of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollyllama.verbs.parser import fetched, open_run, run_parser, written

if TYPE_CHECKING:
    from dollyllama.decoding.generate import Completion, Piece

#: Tell what is wrong with some lines of an input whose others were answered.
_SOME_LINES_FAILED = 1

#: So many of them are named.
_SHOWN = 5


def main(arguments: Sequence[str]) -> int:
    """answer an instruction with a trained run, a person at the terminal, or a JSON Lines file"""
    command = run_parser("generate", main.__doc__)
    command.add_argument("--instruction", help="what to answer; without it, asked for or read")
    command.add_argument(
        "--schema", help="CREATE TABLE statements: the instruction is a question, answered in SQL"
    )
    command.add_argument(
        "--input",
        type=fetched,
        help='JSON Lines: {"instruction": …} (and "input" or "context", where it has one) or '
        '{"question": …, "schema": …} a line; other fields are only repeated; '
        "the exit status is 1 when some lines could not be asked",
    )
    command.add_argument(
        "--output",
        type=written,
        help="JSON Lines for --input; one that is half written is continued",
    )
    given = command.parse_intermixed_args(arguments)
    if (given.input is None) != (given.output is None):
        raise ValueError("--input and --output go together")
    if given.input is not None and (given.instruction or given.schema):
        raise ValueError("--input brings its own instructions: leave out --instruction, --schema")
    if given.schema is not None and not given.schema.strip():
        raise ValueError("--schema is empty: give CREATE TABLE statements, or leave it out")
    run_config = open_run(given.run, given.overrides)
    if given.input is not None:
        return _answer_file(run_config, given.run, given.input, given.output)
    if given.instruction is None and not sys.stdin.isatty():
        given.instruction = sys.stdin.read().strip()
    if given.instruction is not None and not given.instruction.strip():
        raise ValueError("the instruction is empty: give --instruction TEXT")

    from dollyllama.data.example import Question
    from dollyllama.data.formats import sql_instruction
    from dollyllama.data.prompt import build_prompt
    from dollyllama.decoding.generate import stream
    from dollyllama.fast.attach import fast_inference
    from dollyllama.restore import restore

    model, tokenizer = restore(run_config, given.run)

    def pieces(instruction: str) -> Iterator[Piece]:
        if given.schema:
            instruction = sql_instruction(instruction, given.schema)
        return stream(
            model,
            tokenizer,
            [build_prompt(Question(instruction), run_config.data.prompt, tokenizer)],
            run_config.decoding,
            seed=run_config.seed,
        )

    with fast_inference(model):
        if given.instruction is not None:
            _show(pieces(given.instruction))
        else:
            _converse(pieces)
    return 0


def _show(pieces: Iterator[Piece]) -> None:
    """Print an answer as it is written, and say so when its length cut it short."""
    from dollyllama.decoding.generate import StoppedBy

    completion: Completion | None = None
    for piece in pieces:
        print(piece.text, end="", flush=True)
        completion = piece.completion
    print()
    if completion is not None and completion.stopped_by is StoppedBy.length:
        print(
            f"(cut off after {completion.tokens} tokens: decoding.max_new_tokens allows more)",
            file=sys.stderr,
        )


def _converse(pieces: Callable[[str], Iterator[Piece]]) -> None:
    """Answer line after line; each stands alone, as in training. Ctrl-C stops one answer."""
    import readline  # noqa: F401 - gives input() its history and line editing

    print("Each line is an instruction of its own. An empty one ends.", file=sys.stderr)
    while instruction := _ask("instruction> "):
        try:
            _show(pieces(instruction))
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        except ValueError as error:  # a prompt that is too long, say: the next may not be
            print(f"error: {error}", file=sys.stderr)


def _ask(question: str) -> str:
    """One line from the terminal, stripped; empty at its end."""
    try:
        return input(question).strip()
    except EOFError:
        return ""


def _answer_file(run_config: Any, run: Path, source: Path, output: Path) -> int:
    for flag, path in (("--input", source), ("--output", output)):
        if path.is_dir():
            raise ValueError(f"{flag} {path} is a folder: name a file")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"--output {output} is the input: name another file")
    if not source.exists():
        raise ValueError(f"--input {source} is not there")

    from dollyllama.answers import answer_lines, only_repeated, read_requests, resume_at
    from dollyllama.bars import stage_bar
    from dollyllama.fast.attach import fast_inference
    from dollyllama.files import digest
    from dollyllama.restore import require_adapter, restore

    requests = read_requests(source)
    if repeated := only_repeated(requests):
        print(f"not asked, only repeated in the output: {', '.join(repeated)}", file=sys.stderr)
    weights = require_adapter(run) / "adapter_model.safetensors"
    settings = {
        "adapter": digest(weights) if weights.is_file() else None,  # restore names what is missing
        "seed": run_config.seed,
        "batch_size": run_config.evaluation.batch_size,
        **asdict(run_config.decoding),
    }
    done = resume_at(output, requests, settings)
    if done < len(requests):
        model, tokenizer = restore(run_config, run)
        with stage_bar("answers") as progress, fast_inference(model):
            answer_lines(
                model,
                tokenizer,
                requests,
                output,
                start=done,
                settings=settings,
                prompt=run_config.data.prompt,
                decoding=run_config.decoding,
                batch_size=run_config.evaluation.batch_size,
                seed=run_config.seed,
                progress=lambda count: progress("lines", count, len(requests)),
            )
    failed = [request for request in requests if request.error is not None]
    for request in failed[:_SHOWN]:
        print(f"{source} line {request.line}: {request.error}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more, see error in {output}", file=sys.stderr)
    resumed = f"; {done} stood there before" if done else ""
    answered = len(requests) - len(failed)
    print(f"{output}: {answered} of {len(requests)} lines answered{resumed}", file=sys.stderr)
    return _SOME_LINES_FAILED if failed else 0
