"""Builders of small sources, mixes and examples."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dollyllama.config import (
    Commercial,
    Data,
    Deduplicate,
    Grader,
    GroupBy,
    Licences,
    LossOn,
    Overlong,
    PromptFormat,
    RowFormat,
    Source,
)
from dollyllama.data.example import Example

Rows = list[dict[str, Any]]


def write_embedder(folder: Path, meanings: Iterable[str], seed: int = 0) -> Path:
    """A Model2Vec model in ``folder``: words of one meaning, between spaces, have one vector."""
    import numpy as np
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    generator = np.random.default_rng(seed)
    vectors: dict[str, np.ndarray[Any, Any]] = {"[UNK]": np.zeros(64)}
    for words in meanings:
        vectors |= dict.fromkeys(words.lower().split(), generator.standard_normal(64))
    vocabulary = {word: number for number, word in enumerate(vectors)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = StaticModel(np.stack(list(vectors.values())).astype(np.float32), tokenizer)
    model.save_pretrained(folder)
    return folder


def make_source(path: Path | str, **changes: Any) -> Source:
    values: dict[str, Any] = {
        "path": str(path),
        "file": "rows",
        "revision": None,
        "split": "train",
        "format": RowFormat.prompt_response,
        "columns": {},
        "group_by": GroupBy.instruction,
        "rules": [],
        "grader": Grader.text,
        "licence": "MIT",
        "licence_stated_at": "its card",
        "commercial": Commercial.allowed,
        "weight": 1.0,
        "max_rows": None,
        "max_tokens": None,
    }
    return Source(**(values | changes))


def make_data(sources: dict[str, Source], **changes: Any) -> Data:
    values: dict[str, Any] = {
        "sources": sources,
        "benchmarks": {},
        "root": None,
        "licences": Licences.any,
        "quality": [],
        "deduplicate": Deduplicate.exact,
        "embedder": None,
        "similarity": None,
        "decontaminate": True,
        "held_out": 0.2,
        "temperature": 1.0,
        "max_rows": None,
        "max_tokens": None,
        "max_length": 512,
        "overlong": Overlong.truncate,
        "prompt": PromptFormat.alpaca,
        "loss_on": LossOn.response,
        "loss_roles": None,
    }
    return Data(**(values | changes))


def make_example(instruction: str = "Do it.", response: str = "Done.", **changes: Any) -> Example:
    values: dict[str, Any] = {"source": "a", "row": 0, "context": "", "group": instruction}
    return Example(instruction=instruction, response=response, **(values | changes))


def numbered_rows(count: int, start: int = 0) -> Rows:
    return [
        {"prompt": f"Say number {number}.", "response": f"It is {number}."}
        for number in range(start, start + count)
    ]


#: Chat templates as published models have them, in their shortest form.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set said = messages[1:] %}"
    "{% set above = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set said = messages %}{% set above = '' %}{% endif %}"
    "{% for m in said %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first %}{{ above }}{% endif %}{{ m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    """A copy of a tokenizer that has a chat template and ChatML's two control tokens."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    copied.chat_template = template
    return copied
