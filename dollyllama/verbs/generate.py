"""``generate``: answers of a trained run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from dollyllama.verbs.parser import open_run, run_parser


def main(arguments: Sequence[str]) -> None:
    """answer an instruction with a trained run"""
    command = run_parser("generate", main.__doc__)
    command.add_argument("--instruction", help="what to answer; without it, asked for or read")
    given = command.parse_intermixed_args(arguments)
    run_config = open_run(given.run, given.overrides)
    if given.instruction is None and not sys.stdin.isatty():
        given.instruction = sys.stdin.read().strip()
    if given.instruction == "":
        raise ValueError("the instruction is empty: give --instruction TEXT")

    from dollyllama.data.prompt import format_prompt
    from dollyllama.decoding.generate import generate as generate_answers
    from dollyllama.run import restore

    model, tokenizer = restore(run_config, given.run)

    def answer(instruction: str) -> None:
        (completion,) = generate_answers(
            model,
            tokenizer,
            [format_prompt(instruction)],
            **asdict(run_config.decoding),
            batch_size=1,
            seed=run_config.seed,
        )
        print(completion.text)

    if given.instruction is not None:
        answer(given.instruction)
        return
    print("An empty line ends.", file=sys.stderr)
    while instruction := _ask("instruction> "):
        answer(instruction)


def _ask(question: str) -> str:
    """One line from the terminal, stripped; empty at its end."""
    try:
        return input(question).strip()
    except EOFError:
        return ""
