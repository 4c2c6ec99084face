"""How many candidates contrastive search weighs at a step, and how much their novelty counts.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Logits of the running rows (float32) and their places in the batch -> k_B, int64, and alpha_B,
#: float64. It is asked once a step.
Weigh = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]

#: The candidates of the adaptive search: fewest and most.
_LEAST, _MOST = 5, 15


def fixed(alpha: float, k: int) -> Weigh:
    """The same k and alpha at every step. Su et al. 2022, arXiv:2202.06417, eq. 5.

    ValueError for alpha outside of [0, 1] or k below 1.
    """
    if not 0 <= alpha <= 1 or k < 1:
        raise ValueError(
            f"contrastive search wants alpha in [0, 1] and k >= 1, not alpha={alpha}, k={k}"
        )

    def weigh(logits_BV: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        k_B = torch.full((len(rows),), k, device=logits_BV.device)
        return k_B, torch.full((len(rows),), alpha, dtype=torch.float64, device=logits_BV.device)

    return weigh


def adaptive(q: float) -> Weigh:
    """k from 5 to 15 and alpha from 0 to 1, both larger where the model is less sure than before.

    Garces Arias et al. 2024, "Adaptive Contrastive Search", arXiv:2407.18698, section 3, and the
    authors' code. With sigma the logistic function and medians over the row's earlier steps (the
    first step is its own median):

        k = round(10 sigma(q artanh((H - median H) / ln V)) + 5)       H: entropy of all tokens
        alpha = sigma(q artanh((Hk - median Hk) / ln k))               Hk: of the k most probable

    in nats, in float64. Their code rounds alpha to two places; here it is not rounded. The medians
    of Hk are over steps of other k, so that the quotient can leave [-1, 1], where artanh has no
    value: it is held to that range, and alpha is then 0 or 1. ValueError unless q is positive.
    """
    if not q > 0:
        raise ValueError(f"adaptive contrastive search wants q > 0, not q={q}")
    earlier: dict[int, tuple[list[float], list[float]]] = {}

    def weigh(logits_BV: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        log_p_BV = logits_BV.double().log_softmax(dim=-1)
        vocabulary = log_p_BV.shape[-1]
        most_probable_BK = log_p_BV.topk(min(_MOST, vocabulary), dim=-1).values.cpu()
        ks, alphas = [], []
        for place, entropy in enumerate(_entropy(log_p_BV).tolist()):
            before, before_k = earlier.setdefault(rows[place], ([], []))
            k = round((_MOST - _LEAST) * _surprise(entropy, before, vocabulary, q) + _LEAST)
            k = min(k, vocabulary)
            entropy_k = float(_entropy(most_probable_BK[place, :k].log_softmax(dim=-1)))
            ks.append(k)
            alphas.append(_surprise(entropy_k, before_k, k, q))
            before.append(entropy)
            before_k.append(entropy_k)
        alpha_B = torch.tensor(alphas, dtype=torch.float64, device=logits_BV.device)
        return torch.tensor(ks, device=logits_BV.device), alpha_B

    return weigh


def _entropy(log_p: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -(log_p.exp() * log_p).nan_to_num().sum(dim=-1)


def _surprise(entropy: float, before: list[float], choices: int, q: float) -> float:
    """sigma(q artanh(x)), x: the entropy's distance from its median, over that of equal choices.

    With h = q / 2 it equals (1 + x)^h / ((1 + x)^h + (1 - x)^h), which has values at -1 and 1 too.
    """
    ordered = sorted(before) or [entropy]
    half = len(ordered) // 2
    median = (ordered[half] + ordered[~half]) / 2
    x = max(-1.0, min(1.0, (entropy - median) / math.log(choices)))
    up, down = math.pow(1 + x, q / 2), math.pow(1 - x, q / 2)
    return up / (up + down)
