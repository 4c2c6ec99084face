"""Places that drop out are drawn as a mask of independent draws would have them."""

from __future__ import annotations

import math

import pytest
import torch

from dollyllama.fast.dropout import draw_dropped, drop_


def mask(size: int, p: float) -> torch.Tensor:
    """Which of ``size`` elements drop out (bool)."""
    return drop_(torch.ones(size), draw_dropped(torch.ones(size), p)) == 0


@pytest.mark.parametrize("p", [1e-4, 0.05, 0.1, 0.5, 0.9])
def test_the_share_the_gaps_and_the_neighbours_are_those_of_independent_draws(p: float) -> None:
    torch.manual_seed(1)
    size = 4_000_000
    out = mask(size, p)
    count = int(out.sum())
    assert abs(count - size * p) < 5 * math.sqrt(size * p * (1 - p))
    # Pairs at any distance drop out together with chance p squared.
    for distance in (1, 2, 7, 64):
        both = int((out[distance:] & out[:-distance]).sum())
        assert abs(both - size * p * p) < 5 * math.sqrt(size * p * p) + 1
    gaps = out.nonzero().flatten().diff()
    for longer in (1, 3, 20):
        expected = count * (1 - p) ** longer
        assert abs(int((gaps > longer).sum()) - expected) < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("size", [1, 2, 5, 33])
def test_each_element_drops_out_as_often_as_any_other(size: int) -> None:
    torch.manual_seed(2)
    draws = 4_000
    counts = sum(mask(size, 0.3).int() for _ in range(draws))
    assert isinstance(counts, torch.Tensor)
    spread = math.sqrt(draws * 0.3 * 0.7)
    assert (counts - draws * 0.3).abs().max() < 5 * spread


def test_the_same_generator_gives_the_same_places_in_order() -> None:
    like = torch.empty(100, 7)
    torch.manual_seed(3)
    first = draw_dropped(like, 0.2)
    other = draw_dropped(like, 0.2)
    torch.manual_seed(3)
    assert torch.equal(draw_dropped(like, 0.2), first)
    assert not torch.equal(first[:50], other[:50])
    assert (first.diff() > 0).all()
    assert first[0] >= 0
    assert first[-1] < 700


def test_too_few_draws_are_followed_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first draws are enough but for a chance of one in a billion: here they are not."""
    torch.manual_seed(4)
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda count: draw(count)[: max(count // 20, 1)])
    places = draw_dropped(torch.empty(50_000), 0.1)
    assert abs(len(places) - 5_000) < 5 * math.sqrt(4_500)
    assert (places.diff() > 0).all()


def test_what_drops_out_is_zero_and_the_rest_is_as_it_was() -> None:
    values = torch.arange(1.0, 13).view(3, 4)
    assert drop_(values, torch.tensor([0, 5, 11])).tolist() == [
        [0, 2, 3, 4],
        [5, 0, 7, 8],
        [9, 10, 11, 0],
    ]
    assert drop_(torch.ones(2), torch.tensor([True, False])).tolist() == [0, 1]
