"""Contrastive search: probable tokens whose representation does not repeat what stands before them.

Su et al. 2022, "A Contrastive Framework for Neural Text Generation", arXiv:2202.06417, eq. 5.

The k candidates are one forward pass of k tokens on one cache: each sees the prefix and itself, not
its siblings, at the same position. The chosen one's keys and values stay, and its logits are those
that the next candidates come from, so a token costs one pass as in greedy search.

Shapes: B rows, T tokens so far (padding included), K candidates, S = T + K, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache

from dollyllama.decoding.cache import GrowingLayer, append, fresh_cache
from dollyllama.decoding.penalty import Weigh, adaptive, fixed
from dollyllama.decoding.stream import Stop, Stream, collect, left_padded_positions

#: Attention implementations that take a mask of their own for every query.
_MASKED_ATTENTION = ("sdpa", "eager")


def contrastive_search(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    alpha: float = 0.5,
    k: int = 4,
    q: float | None = None,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None = None,
    stop: Stop | None = None,
) -> Tensor:
    """Continue prompts by contrastive search; return ids_BS, int64, with the prompts in front.

    input_ids: left-padded when the prompts differ in length, attention_mask then says where
    (ValueError for padding on the right).
    A row ends with the first end-of-sequence token, or when ``stop`` says so (it gets what the
    running rows wrote and answers for each); behind it stands the (first) end-of-sequence token, or
    0 when there is none. alpha 0 and k 1 are greedy search. Ties go to the more probable candidate,
    and between equally probable ones to the smaller token id. With q, alpha and k are chosen anew
    for each token instead: see ``penalty.adaptive``.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if input_ids.shape[1] == 0:
        raise ValueError("the prompt is empty: there is nothing to continue")
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def finished(written: list[list[int]]) -> list[bool]:
        stopped = [False] * len(written) if stop is None else stop(written)
        return [row[-1] in ends or done for row, done in zip(written, stopped, strict=True)]

    weigh = fixed(alpha, k) if q is None else adaptive(q)
    stream = contrastive_tokens(model, input_ids, mask_BT, weigh)
    written = collect(stream, limits=[max_new_tokens] * len(input_ids), stop=finished)
    return behind(input_ids, written, fill=ends[0] if ends else 0)


def behind(ids_BT: Tensor, written: Sequence[list[int]], *, fill: int) -> Tensor:
    """ids_BS: what each row wrote behind its prompt, then ``fill`` up to the longest."""
    longest = max(len(row) for row in written)
    padded = [row + [fill] * (longest - len(row)) for row in written]
    return torch.cat([ids_BT, torch.tensor(padded, device=ids_BT.device)], dim=1)


