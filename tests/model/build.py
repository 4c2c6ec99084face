"""A tiny Llama with its tokenizer in a folder, whose parameters can be counted by hand.

Hidden 64, two layers, four heads of 16 (two for keys and values), 128 between; one token a byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dollyllama import config
from dollyllama.model.load import load_base
from tests.decoding.build import make_llama

VOCABULARY = 259  # <s>, </s>, <unk> and the bytes
LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
NORMS = (2 * 2 + 1) * 64
CPU = torch.device("cpu")


def make_tokenizer(extra: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """``extra``: one more piece at the end of the vocabulary, of no declared use."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "</s>", "<unk>", *alphabet, *([extra] if extra else [])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_model(folder: Path, *, tied: bool = False, rows: int = VOCABULARY, seed: int = 0) -> Path:
    """A base without a pad token, so that loading it adds one."""
    model = make_llama(
        seed,
        hidden_size=64,
        intermediate_size=128,
        vocab_size=rows,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        pad_token_id=None,
    )
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def pickle_weights(folder: Path) -> None:
    """Put the weights in a ``pytorch_model.bin`` in place of safetensors."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def quantization(method: str, *, double: bool = True) -> config.Quantization:
    four_bit = method in ("nf4", "fp4")
    return config.Quantization(
        method=config.QuantizationMethod(method),
        double=double if four_bit else None,
        compute_dtype=config.Dtype.bfloat16 if four_bit else None,
    )


def load(
    path: Path | str,
    tokenizer: Any,
    method: str = "none",
    *,
    dtype: str = "bfloat16",
    pickled_weights: bool = False,
    **more: Any,
) -> Any:
    return load_base(
        str(path),
        None,
        pickled_weights=pickled_weights,
        dtype=config.Dtype(dtype),
        quantization=quantization(method, **more),
        device=CPU,
        tokenizer=tokenizer,
    )


def some_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)
