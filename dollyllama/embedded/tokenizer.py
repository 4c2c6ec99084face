"""The small model's tokenizer: byte-pair pieces for its words, single digits, bytes for the rest.

No text is unknown (byte fallback), text comes back unchanged, and pieces of a text do not depend on
what stands before it: there is no space put in front of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dollyllama.files import write_json

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
_SPACE = "\u2581"
_BYTES = [f"<0x{value:02X}>" for value in range(256)]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """Train a ``tokenizers.Tokenizer`` of at most ``vocab_size`` pieces on ``texts``."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    special = [UNKNOWN, BEGIN, END, PAD]
    trained = Tokenizer(models.BPE(unk_token=UNKNOWN))
    trained.normalizer = normalizers.Replace(" ", _SPACE)
    # Words keep the space before them; digits and underscores stand alone, so that numbers and
    # names can be copied piece by piece.
    letters, digit, mark = (
        rf"{_SPACE}?\p{{L}}+",
        rf"{_SPACE}?\p{{N}}",
        rf"[^\p{{L}}\p{{N}}{_SPACE}\n_]",
    )
    pattern = rf"{letters}|{digit}|_|\n|{_SPACE}?{mark}+|{_SPACE}+"
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(_BYTES), special_tokens=[], show_progress=False
    )
    # Pieces are made of ASCII: a character of any other script is its bytes.
    plain = (text.encode("ascii", "ignore").decode("ascii") for text in texts)
    trained.train_from_iterator(plain, trainer)

    # The trainer knows no byte pieces: they go in behind the special tokens, where Llama has them.
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: number for number, piece in enumerate([*special, *_BYTES, *pieces])}
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=False)
    )
    made.normalizer, made.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A $B",
        special_tokens=[(BEGIN, vocabulary[BEGIN])],
    )
    return made


def save_tokenizer(tokenizer: Any, folder: Path, *, max_length: int) -> None:
    """Write the files from which ``AutoTokenizer.from_pretrained`` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
        },
    )
