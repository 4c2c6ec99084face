"""Adaptive contrastive search against the paper's formulas as they read."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from dollyllama.decoding.contrastive import contrastive_search
from dollyllama.decoding.generate import pad_left
from dollyllama.decoding.penalty import adaptive, fixed
from tests.decoding.build import PAD, random_prompts


def entropy(probability: Any) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probability if p > 0)


def plain_surprise(value: float, before: list[float], largest: float, q: float) -> float:
    """exp(delta) / (1 + exp(delta)) with delta = q artanh(...), arXiv:2407.18698, section 3."""
    centred = (value - (statistics.median(before) if before else value)) / largest
    if abs(centred) >= 1:
        return float(centred > 0)
    return 1 / (1 + math.exp(-q * math.atanh(centred)))


def plain_adaptive(steps: list[Any], q: float) -> list[tuple[int, float]]:
    """k and alpha for the probabilities of one row's steps."""
    seen: list[float] = []
    seen_k: list[float] = []
    chosen = []
    for probability in steps:
        whole = entropy(probability)
        k = int(np.round(10 * plain_surprise(whole, seen, math.log(len(probability)), q) + 5))
        top = np.sort(probability)[::-1][:k]
        part = entropy(top / top.sum())
        chosen.append((k, plain_surprise(part, seen_k, math.log(k), q)))
        seen.append(whole)
        seen_k.append(part)
    return chosen


@pytest.mark.parametrize("q", [0.5, 1.0, 8.0])
def test_k_and_alpha_are_those_of_the_formulas(q: float) -> None:
    # From nearly certain to nearly uniform, in two rows that have nothing to do with each other.
    scale = torch.rand(2, 60, 1, generator=torch.Generator().manual_seed(0)) * 12
    logits = torch.randn(2, 60, 300, generator=torch.Generator().manual_seed(1)) * scale
    weigh = adaptive(q)
    weighed = [weigh(logits[:, step], [0, 1]) for step in range(60)]
    for row in range(2):
        expected = plain_adaptive(list(logits[row].double().softmax(dim=-1).numpy()), q)
        assert [int(k[row]) for k, _ in weighed] == [k for k, _ in expected]
        assert [float(alpha[row]) for _, alpha in weighed] == pytest.approx(
            [alpha for _, alpha in expected], abs=1e-6
        )
    assert len({int(k[0]) for k, _ in weighed}) > 2


def test_the_first_step_has_nothing_to_compare_with() -> None:
    k, alpha = adaptive(1.0)(torch.randn(1, 50), [0])
    assert (k.tolist(), alpha.tolist()) == ([10], [0.5])


def test_more_certain_than_any_median_gives_up_all_novelty() -> None:
    """A median over many candidates and certainty among few leave artanh's range."""
    weigh = adaptive(50.0)
    for _ in range(3):
        weigh(torch.zeros(1, 20), [0])
    certain = torch.full((1, 20), -1000.0)
    certain[0, 3] = 0.0
    k, alpha = weigh(certain, [0])
    assert (k.tolist(), alpha.tolist()) == ([5], [0.0])


def test_a_vocabulary_of_three_has_three_candidates() -> None:
    assert adaptive(1.0)(torch.randn(1, 3), [0])[0].tolist() == [3]


def test_a_rows_history_is_its_own(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([3, 17, 1, 30])
    ids, mask = pad_left(prompts, PAD, torch.device("cpu"))
    together = contrastive_search(llama, ids, mask, q=8.0, max_new_tokens=20)
    for row, prompt in enumerate(prompts):
        alone = contrastive_search(llama, torch.tensor([prompt]), q=8.0, max_new_tokens=20)
        assert together[row, ids.shape[1] - len(prompt) :].tolist() == alone[0].tolist()


def test_its_tokens_are_those_of_the_equation(llama: LlamaForCausalLM) -> None:
    """Step by step: the plain k and alpha, then fixed contrastive search with them."""
    (prompt,) = random_prompts([9])
    ours = contrastive_search(llama, torch.tensor([prompt]), q=4.0, max_new_tokens=15)[0].tolist()
    ids, steps = list(prompt), []
    for _ in range(15):
        with torch.no_grad():
            logits = llama(torch.tensor([ids])).logits[0, -1]
        steps.append(logits.double().softmax(dim=-1).numpy())
        k, alpha = plain_adaptive(steps, 4.0)[-1]
        one = contrastive_search(llama, torch.tensor([ids]), alpha=alpha, k=k, max_new_tokens=1)
        ids.append(int(one[0, -1]))
    assert ours == ids


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan])
def test_q_is_positive(q: float) -> None:
    with pytest.raises(ValueError, match="q > 0"):
        adaptive(q)


def test_fixed_is_the_same_for_every_row() -> None:
    k, alpha = fixed(0.6, 4)(torch.randn(3, 9), [0, 2, 5])
    assert (k.tolist(), alpha.tolist()) == ([4] * 3, [0.6] * 3)
