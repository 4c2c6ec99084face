"""Secrets out of everything that is written: argument lists, configs, messages."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus

MASK = "[secret]"

_SECRET_NAME = r"(?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d|passphrase|credentials?)"
#: Environment variables whose value is a secret by their name: HF_TOKEN, WANDB_API_KEY, ...
_SECRET_VARIABLE = re.compile(rf"(?i)(?:{_SECRET_NAME}|_key|_pat|_pass|_pwd)s?$")
_SHAPES = (
    # Hugging Face, W&B, OpenAI and GitHub tokens, wherever they stand.
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), MASK),
    (re.compile(r"\bwandb_v\d+_[A-Za-z0-9_]{16,}"), MASK),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"\b(?:gh[opsur]|github_pat)_[A-Za-z0-9_]{16,}"), MASK),
    # https://user:password@host and https://token@host
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{MASK}@"),
    # Authorization: Basic ... and Bearer ..., as a server may repeat it
    (re.compile(r"(?i)\b(basic|bearer)(\s+)[A-Za-z0-9+/_=.~-]{16,}"), rf"\g<1>\g<2>{MASK}"),
    # hub_token=..., --api-key=...
    (re.compile(rf"(?i)({_SECRET_NAME}=)[^\s&]+"), rf"\g<1>{MASK}"),
)
#: A shorter value of a secret variable is no secret, and would blank out ordinary words.
_MIN_CHARACTERS = 8


def redact(value: Any) -> Any:
    """Return JSON-like ``value`` with every secret in its strings and keys masked.

    A secret is the value of an environment variable named like one, however JSON, Python, a shell
    or a URL spells it, and any line of it; a token of a well-known shape, credentials in a URL, or
    what follows ``token=``, ``api_key=``, ``password=`` and the like.
    """
    known = {
        spelling
        for name, secret in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(secret) >= _MIN_CHARACTERS
        for spelling in _spellings(secret)
    }
    return _redact(value, sorted(known, key=len, reverse=True))


def mask_output(*, stdout: bool) -> None:
    """Mask secrets in what this process prints from now on: errors, tracebacks, others' warnings.

    stdout: there too, where it is not an answer of a model, which has to stay as it is.
    """
    if not isinstance(sys.stderr, _Masked):
        sys.stderr = cast(TextIO, _Masked(sys.stderr))
    if stdout and not isinstance(sys.stdout, _Masked):
        sys.stdout = cast(TextIO, _Masked(sys.stdout))


class _Masked:
    """A text stream without secrets; each is masked where it is written in one piece."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@cache
def _spellings(secret: str) -> frozenset[str]:
    """What may stand for a secret in text."""
    spelt = {
        secret,
        secret.strip(),
        " ".join(secret.split()),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        shlex.quote(secret),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        *(line.strip() for line in secret.splitlines()),
    }
    return frozenset(each for each in spelt if len(each) >= _MIN_CHARACTERS)


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
