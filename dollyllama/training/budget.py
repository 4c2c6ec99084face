"""How long a run trains, decided before it starts: its micro-batches, one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dollyllama.config import Trainer
from dollyllama.data.batches import Batch, plan_epoch


@dataclass(frozen=True, slots=True)
class Plan:
    """Every micro-batch of a run in order. Each step takes ``accumulation`` of them.

    The stream runs across the ends of epochs, so that only the last step may get fewer.
    rows: how many rows there are, each dealt once an epoch.
    """

    batches: list[Batch]
    accumulation: int
    rows: int

    @property
    def steps(self) -> int:
        return math.ceil(len(self.batches) / self.accumulation)

    def rows_of(self, first: int, last: int) -> Iterator[int]:
        """The rows of the steps from ``first`` to ``last``; steps count from 1."""
        return itertools.chain.from_iterable(self._of_steps(first, last))

    def epochs_after(self, step: int) -> float:
        """How many epochs are done after ``step`` steps."""
        return sum(map(len, self._of_steps(1, step))) / self.rows

    def dealt(self, done: int, processes: int) -> list[Batch]:
        """The micro-batches after ``done`` steps, dealt to so many processes in turn.

        Each gets as many; in the last step some may get one without rows.
        """
        left = self.batches[done * self.accumulation :]
        return left + [[] for _ in range(-len(left) % processes)]

    def _of_steps(self, first: int, last: int) -> list[Batch]:
        return self.batches[(first - 1) * self.accumulation : last * self.accumulation]


def make_plan(lengths: Sequence[int], trainer: Trainer, *, seed: int) -> Plan:
    """Plan a run over rows of ``lengths`` tokens.

    ``epochs`` may be fractional: the last one stops after that share of its micro-batches, rounded
    up. ``max_steps`` counts optimizer steps. ``max_tokens`` counts the rows' own tokens, without
    padding: training stops with the step that reaches it.
    ValueError when there are no rows.
    """
    if not lengths:
        raise ValueError("there are no rows to train on: data.json says where they were rejected")

    def epoch(number: int) -> list[Batch]:
        return plan_epoch(
            lengths, trainer.batching, batch_size=trainer.batch_size, seed=seed, epoch=number
        )

    if trainer.epochs is not None:
        batches = _epochs(trainer.epochs, epoch)
    else:
        stream = itertools.chain.from_iterable(map(epoch, itertools.count()))
        if trainer.max_steps is not None:
            batches = list(itertools.islice(stream, trainer.max_steps * trainer.accumulation))
        else:
            assert trainer.max_tokens is not None
            batches = []
            tokens = 0
            while tokens < trainer.max_tokens:
                step = list(itertools.islice(stream, trainer.accumulation))
                batches += step
                tokens += sum(lengths[row] for batch in step for row in batch)
    return Plan(batches, trainer.accumulation, len(lengths))


def _epochs(epochs: float, epoch: Callable[[int], list[Batch]]) -> list[Batch]:
    """The micro-batches of all whole epochs, and the share of the next that is asked for."""
    whole = math.floor(epochs)
    batches = [batch for number in range(whole) for batch in epoch(number)]
    # Rounded, because 2.1 - 2 is a little more than a tenth.
    if share := round(epochs - whole, 9):
        last = epoch(whole)
        batches += last[: math.ceil(round(share * len(last), 6))]
    return batches
