"""Held-out loss: how surprised the model is by the tokens that it should write.

Shapes: B rows, R tokens of all of them, V vocabulary, N supervised tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from dollyllama.data.batches import collate_packed, padding_behind
from dollyllama.data.tokens import IGNORED, EncodedExample
from dollyllama.evaluation.metric import Metric, ratio_metric
from dollyllama.model.attention import reaches, row_attention


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
    progress: Callable[[int], None] | None = None,
) -> list[ExampleLoss]:
    """Negative log-likelihood of the supervised tokens, example by example in the given order.

    Examples of a batch are packed, unless the model attends to less than the longest: then they go
    one by one. Examples without a supervised token are left out. progress: called with the number
    of examples done.
    """
    if not examples:
        return []
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids), reverse=True)
    losses: dict[int, ExampleLoss] = {}
    was_training = model.training
    model.eval()
    longest = max(len(example.ids) for example in examples)
    packed = reaches(model, longest)
    with ExitStack() as during:
        during.callback(model.train, was_training)
        if packed:
            during.enter_context(row_attention(model, longest=longest))
        size = batch_size if packed else 1
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            measured = _sum_losses(model, [examples[row] for row in rows], packed=packed)
            for row, (loss, tokens) in zip(rows, measured, strict=True):
                if tokens:
                    of = examples[row].example
                    losses[row] = ExampleLoss(of.source, of.row, of.id, loss, tokens)
            if progress is not None:
                progress(start + len(rows))
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
    model: Any, rows: Sequence[EncodedExample], *, packed: bool
) -> list[tuple[float, int]]:
    """Summed loss and number of supervised tokens of each row. Without ``packed`` there is one."""
    pack = collate_packed(rows)
    labels_R = pack.pop("labels")[0]
    lengths = pack["row_lengths"]
    row_R = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    # The logits at t predict the token at t + 1; no others are needed.
    token_N = (labels_R != IGNORED).nonzero()[:, 0]
    place_N = pack.pop("row_places")[token_N - 1]
    if not packed:
        pack = {"input_ids": pack["input_ids"]}
    inputs = {
        name: each.to(model.device) if isinstance(each, Tensor) else each
        for name, each in pack.items()
    }
    kept = pad(place_N, (0, padding_behind(len(place_N)))).to(model.device)
    logits_NV = model(**inputs, use_cache=False, logits_to_keep=kept).logits[0, : len(place_N)]
    target_N = labels_R[token_N].to(model.device)
    loss_N = cross_entropy(logits_NV.float(), target_N, reduction="none").double().cpu()
    row_N = row_R[token_N]
    loss_B = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_N, loss_N)
    return list(
        zip(loss_B.tolist(), torch.bincount(row_N, minlength=len(rows)).tolist(), strict=True)
    )
