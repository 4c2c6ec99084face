"""How far two models agree on the same rows: what merging has changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dollyllama.data.tokens import EncodedExample


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
def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Float32 logits of each row's tokens, (length, vocabulary), on the CPU."""
    found = []
    for ids in rows:
        input_ids = torch.tensor([ids], device=model.device)
        found.append(model(input_ids=input_ids, use_cache=False).logits[0].float().cpu())
    return found


def compare(
    adapter: Sequence[Tensor],
    merged: Sequence[Tensor],
    rows: Sequence[Sequence[int]],
    masked: Sequence[int],
) -> Agreement:
    """Compare the logits of two models; ``masked`` ids at each row's start are no response."""
    tokens = same = responses = 0
    kl = difference = largest = 0.0
    losses = [0.0, 0.0]
    for ours, theirs, ids, skipped in zip(adapter, merged, rows, masked, strict=True):
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        gap = (ours - theirs).abs()
        tokens += len(ours)
        kl += float((p.exp() * (p - q)).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = max(largest, float(gap.max()))
        difference += float(gap.mean(-1).sum())
        first = max(skipped, 1)
        answer = torch.tensor(ids[first:])[:, None]
        responses += len(answer)
        for number, each in enumerate((p, q)):
            losses[number] -= float(each[first - 1 : -1].gather(1, answer).sum())
    return Agreement(
        tokens=tokens,
        kl=kl / tokens,
        greedy=same / tokens,
        largest_logit_difference=largest,
        mean_logit_difference=difference / tokens,
        adapter_perplexity=math.exp(losses[0] / responses),
        merged_perplexity=math.exp(losses[1] / responses),
    )
