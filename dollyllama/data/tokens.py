"""Prompt and response to ids and labels: where the loss counts and what truncation may cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dollyllama.config import LossOn, Overlong
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import format_prompt, format_response

#: The label that cross-entropy ignores.
IGNORED = -100

#: A text that says "</s>" is text, no control token. No mask, which nobody reads, and no warning
#: about lengths, which are dealt with here.
_AS_TEXT = {"split_special_tokens": True, "return_attention_mask": False, "verbose": False}


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as the model sees it.

    ids: prompt, response, end marker and end-of-sequence, at most ``max_length`` of them.
    masked: how many of the first ids carry no loss. truncated: whether the end is missing.
    """

    example: Example
    ids: list[int]
    masked: int
    truncated: bool

    @property
    def labels(self) -> list[int]:
        """The ids, with IGNORED in place of the masked ones."""
        return [IGNORED] * self.masked + self.ids[self.masked :]


def encode_prompts(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts, with the tokenizer's beginning and without its end of sequence.

    Generation must use this too, so that a prompt has the same ids as in training.
    """
    batches = tokenizer(list(prompts), add_special_tokens=True, **_AS_TEXT)
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == eos else ids for ids in batches["input_ids"]]


def encode_responses(responses: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of responses with their end marker, as they continue a prompt's last line feed.

    A SentencePiece tokenizer puts a space before a text of its own; after the line feed that ends
    the prompt there is none. So each is encoded behind a line feed, whose ids are cut off again.
    """

    def plain(texts: Sequence[str]) -> list[list[int]]:
        batches = tokenizer(list(texts), add_special_tokens=False, **_AS_TEXT)
        return list(batches["input_ids"])

    (feed,) = plain(["\n"])
    formatted = [format_response(response) for response in responses]
    behind = plain([f"\n{text}" for text in formatted])
    # Where a piece joins the line feed and what follows, the response is encoded by itself.
    return [
        ids[len(feed) :] if ids[: len(feed)] == feed else plain([text])[0]
        for ids, text in zip(behind, formatted, strict=True)
    ]


def encode_all(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: LossOn,
    overlong: Overlong,
    progress: Callable[[int], None] | None = None,
    chunk: int = 1024,
) -> tuple[list[EncodedExample], list[Rejected]]:
    """Encode examples in order; the second list holds those that do not fit ``max_length`` tokens.

    ``Overlong.truncate`` cuts the end of the response, and rejects an example whose prompt leaves
    no room for one supervised token of it. progress: called with the number done.
    """
    encoded: list[EncodedExample] = []
    rejected: list[Rejected] = []
    for start in range(0, len(examples), chunk):
        part = examples[start : start + chunk]
        prompts = encode_prompts([format_prompt(each.instruction) for each in part], tokenizer)
        responses = encode_responses([each.response for each in part], tokenizer)
        for example, prompt, response in zip(part, prompts, responses, strict=True):
            ids = [*prompt, *response, tokenizer.eos_token_id]
            masked = len(prompt) if loss_on is LossOn.response else 0
            fits = len(ids) <= max_length
            detail = f"{len(ids)} tokens, {len(prompt)} of them the prompt; max_length={max_length}"
            if len(prompt) >= max_length:
                rejected.append(_reject(example, "prompt_too_long", detail))
            elif not fits and overlong is Overlong.reject:
                rejected.append(_reject(example, "too_long", detail))
            else:
                encoded.append(EncodedExample(example, ids[:max_length], masked, not fits))
        if progress is not None:
            progress(start + len(part))
    return encoded, rejected


def _reject(example: Example, reason: str, detail: str) -> Rejected:
    return Rejected(example.source, example.row, reason, detail, {})


def encode(
    example: Example, tokenizer: Any, *, max_length: int, loss_on: LossOn, overlong: Overlong
) -> EncodedExample | Rejected:
    """Encode one example, or say why it does not fit."""
    encoded, rejected = encode_all(
        [example], tokenizer, max_length=max_length, loss_on=loss_on, overlong=overlong
    )
    return encoded[0] if encoded else rejected[0]
