"""Replies in the words of OpenAI's API, whole and in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dollyllama.serving.engine import Answer

#: What ends a stream.
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one reply share. created: seconds since 1970."""

    id: str
    created: int
    model: str
    chat: bool

    @property
    def fields(self) -> dict[str, Any]:
        """How every part of the reply begins."""
        return {"id": self.id, "created": self.created, "model": self.model}


def new_envelope(model: str, *, chat: bool) -> Envelope:
    """An envelope with a name of its own."""
    prefix = "chatcmpl" if chat else "cmpl"
    return Envelope(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model, chat)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def whole(envelope: Envelope, answers: Sequence[Answer], *, prompt_tokens: int) -> dict[str, Any]:
    """The reply to a request that wants no stream; one choice an answer."""
    kind = "chat.completion" if envelope.chat else "text_completion"
    choices = []
    for index, answer in enumerate(answers):
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish, "logprobs": None}
        if envelope.chat:
            choice["message"] = {"role": "assistant", "content": answer.text}
        else:
            choice["text"] = answer.text
        choices.append(choice)
    written = sum(answer.tokens for answer in answers)
    return {
        **envelope.fields,
        "object": kind,
        "choices": choices,
        "usage": usage(prompt_tokens, written),
    }


def opening(envelope: Envelope, index: int) -> dict[str, Any]:
    """The first chunk of a chat: who speaks."""
    return _chunk(envelope, index, {"role": "assistant", "content": ""})


def piece(envelope: Envelope, index: int, text: str) -> dict[str, Any]:
    """A chunk with what was written next."""
    return _chunk(envelope, index, {"content": text} if envelope.chat else text)


def closing(envelope: Envelope, index: int, answer: Answer) -> dict[str, Any]:
    """The last chunk of a choice: why it ended."""
    return _chunk(envelope, index, {} if envelope.chat else "", answer.finish)


def _chunk(
    envelope: Envelope, index: int, content: dict[str, str] | str, finish: str | None = None
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
    choice["delta" if envelope.chat else "text"] = content
    return {**_chunk_fields(envelope), "choices": [choice]}


def counted(envelope: Envelope, *, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The chunk behind all choices, of a stream whose tokens are to be counted."""
    counts = usage(prompt_tokens, completion_tokens)
    return {**_chunk_fields(envelope), "choices": [], "usage": counts}


def _chunk_fields(envelope: Envelope) -> dict[str, Any]:
    kind = "chat.completion.chunk" if envelope.chat else "text_completion"
    return {**envelope.fields, "object": kind}


def server_sent(values: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(values, ensure_ascii=False).encode() + b"\n\n"
