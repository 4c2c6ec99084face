"""Dropout as a list of the places that drop out, which on a CPU is far cheaper than a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw_dropped(like: Tensor, p: float) -> Tensor:
    """Draw which elements of ``like`` drop out, each with chance ``p``, from torch's generator.

    On a CPU a generator that fills a mask is most of dropout's cost. The gaps between the elements
    that drop out are geometric (Devroye 1986, "Non-Uniform Random Variate Generation", X.2), so
    p n logarithms do what n random numbers do. Returns flat indices in ascending order (int64), or
    on other devices a mask in the shape of ``like`` (bool).
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.bool).bernoulli_(p)
    size = like.numel()
    rate = -math.log1p(-p)
    drawn: list[Tensor] = []
    reached = 0
    while reached <= size:
        left = (size - reached) * p
        count = int(left + 6 * math.sqrt(left)) + 16  # hardly ever too few
        gaps = torch.rand(count).neg_().add_(1).log_().div_(-rate)
        places = gaps.to(torch.int64).add_(1).cumsum_(0).add_(reached)
        drawn.append(places)
        reached = int(places[-1])
    places = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
    return places[: int(torch.searchsorted(places, size, right=True))].sub_(1)


def drop_(values: Tensor, dropped: Tensor) -> Tensor:
    """Set the elements that ``draw_dropped`` drew to zero, in place; the others are not scaled."""
    if dropped.dtype is torch.bool:
        return values.masked_fill_(dropped, 0)
    # scatter_ copies halves to float32 and back, all of them.
    values.view(-1).index_fill_(0, dropped, 0)
    return values
