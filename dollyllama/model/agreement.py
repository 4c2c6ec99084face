"""How far two models agree on the same rows: what merging has changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dollyllama.data.tokens import IGNORED, EncodedExample


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a merged model with the adapter on its base, over ``tokens`` next-token distributions.

    kl: mean KL(adapter || merged) in nats. greedy: share of positions with the same likeliest
    token. Logit differences are absolute. Perplexities are over responses.
    """

    tokens: int
    kl: float
    greedy: float
    largest_logit_difference: float
    mean_logit_difference: float
    adapter_perplexity: float
    merged_perplexity: float


def choose_rows(rows: Sequence[EncodedExample], count: int) -> Sequence[EncodedExample]:
    """At most ``count`` of the rows, spread over all of them."""
    return rows[:: max(1, len(rows) // count)][:count]


@torch.no_grad()
def logits_of(model: Any, rows: Sequence[EncodedExample]) -> list[Tensor]:
    """Float32 logits of each row's tokens, (length, vocabulary), on the CPU."""
    found = []
    for row in rows:
        input_ids = torch.tensor(np.asarray(row.ids, np.int64)[None], device=model.device)
        found.append(model(input_ids=input_ids, use_cache=False).logits[0].float().cpu())
    return found


def compare(
    adapter: Sequence[Tensor],
    merged: Sequence[Tensor],
    rows: Sequence[EncodedExample],
) -> Agreement:
    """Compare the logits of two models on ``rows``; perplexities are over what carries loss."""
    tokens = same = responses = 0
    kl = difference = largest = 0.0
    losses = [0.0, 0.0]
    for ours, theirs, row in zip(adapter, merged, rows, strict=True):
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        gap = (ours - theirs).abs()
        tokens += len(ours)
        kl += float((p.exp() * (p - q)).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = max(largest, float(gap.max()))
        difference += float(gap.mean(-1).sum())
        labels = torch.from_numpy(row.labels)
        at = (labels != IGNORED).nonzero().flatten()
        responses += len(at)
        for number, each in enumerate((p, q)):
            losses[number] -= float(each[at - 1, labels[at]].sum())
    return Agreement(
        tokens=tokens,
        kl=kl / tokens,
        greedy=same / tokens,
        largest_logit_difference=largest,
        mean_logit_difference=difference / tokens,
        adapter_perplexity=math.exp(losses[0] / responses),
        merged_perplexity=math.exp(losses[1] / responses),
    )
