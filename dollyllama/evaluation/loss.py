"""Held-out loss: how surprised the model is by the tokens that it should write.

Shapes: B rows, T tokens, V vocabulary, N supervised tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dollyllama.data.batches import collate_padded
from dollyllama.data.tokens import IGNORED, EncodedExample
from dollyllama.evaluation.metric import Metric, ratio_metric


@dataclass(frozen=True, slots=True)
class ExampleLoss:
    """The loss of one held-out example, in nats, summed over its supervised tokens."""

    source: str
    row: int
    id: str
    loss: float
    tokens: int


def held_out_loss(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    batch_size: int,
    pad_token_id: int,
    progress: Callable[[int], None] | None = None,
) -> list[ExampleLoss]:
    """Negative log-likelihood of the supervised tokens, example by example in the given order.

    Examples without a supervised token are left out. progress: called with the number of examples
    done.
    """
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids), reverse=True)
    losses: dict[int, ExampleLoss] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            measured = _sum_losses(model, [examples[row] for row in rows], pad_token_id)
            for row, (loss, tokens) in zip(rows, measured, strict=True):
                if tokens:
                    of = examples[row].example
                    losses[row] = ExampleLoss(of.source, of.row, of.id, loss, tokens)
            if progress is not None:
                progress(start + len(rows))
    finally:
        model.train(was_training)
    return [losses[row] for row in sorted(losses)]


def average_losses(losses: Sequence[ExampleLoss]) -> list[Metric]:
    """Mean loss of a supervised token: ``loss/all`` first, then ``loss/<source>`` by name.

    Every token counts the same, so long answers weigh more. The standard error is the ratio
    estimator's, over examples. Empty without losses.
    """
    sides = {"all": list(losses)} if losses else {}
    for name in sorted({each.source for each in losses}):
        sides[name] = [each for each in losses if each.source == name]
    return [
        ratio_metric(f"loss/{name}", [each.loss for each in side], [each.tokens for each in side])
        for name, side in sides.items()
    ]


@torch.no_grad()
def _sum_losses(
    model: Any, batch: Sequence[EncodedExample], pad_token_id: int
) -> list[tuple[float, int]]:
    """Summed loss and number of supervised tokens of each row."""
    rows = collate_padded(batch, pad_id=pad_token_id)
    ids_BT, labels_BT = rows["input_ids"].to(model.device), rows["labels"].to(model.device)
    longest = ids_BT.shape[1]
    length_B = torch.tensor([len(encoded.ids) for encoded in batch], device=model.device)
    mask_BT = (torch.arange(longest, device=model.device) < length_B[:, None]).long()
    # The logits at t predict the token at t + 1, so nothing predicts the first one; before the
    # first label none are needed.
    supervised_BT = labels_BT != IGNORED
    first = int(supervised_BT.any(dim=0).int().argmax())
    needed = longest - max(first - 1, 0)
    logits_BTV = model(
        input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, logits_to_keep=needed
    ).logits
    target_BT = labels_BT[:, longest - needed + 1 :]
    at_BT = target_BT != IGNORED
    logits_NV = logits_BTV[:, :-1][at_BT].float()
    loss_BT = torch.zeros(target_BT.shape, dtype=torch.float64, device=ids_BT.device)
    loss_BT[at_BT] = cross_entropy(logits_NV, target_BT[at_BT], reduction="none").double()
    return list(zip(loss_BT.sum(dim=1).tolist(), at_BT.sum(dim=1).tolist(), strict=True))
