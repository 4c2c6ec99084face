"""Secrets out of everything that is written: argument lists, configs, messages."""

from __future__ import annotations

import os
import re
from typing import Any

MASK = "[secret]"

_SECRET_NAME = r"(?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d|credentials?)"
#: Environment variables whose value is a secret by their name: HF_TOKEN, WANDB_API_KEY, ...
_SECRET_VARIABLE = re.compile(rf"(?i)(?:{_SECRET_NAME}|_key|_pat)s?$")
_SHAPES = (
    # Hugging Face, W&B, OpenAI and GitHub tokens, wherever they stand.
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), MASK),
    (re.compile(r"\bwandb_v\d+_[A-Za-z0-9_]{16,}"), MASK),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"\b(?:gh[opsur]|github_pat)_[A-Za-z0-9_]{16,}"), MASK),
    # https://user:password@host and https://token@host
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{MASK}@"),
    # hub_token=..., --api-key=...
    (re.compile(rf"(?i)({_SECRET_NAME}=)[^\s&]+"), rf"\g<1>{MASK}"),
)
#: A shorter value of a secret variable is no secret, and would blank out ordinary words.
_MIN_CHARACTERS = 8


def redact(value: Any) -> Any:
    """Return JSON-like ``value`` with every secret in its strings and keys masked.

    A secret is the value of an environment variable named like one, a token of a well-known shape,
    credentials in a URL, or what follows ``token=``, ``api_key=``, ``password=`` and the like.
    """
    known = [
        secret
        for name, secret in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(secret) >= _MIN_CHARACTERS
    ]
    return _redact(value, sorted(known, key=len, reverse=True))


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {_redact(key, known): _redact(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, known) for item in value]
    if not isinstance(value, str):
        return value
    text = str(value)  # a StrEnum becomes its value
    for secret in known:
        text = text.replace(secret, MASK)
    for shape, mask in _SHAPES:
        text = shape.sub(mask, text)
    return text
