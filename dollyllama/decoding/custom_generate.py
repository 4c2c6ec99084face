"""Contrastive search for transformers' own ``generate``, which has none of its own since version 5.

    model.generate(**inputs, custom_generate=contrastive, alpha=0.6, k=4, max_new_tokens=64)

``generate`` keeps its own ``streamer`` and ``tokenizer`` from a decoding method of the caller's
(transformers 5.23), so the argument for a streamer is ``stream_to``, and texts to stop at are a
criterion: ``stopping_criteria=[StopStringCriteria(tokenizer, ["\n\n"])]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from dollyllama.decoding.contrastive import behind, contrastive_tokens
from dollyllama.decoding.penalty import adaptive, fixed
from dollyllama.decoding.stream import follow


def contrastive(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    alpha: float = 0.5,
    k: int = 4,
    q: float | None = None,
    stream_to: BaseStreamer | None = None,
    stop_strings: str | Sequence[str] | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """Return ids_BS, int64, prompts in front; rows that stopped early end in padding.

    alpha, k, q: as ``contrastive_search``'s. stream_to: gets the tokens as they are chosen (one
    prompt only, as transformers' streamers). All stopping criteria of ``generate`` hold. ValueError
    for what would have no effect or cannot be served: logits processors, a cache of the caller's or
    of another kind than the dynamic one, and ``stop_strings``, to which ``generate`` has lost the
    tokenizer before it gets here.
    """
    if stop_strings is not None:
        raise ValueError(
            "generate hands no tokenizer to a custom_generate for stop_strings: give "
            "stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)] of "
            "transformers.generation"
        )
    _refuse(logits_processor, generation_config, model_kwargs)
    prompts, length = input_ids.shape
    if stream_to is not None and prompts > 1:
        raise ValueError(f"stream_to takes the tokens of one prompt, not of {prompts}")
    mask_BT = model_kwargs.get("attention_mask")
    if mask_BT is None:
        mask_BT = torch.ones_like(input_ids)
    weigh = fixed(alpha, k) if q is None else adaptive(q)
    stream = contrastive_tokens(model, input_ids, mask_BT, weigh)
    running = list(range(prompts))

    def stop(written: list[list[int]]) -> list[bool]:
        new_BS = torch.tensor(written, device=input_ids.device)
        # Criteria that look at scores have none to look at, as in ``generate`` by default.
        finished_B = stopping_criteria(torch.cat([input_ids[running], new_BS], dim=1), None)
        return [bool(done) for done in finished_B.tolist()]

    assert generation_config.max_length is not None
    limits = [generation_config.max_length - length] * prompts
    written: list[list[int]] = [[] for _ in range(prompts)]
    for step in follow(stream, limits=limits, stop=stop, written=written):
        running = [row for row, last in step if not last]
        if stream_to is not None:
            stream_to.put(torch.tensor([written[0][-1]]))
    if stream_to is not None:
        stream_to.end()
    return behind(input_ids, written, fill=_padding(generation_config))


def _refuse(
    logits_processor: LogitsProcessorList,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> None:
    if generation_config.num_beams not in (None, 1):
        raise ValueError(
            f"contrastive search has no beams: drop num_beams={generation_config.num_beams}"
        )
    if logits_processor:
        names = ", ".join(type(each).__name__ for each in logits_processor)
        raise ValueError(f"contrastive search takes no logits processors: drop what made {names}")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and type(cache) is not DynamicCache:
        raise ValueError(
            f"contrastive search cannot use a {type(cache).__name__}: drop cache_implementation "
            "or past_key_values"
        )
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError("contrastive search reads the prompt itself: drop past_key_values")
    if generation_config.return_dict_in_generate:
        raise ValueError("contrastive search returns ids alone: drop return_dict_in_generate")


def _padding(generation_config: GenerationConfig) -> int:
    """What stands behind a row that stopped: padding, or end-of-sequence, or 0."""
    for token in (generation_config.pad_token_id, generation_config.eos_token_id):
        first = token[0] if isinstance(token, list) else token
        if first is not None:
            return int(first)
    return 0
