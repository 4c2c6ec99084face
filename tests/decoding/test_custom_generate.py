from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM
from transformers.generation import StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from dollyllama.decoding.contrastive import contrastive_search
from dollyllama.decoding.custom_generate import contrastive
from dollyllama.decoding.generate import pad_left
from tests.decoding.build import EOS, PAD, make_llama, make_tokenizer, random_prompts

CPU = torch.device("cpu")


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("arguments", [{"alpha": 0.6, "k": 3}, {"q": 8.0}, {}])
def test_generate_writes_what_the_search_writes(
    llama: LlamaForCausalLM, arguments: dict[str, Any]
) -> None:
    ids, mask = pad_left(random_prompts([3, 17, 8]), PAD, CPU)
    plugged = llama.generate(
        ids, attention_mask=mask, custom_generate=contrastive, max_new_tokens=12, **arguments
    )
    assert torch.equal(
        plugged,
        contrastive_search(
            llama,
            ids,
            mask,
            max_new_tokens=12,
            eos_token_id=llama.generation_config.eos_token_id,
            **arguments,
        ),
    )


def test_generates_own_stopping_criteria_hold(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([5, 9])
    ids, mask = pad_left(prompts, PAD, CPU)
    free = contrastive_search(llama, ids, mask, max_new_tokens=12)[:, 9:].tolist()
    end = next(token for token in free[0][3:] if token not in free[1])
    stopped = llama.generate(
        ids,
        attention_mask=mask,
        custom_generate=contrastive,
        max_new_tokens=12,
        eos_token_id=end,
        pad_token_id=PAD,
    )[:, 9:].tolist()
    at = free[0].index(end) + 1
    assert stopped == [free[0][:at] + [PAD] * (12 - at), free[1]]


def test_a_text_to_stop_at_is_a_criterion(llama: LlamaForCausalLM) -> None:
    tokenizer = make_tokenizer()
    ids = torch.tensor(random_prompts([5]))
    arguments: dict[str, Any] = {"custom_generate": contrastive, "max_new_tokens": 40}
    free = llama.generate(ids, **arguments)[0, 5:].tolist()
    # A token is a byte; of those that are letters by themselves the first.
    at = next(n for n, token in enumerate(free, start=1) if tokenizer.decode(token).isalpha())
    assert at < len(free)
    stop = tokenizer.decode(free[at - 1])
    criterion = StopStringCriteria(tokenizer, [stop])
    stopped = llama.generate(ids, stopping_criteria=[criterion], **arguments)
    assert stopped[0, 5:].tolist() == free[:at]
    with pytest.raises(ValueError, match=r"stopping_criteria=\[StopStringCriteria\(tokenizer"):
        llama.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **arguments)


def test_padding_on_the_right_is_refused(llama: LlamaForCausalLM) -> None:
    ids = torch.tensor(random_prompts([6, 6]))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with pytest.raises(ValueError, match=r"pad on the left \(tokenizer.padding_side"):
        contrastive_search(llama, ids, mask, max_new_tokens=4)
    with pytest.raises(ValueError, match="pad on the left"):
        llama.generate(ids, attention_mask=mask, custom_generate=contrastive, max_new_tokens=4)


def test_tokens_stream_as_they_are_chosen(llama: LlamaForCausalLM) -> None:
    ids = torch.tensor(random_prompts([5]))
    collected = Collected()
    out = llama.generate(
        ids, custom_generate=contrastive, stream_to=collected, max_new_tokens=7, eos_token_id=EOS
    )
    assert collected.tokens == out[0, 5:].tolist()
    assert collected.ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repetition_penalty": 1.3}, "drop what made RepetitionPenaltyLogitsProcessor"),
        ({"cache_implementation": "static"}, "cannot use a StaticCache"),
        ({"num_beams": 2}, "has no beams"),
        ({"alpha": 2.0}, r"alpha in \[0, 1\]"),
        ({"return_dict_in_generate": True}, "drop return_dict_in_generate"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    llama: LlamaForCausalLM, arguments: dict[str, Any], message: str
) -> None:
    ids = torch.tensor(random_prompts([5]))
    with pytest.raises(ValueError, match=message):
        llama.generate(ids, custom_generate=contrastive, max_new_tokens=4, **arguments)


def test_a_model_without_position_ids_is_refused_by_name() -> None:
    config = BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=32)
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        contrastive_search(BloomForCausalLM(config).eval(), torch.tensor([[5]]), max_new_tokens=4)


def test_flash_attention_is_refused_by_name() -> None:
    model = make_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation=sdpa or eager"):
        contrastive_search(model, torch.tensor([[5]]), max_new_tokens=4)
