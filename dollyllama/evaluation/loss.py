"""Held-out loss: how surprised the model is by the tokens that it should write.

Shapes: B rows, T tokens, V vocabulary, N supervised tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dollyllama.data.tokens import IGNORED, EncodedExample
from dollyllama.evaluation.metric import Metric, ratio_metric


def held_out_loss(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    batch_size: int,
    pad_token_id: int,
    progress: Callable[[int], None] | None = None,
) -> list[Metric]:
    """Mean negative log-likelihood of a supervised token, in nats: ``loss/<source>`` by source.

    ``loss/all`` comes first, over all sources. Every token counts the same, so long answers weigh
    more. The standard error is the ratio
    estimator's, over examples. progress: called with the number of examples done.
    """
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids), reverse=True)
    losses: dict[str, list[float]] = {}
    tokens: dict[str, list[float]] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = [examples[row] for row in order[start : start + batch_size]]
            measured = _sum_losses(model, batch, pad_token_id)
            for encoded, (loss, count) in zip(batch, measured, strict=True):
                if count:
                    losses.setdefault(encoded.example.source, []).append(loss)
                    tokens.setdefault(encoded.example.source, []).append(count)
            if progress is not None:
                progress(start + len(batch))
    finally:
        model.train(was_training)
    if not losses:
        return []
    total = ratio_metric("loss/all", [*chain(*losses.values())], [*chain(*tokens.values())])
    return [
        total,
        *(ratio_metric(f"loss/{name}", losses[name], tokens[name]) for name in sorted(losses)),
    ]


@torch.no_grad()
def _sum_losses(
    model: Any, batch: Sequence[EncodedExample], pad_token_id: int
) -> list[tuple[float, int]]:
    """Summed loss and number of supervised tokens of each row."""
    longest = max(len(encoded.ids) for encoded in batch)
    ids_BT = _pad([encoded.ids for encoded in batch], longest, pad_token_id, model.device)
    labels_BT = _pad([encoded.labels for encoded in batch], longest, IGNORED, model.device)
    mask_BT = _pad([[1] * len(encoded.ids) for encoded in batch], longest, 0, model.device)
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


def _pad(rows: Sequence[Sequence[int]], length: int, filler: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows], device=device)