@torch.no_grad()
def contrastive_tokens(model: Any, ids_BT: Tensor, mask_BT: Tensor, weigh: Weigh) -> Stream:
    """Stream the tokens of contrastive search for left-padded prompts.

    Similarities and probabilities are float32, over the hidden states behind the last norm; the
    padding takes part in neither. ValueError for padding behind a prompt, and for a model whose
    cache, attention, positions or head cannot serve.
    """
    if not mask_BT[:, -1].all():
        raise ValueError(
            "contrastive search goes on at the end of each prompt, and attention_mask has padding "
            'there: pad on the left (tokenizer.padding_side="left")'
        )
    cache, head = _shared_cache(model), _head_of(model)
    position_BT = left_padded_positions(mask_BT)
    read: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, states: read.append(states[0]), prepend=True):
        out = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=[-1],
            logits_to_keep=1,
        )
    logits_BV = out.logits[:, -1].float()
    context_BTD, room = normalize(out.hidden_states[-1].float(), dim=-1), None
    _check_head(model, read[0][:, -1], context_BTD[:, -1])
    seen_BT = mask_BT.bool()
    position_B = position_BT[:, -1] + 1
    rows = list(range(len(ids_BT)))
    del out
    while True:
        k_B, alpha_B = weigh(logits_BV, rows)
        candidate_BK = most_probable(logits_BV, int(k_B.max()))
        probability_BK = logits_BV.softmax(dim=-1).gather(1, candidate_BK)
        size, k = candidate_BK.shape
        itself_KK = torch.eye(k, dtype=torch.bool, device=ids_BT.device)
        visible_BKS = torch.cat(
            [seen_BT[:, None].expand(size, k, -1), itself_KK.expand(size, k, k)], dim=-1
        )
        choice = _Choice(probability_BK, k_B, alpha_B, context_BTD, seen_BT)
        # Before a hook that rounds the states to the head's dtype.
        with head.register_forward_pre_hook(choice, prepend=True):
            out = model(
                input_ids=candidate_BK,
                attention_mask=_attention_mask(visible_BKS, cache.layers[0].keys.dtype),
                position_ids=position_B[:, None].expand(size, k),
                past_key_values=cache,
                use_cache=True,
            )

        every_B = torch.arange(size, device=ids_BT.device)

        keep = yield candidate_BK[every_B, choice.place_B]

        _keep_chosen(cache, seen_BT.shape[1], choice.place_B)
        if keep is None:
            keep = every_B
        else:
            cache.batch_select_indices(keep)
            context_BTD, seen_BT = context_BTD[keep], seen_BT[keep]
            rows = [rows[place] for place in keep.tolist()]
        logits_BV = out.logits[keep, 0].float()
        context_BTD, room = append(context_BTD, room, choice.hidden_BD[keep][:, None])
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(keep), 1)], dim=1)
        position_B = position_B[keep] + 1


class _Choice:
    """Choose among candidates before the head reads their states, so that it reads one of k.

    A hook for the head: of the states of all candidates, (B, K, D), it passes on the chosen one's.
    """

    def __init__(
        self,
        probability_BK: Tensor,
        k_B: Tensor,
        alpha_B: Tensor,
        context_BTD: Tensor,
        seen_BT: Tensor,
    ) -> None:
        self._probability_BK, self._k_B, self._alpha_B = probability_BK, k_B, alpha_B
        self._context_BTD, self._seen_BT = context_BTD, seen_BT
        #: Of each row's candidates the chosen one's place, and its state, of length 1.
        self.place_B: Tensor
        self.hidden_BD: Tensor

    def __call__(self, head: Any, states: tuple[Tensor]) -> tuple[Tensor]:
        (state_BKD,) = states
        hidden_BKD = normalize(state_BKD.float(), dim=-1)
        penalty_BK = largest_similarity(hidden_BKD, self._context_BTD, self._seen_BT)
        self.place_B = pick(self._probability_BK, penalty_BK, self._k_B, self._alpha_B)
        chosen = torch.arange(len(state_BKD), device=state_BKD.device), self.place_B
        self.hidden_BD = hidden_BKD[chosen]
        return (state_BKD[chosen][:, None],)


def largest_similarity(hidden_BKD: Tensor, context_BTD: Tensor, seen_BT: Tensor) -> Tensor:
    """The degeneration penalty of each candidate: its largest cosine similarity to the context.

    hidden_BKD, context_BTD: of length 1. seen_BT: where the context is no padding. Returns
    penalty_BK, float32.
    """
    similarity_BKT = hidden_BKD @ context_BTD.transpose(1, 2)
    return similarity_BKT.masked_fill(~seen_BT[:, None], -torch.inf).amax(dim=-1)


def pick(probability_BK: Tensor, penalty_BK: Tensor, k_B: Tensor, alpha_B: Tensor) -> Tensor:
    """Choose one of each row's first k candidates: (1 - alpha) * probability - alpha * penalty.

    alpha_B: float64; its complement is rounded to float32 once. Candidates come in order of
    probability, and the first of equal scores wins. Returns places in K, int64.
    """
    alpha_B1 = alpha_B[:, None]
    score_BK = (1 - alpha_B1).float() * probability_BK - alpha_B1.float() * penalty_BK
    place_K = torch.arange(score_BK.shape[-1], device=score_BK.device)
    return score_BK.masked_fill(place_K >= k_B[:, None], -torch.inf).argmax(dim=-1)


