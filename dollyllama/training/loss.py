"""The training loss: each supervised token of an optimizer step counts once, whatever its batch.

B rows, T tokens of a row, D hidden width, V vocabulary, N supervised tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dollyllama.data.tokens import IGNORED, EncodedExample


def supervision(
    rows: Sequence[EncodedExample], labels: Tensor, sources: Sequence[str]
) -> dict[str, Tensor]:
    """Say which hidden states predict a supervised token, and to which source each belongs.

    labels: B, T, as the collators make them, so that no row's first token has one.
    Returns predicting_N, places in the flattened batch, and source_N, indices in ``sources``.
    """
    predicted_N = (labels.flatten() != IGNORED).nonzero().flatten()
    counts = torch.tensor([row.supervised for row in rows])
    source_B = torch.tensor([sources.index(row.example.source) for row in rows])
    return {"predicting": predicted_N - 1, "source": source_B.repeat_interleave(counts)}


class SupervisedLoss:
    """Cross-entropy over supervised tokens alone, for Trainer's ``compute_loss_func``.

    While ``attached``, the model computes logits at the places that a batch names as
    ``predicting``, and nowhere else: of a padded batch of instructions that is often less than
    half, and the head is a large part of a small model. It works through hooks, so that the head
    may be any module (quantised, wrapped in LoRA, tied).

    sums: loss of each source's tokens since the last ``drain``, on the model's device.
    """

    def __init__(self, sources: Sequence[str], device: torch.device) -> None:
        self.sums = torch.zeros(len(sources), device=device)
        self._predicting_N: Tensor | None = None
        self._source_N: Tensor | None = None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        handles = [
            model.register_forward_pre_hook(self._take_places, with_kwargs=True),
            model.get_output_embeddings().register_forward_pre_hook(self._select),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Sum of this micro-batch's token losses by the number of the whole step's tokens."""
        assert self._predicting_N is not None
        assert self._source_N is not None
        assert num_items_in_batch is not None
        losses_N = cross_entropy(
            outputs.logits[0].float(), labels.flatten()[self._predicting_N + 1], reduction="none"
        )
        self.sums.index_add_(0, self._source_N, losses_N.detach())
        self._predicting_N = None
        return losses_N.sum() / num_items_in_batch

    def drain(self) -> list[float]:
        """Return the summed losses by source and begin anew."""
        sums: list[float] = self.sums.tolist()
        self.sums.zero_()
        return sums

    def _take_places(
        self, module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A pass that names no places (an evaluation's) gets all logits.
        self._predicting_N = named.pop("predicting", None)
        self._source_N = named.pop("source", None)
        return positional, named

    def _select(
        self, module: torch.nn.Module, positional: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        if self._predicting_N is None:
            return None
        (hidden_BTD,) = positional
        return (hidden_BTD.flatten(0, 1)[self._predicting_N][None],)
