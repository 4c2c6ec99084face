"""A tiny random Llama, a tokenizer whose every token is one byte, a model that follows a script."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dollyllama.config import Decoding, Strategy

BOS, EOS, PAD = 0, 1, 2


def make_decoding(
    strategy: Strategy = Strategy.greedy, max_new_tokens: int = 12, **values: Any
) -> Decoding:
    return Decoding.of(strategy, max_new_tokens, **values)


def make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_llama(seed: int = 0, positions: int = 256, **changes: Any) -> LlamaForCausalLM:
    """Weights are large enough for the tokens to vary and to depend on the prompt."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 259,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
    }
    config = LlamaConfig(max_position_embeddings=positions, **(shape | changes))
    return LlamaForCausalLM(config).eval()


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[BOS, *torch.randint(3, 259, (n - 1,), generator=generator).tolist()] for n in lengths]


class Scripted(torch.nn.Module):
    """Writes for every prompt the ids that a script says, then end-of-sequence for ever.

    It keeps the ids in the cache's first layer, as a model keeps its keys, and so goes wrong if
    rows are mixed up. ``calls`` holds the shape of the input of each pass.
    """

    def __init__(self, script: dict[str, list[int]], tokenizer: Any, positions: int = 4096) -> None:
        super().__init__()
        self.config = LlamaConfig(
            num_hidden_layers=1, max_position_embeddings=positions, vocab_size=259
        )
        self.device = torch.device("cpu")
        self.script = {tuple(tokenizer(prompt).input_ids): ids for prompt, ids in script.items()}
        self.calls: list[tuple[int, int]] = []

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: DynamicCache,
        use_cache: bool,
        logits_to_keep: int,
    ) -> SimpleNamespace:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.calls.append((input_ids.shape[0], input_ids.shape[1]))
        new = input_ids[:, None, :, None].float()
        kept, _ = past_key_values.update(new, new, 0)
        logits = torch.zeros(len(input_ids), 1, 259)
        for row, ids in enumerate(kept[:, 0, :, 0].long().tolist()):
            seen = [each for each, real in zip(ids, attention_mask[row], strict=True) if real]
            assert position_ids[row, -1] == len(seen) - 1
            logits[row, 0, self.next_token(seen)] = 1.0
        return SimpleNamespace(logits=logits)

    def next_token(self, seen: list[int]) -> int:
        for prompt, ids in self.script.items():
            if tuple(seen[: len(prompt)]) == prompt:
                written = len(seen) - len(prompt)
                return ids[written] if written < len(ids) else EOS
        raise AssertionError(f"no script for {seen}")
