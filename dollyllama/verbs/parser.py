"""What every verb needs of its command line: errors of one line, and the run that it is about."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dollyllama import config, launch, preflight, remote

#: What can still be chosen for an adapter that is trained.
_AFTER_TRAINING = ("decoding", "evaluation", "device", "seed")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        # argparse calls a list that may be empty required when what stands before it is missing.
        message = message.replace("required: run, overrides", "required: run")
        raise ValueError(f"{message}; {self.prog} --help tells more")


def parser(verb: str, description: str | None) -> Parser:
    """A parser for ``python -m dollyllama VERB``."""
    return Parser(prog=f"python -m dollyllama {verb}", description=description)


def run_parser(verb: str, description: str | None) -> Parser:
    """A parser whose first argument is a run folder, then overrides in any place among flags."""
    made = parser(verb, description)
    made.add_argument("run", type=fetched, help="a run folder, or s3://BUCKET/FOLDER")
    made.add_argument("overrides", nargs="*", help="decoding=contrastive decoding.k=6")
    return made


def fetched(text: str) -> Path:
    """A path; of a copy where ``text`` is a URL, without checkpoints, which only training needs.

    OSError for what ``remote.local`` refuses: argparse has words of its own for a ValueError.
    """
    try:
        return remote.local(text, without=("checkpoints",))
    except ValueError as error:
        raise OSError(str(error)) from error


def written(text: str) -> Path:
    """A path to write to. OSError, as of ``fetched``, for a URL or a HOST:PATH.

    A folder here with a colon in its name is written ./NAME.
    """
    if ":" in text.partition("/")[0]:
        raise OSError(f"{text} is no place here: write to one here, and copy that")
    return Path(text)


def require_positive(given: argparse.Namespace, *names: str) -> None:
    """ValueError for a flag of ``names`` that was given a number below 1."""
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def open_run(
    folder: Path, overrides: Sequence[str], *, sources: dict[str, config.Source] | None = None
) -> config.Run:
    """The checked config of the run in ``folder``, with overrides of what can still be chosen.

    sources: in place of the run's own data. ValueError in one line for an override that would
    change what was trained, or no run folder.
    """
    run_config = launch.reopen_run(folder, overrides, sections=_AFTER_TRAINING, sources=sources)
    preflight.check(run_config)
    return run_config
