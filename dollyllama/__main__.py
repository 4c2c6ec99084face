"""The verbs: ``python -m dollyllama VERB``, each on a run folder or on ``train.py``'s overrides."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from dollyllama import launch, preflight
from dollyllama.explain import one_line

#: What can still be chosen for an adapter that is trained.
_AFTER_TRAINING = ("decoding", "evaluation", "device", "seed")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help tells more")


def main(arguments: Sequence[str]) -> int:
    """Run a verb; the exit status is 2 for what the user can mend, 130 when interrupted."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_usage())
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            meant = get_close_matches(verb, VERBS, n=1)
            hint = f": did you mean {meant[0]}?" if meant else f": there are {', '.join(VERBS)}"
            raise ValueError(f"there is no verb {verb}{hint}")
        VERBS[verb](rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`show RUN | head`); the interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return launch.MENDABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return launch.INTERRUPTED
    return 0


def prepare(arguments: Sequence[str]) -> None:
    """read, clean, split and tokenise the data that train.py would use; show what became of it"""
    parser = _parser("prepare")
    parser.add_argument(
        "overrides", nargs="*", help="as for train.py: data=sql data.max_length=256"
    )
    parser.add_argument("--output", type=Path, help="folder for data.json and rejected.jsonl")
    parser.add_argument("--examples", type=int, default=4, help="how many to show (default: 4)")
    given = parser.parse_intermixed_args(arguments)
    run_config = launch.compose_run(given.overrides)
    preflight.check(run_config)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.data.show import count_table, show_examples
    from dollyllama.files import write_json, write_json_lines
    from dollyllama.model.load import load_tokenizer

    tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    started = datetime.datetime.now()
    output = given.output or Path("runs", "prepared", f"{started:%Y-%m-%d_%H-%M-%S-%f}")
    write_json(output / "data.json", data.manifest)
    write_json_lines(output / "rejected.jsonl", (asdict(row) for row in data.rejected))
    print(count_table(data.manifest))
    if given.examples > 0:
        print(f"\n{show_examples(data, tokenizer, given.examples, colour=sys.stdout.isatty())}")
    print(f"\n{output / 'data.json'}\n{output / 'rejected.jsonl'}")


def show(arguments: Sequence[str]) -> None:
    """tell a run on one screen, also while it runs and after it failed"""
    parser = _parser("show")
    parser.add_argument("run", type=Path, help="a run folder")
    given = parser.parse_args(arguments)

    from dollyllama.summary import summary

    print(summary(given.run))


def evaluate(arguments: Sequence[str]) -> None:
    """measure a trained run on its held-out data: other decoding, more examples"""
    parser = _parser("evaluate")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("overrides", nargs="*", help="decoding=contrastive evaluation=full")
    given = parser.parse_intermixed_args(arguments)
    run_config = launch.reopen_run(given.run, given.overrides, sections=_AFTER_TRAINING)
    preflight.check(run_config)

    from dollyllama.bars import stage_bar
    from dollyllama.data.prepare import prepare as prepare_data
    from dollyllama.evaluation.table import compare_table
    from dollyllama.run import measure, restore

    model, tokenizer = restore(run_config, given.run)
    with stage_bar("data") as progress:
        data = prepare_data(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
    evaluated = measure(run_config, model, tokenizer, data.held_out)
    print(compare_table(None, evaluated.metrics))


def generate(arguments: Sequence[str]) -> None:
    """answer an instruction with a trained run"""
    parser = _parser("generate")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("overrides", nargs="*", help="decoding=contrastive decoding.k=6")
    parser.add_argument("--instruction", help="what to answer; without it, asked for or read")
    given = parser.parse_intermixed_args(arguments)
    run_config = launch.reopen_run(given.run, given.overrides, sections=_AFTER_TRAINING)
    preflight.check(run_config)
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


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "prepare": prepare,
    "show": show,
    "evaluate": evaluate,
    "generate": generate,
}


def _usage() -> str:
    lines = ["usage: python -m dollyllama VERB ...; VERB --help tells more", ""]
    lines += [f"  {name:10} {function.__doc__}" for name, function in VERBS.items()]
    return "\n".join([*lines, "", "Runs are made by train.py: python train.py --help"])


def _parser(verb: str) -> _Parser:
    return _Parser(prog=f"python -m dollyllama {verb}", description=VERBS[verb].__doc__)


def _ask(question: str) -> str:
    """One line from the terminal, stripped; empty at its end."""
    try:
        return input(question).strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
