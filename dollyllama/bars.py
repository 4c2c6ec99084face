"""A bar on the terminal for work that goes through stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from dollyllama import distributed


@contextmanager
def stage_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in stages, gone when it is done; nothing where stderr is no terminal."""
    with tqdm(desc=what, leave=False, disable=hidden()) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_description(f"{what}: {stage}", refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        yield progress


def hidden() -> bool | None:
    """tqdm's ``disable``: None lets it look for a terminal, which is the first process's."""
    return None if distributed.is_first() else True