def most_probable(logits_BV: Tensor, k: int) -> Tensor:
    """The k tokens of largest logit a row, the larger first, of equal ones the smaller id first.

    ``topk`` leaves the order of equals open, and half-precision logits are often equal. Returns
    ids_BK, int64.
    """
    if k > logits_BV.shape[-1]:
        raise ValueError(f"k={k} candidates, but the vocabulary has {logits_BV.shape[-1]} tokens")
    value_BK, id_BK = logits_BV.topk(k, dim=-1)
    with_equals = int((logits_BV >= value_BK[:, -1:]).sum(dim=-1).max())
    if with_equals > k:  # some that ``topk`` left out are equal to the last that it took
        value_BK, id_BK = logits_BV.topk(with_equals, dim=-1)
    by_id = id_BK.argsort(dim=-1)
    by_value = value_BK.gather(1, by_id).argsort(dim=-1, descending=True, stable=True)
    return id_BK.gather(1, by_id.gather(1, by_value))[:, :k]


def _shared_cache(model: Any) -> DynamicCache:
    """A fresh cache whose layers hold the whole prefix.

    ValueError for a model that wants another kind, or whose attention or positions cannot serve.
    """
    # An adapter's forward passes on whatever it gets; the base's says what is taken.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise ValueError(
            f"contrastive search puts its candidates at one position, and {name} takes no "
            "position_ids: use decoding=greedy or decoding=nucleus"
        )
    attention = model.config._attn_implementation
    if attention not in _MASKED_ATTENTION:
        raise ValueError(
            f"contrastive search cannot mask candidates with attention {attention!r}: load the "
            f"model with attn_implementation={' or '.join(_MASKED_ATTENTION)}"
        )
    cache = fresh_cache(model)
    for layer in cache.layers:
        if type(layer) is not GrowingLayer:
            raise ValueError(
                f"contrastive search needs a cache of the whole prefix, and {name} wants "
                f"{type(layer).__name__}: use decoding=greedy or decoding=nucleus"
            )
    return cache


def _head_of(model: Any) -> Any:
    """The layer that gives the logits. ValueError for a model that names none."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"contrastive search needs the head of {type(model).__name__}, which names none: use "
            f"decoding=greedy or decoding=nucleus"
        )
    return head


def _check_head(model: Any, read_BD: Tensor, hidden_BD: Tensor) -> None:
    """ValueError unless the head reads the last hidden states, which are of length 1 here.

    Candidates are compared by what the head reads; a transform before it would make them others.
    """
    direction_BD = normalize(read_BD.float(), dim=-1)
    if direction_BD.shape != hidden_BD.shape or (direction_BD - hidden_BD).abs().max() > 0.01:
        raise ValueError(
            f"contrastive search compares the states that the head reads, and that of "
            f"{type(model).__name__} reads others than the last layer's: use decoding=greedy or "
            f"decoding=nucleus"
        )


def _attention_mask(visible_BKS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add, made once: booleans would be turned into them in each layer."""
    visible_B1KS = visible_BKS[:, None]
    return torch.zeros_like(visible_B1KS, dtype=dtype).masked_fill(~visible_B1KS, -torch.inf)


def _keep_chosen(cache: DynamicCache, prefix: int, chosen_B: Tensor) -> None:
    """Leave the chosen candidate's keys and values behind ``prefix`` tokens, drop its siblings'."""
    candidates = cache.get_seq_length() - prefix
    if chosen_B.any():  # where they are the first, they stand in place
        every_B = torch.arange(len(chosen_B), device=chosen_B.device)
        for layer in cache.layers:
            for states_BHSd in (layer.keys, layer.values):
                states_BHSd[:, :, prefix] = states_BHSd[every_B, :, prefix + chosen_B]
    cache.crop(1 - candidates)
