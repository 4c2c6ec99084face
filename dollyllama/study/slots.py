"""A machine shared out among the cells that run on it at once: threads and GPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dollyllama.device import cuda_device_count, usable_cores
from dollyllama.files import locked

#: How often a cell that waits for a slot looks for one.
_SECONDS = 0.5


def cells_at_once() -> int:
    """As many as there are GPUs, or else cores: small models gain little from a second thread."""
    return cuda_device_count() or usable_cores()


@contextmanager
def slot(folder: Path, at_once: int) -> Iterator[dict[str, str]]:
    """Variables that give one cell its share: threads, and the GPU with the fewest cells.

    Waits while ``at_once`` cells of the sweep in ``folder`` run; 0 sets no limit.
    """
    if at_once == 0:
        yield {}
        return
    count = cuda_device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(number) for number in range(count)]
    with ExitStack() as held:
        number = _take(folder, at_once, held)
        if at_once == 1:
            yield {}
            return
        shares = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}
        yield shares | ({"CUDA_VISIBLE_DEVICES": names[number % count]} if count else {})


def _take(folder: Path, at_once: int, held: ExitStack) -> int:
    """Wait for one of ``at_once`` slots; its number, which ``held`` keeps for this process."""
    while True:
        for number in range(at_once):
            place = folder / ".slots" / str(number)
            place.mkdir(parents=True, exist_ok=True)
            with suppress(ValueError):
                held.enter_context(locked(place, "taken"))
                return number
        time.sleep(_SECONDS)
