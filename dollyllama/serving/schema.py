"""Requests of OpenAI's chat and completions API, as far as this project's decoding can honour them.

A field that has no effect here is refused by name, unless its value asks for nothing; a field that
nobody knows gets the nearest one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dollyllama.config import CONTRASTIVE, Decoding, Strategy
from dollyllama.data.example import Question
from dollyllama.data.prompt import Stretches
from dollyllama.serving.refusal import Refusal

#: OpenAI's fields that nothing here can honour, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "suffix": (None,),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None,),
    "web_search_options": (None,),
}

#: Fields that only name the caller; they change no answer anywhere.
_LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"})

#: Logits divided by less than this overflow or draw as greedy search does.
_COLDEST = 0.01

StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False


class Asked(_Strict):
    """What both kinds of request share."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=10)] | None = None
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    k: Annotated[int, Field(ge=1, le=64)] | None = None
    q: Annotated[float, Field(gt=0, le=100)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Drop what asks for nothing; refuse what cannot be honoured, or is not known."""
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in _NEUTRAL:
                # 0 == False and 1 == True in Python, so the type counts too, but 0.0 is 0.
                if not any(
                    value == each and isinstance(value, bool) == isinstance(each, bool)
                    for each in _NEUTRAL[name]
                ):
                    raise Refusal(
                        422,
                        "unsupported_field",
                        f"{name} is not supported here: leave it out",
                        param=name,
                    )
            elif name not in _LABELS:
                near = get_close_matches(name, cls.model_fields, n=1)
                hint = f"did you mean {near[0]}?" if near else "leave it out"
                raise Refusal(
                    422, "unknown_field", f"there is no field {name[:64]}: {hint}", param=name[:64]
                )
        return kept

    @field_validator("temperature")
    @classmethod
    def _warm(cls, temperature: float | None) -> float | None:
        if temperature is not None and 0 < temperature < _COLDEST:
            raise ValueError(f"must be 0, which is greedy, or at least {_COLDEST}")
        return temperature

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise Refusal(
                422,
                "invalid_value",
                "stream_options goes with stream=true: leave it out",
                param="stream_options",
            )
        draws = ("temperature", "top_p", "repetition_penalty")
        fixed = self.alpha is not None or self.k is not None
        for asked, said, unused in (
            (fixed, "alpha and k ask for contrastive search", draws),
            (self.q is not None, "q asks for adaptive contrastive search", (*draws, "alpha", "k")),
        ):
            for name in unused:
                if asked and getattr(self, name) is not None:
                    raise Refusal(
                        422,
                        "contradiction",
                        f"{said}, where {name} has no effect: leave out one or the other",
                        param=name,
                    )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts to stop before."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> tuple[str, int | None]:
        """How many tokens are asked for, and the field that says so."""
        return "max_tokens", self.max_tokens

    def decoding(self, default: Decoding, *, most_tokens: int) -> Decoding:
        """How to answer: the run's own decoding, but for what the request says.

        alpha and k are contrastive search, q is its adaptive kind, temperature 0 is greedy, another
        temperature or top_p draws from the nucleus. Raises Refusal for more than ``most_tokens``,
        or half a strategy.
        """
        name, limit = self.limit
        if limit is not None and limit > most_tokens:
            raise Refusal(
                422,
                "too_many_tokens",
                f"{name}={limit}, but this server writes at most {most_tokens} tokens",
                param=name,
            )
        wanted = min(default.max_new_tokens, most_tokens) if limit is None else limit
        decoding = replace(default, max_new_tokens=wanted)
        if self.q is not None:
            return Decoding.of(Strategy.adaptive_contrastive, decoding.max_new_tokens, q=self.q)
        if self.alpha is not None or self.k is not None:
            alpha = default.alpha if self.alpha is None else self.alpha
            k = default.k if self.k is None else self.k
            if alpha is None or k is None:
                missing = "alpha" if alpha is None else "k"
                raise Refusal(
                    422,
                    "missing_field",
                    f"contrastive search needs alpha and k: give {missing} too, such as "
                    f"alpha=0.6 and k=4",
                    param=missing,
                )
            return Decoding.of(Strategy.contrastive, decoding.max_new_tokens, alpha=alpha, k=k)
        penalty = self.repetition_penalty or default.repetition_penalty
        if self.temperature == 0:
            return Decoding.of(Strategy.greedy, decoding.max_new_tokens, repetition_penalty=penalty)
        if self.temperature is not None or self.top_p is not None:
            return Decoding.of(
                Strategy.nucleus,
                decoding.max_new_tokens,
                temperature=_first(self.temperature, default.temperature, 1.0),
                top_p=_first(self.top_p, default.top_p, 1.0),
                repetition_penalty=penalty,
            )
        if self.repetition_penalty is not None and default.strategy in CONTRASTIVE:
            raise Refusal(
                422,
                "contradiction",
                "this run answers by contrastive search, where repetition_penalty has no effect: "
                "give temperature=0 with it for greedy search",
                param="repetition_penalty",
            )
        return replace(decoding, repetition_penalty=penalty)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """A reply of the official client, sent back, has a null for all that it did not get."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @property
    def text(self) -> str:
        """The content, parts put together."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Asked):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    named: ClassVar[str] = "messages"

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's: it is the one to answer")
        if not messages[-1].text.strip():
            raise ValueError("the last message is empty: there is nothing to answer")
        return messages

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise Refusal(
                422,
                "contradiction",
                "max_tokens and max_completion_tokens are one limit: leave out one",
                param="max_tokens",
            )
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def prompts(self, build: Callable[[Question], Stretches]) -> list[str | Stretches]:
        """What is to be continued. build: puts the run's template around a question."""
        return [build(question_of(self.messages))]


class CompletionRequest(Asked):
    """``POST /v1/completions``: the prompt is the raw text, no template is put around it."""

    prompt: str | Annotated[list[str], Field(min_length=1)]

    named: ClassVar[str] = "prompt"

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str | list[str]) -> str | list[str]:
        if not all([prompt] if isinstance(prompt, str) else prompt):
            raise ValueError("is empty: there is nothing to continue")
        return prompt

    def prompts(self, build: Callable[[Question], Stretches]) -> list[str | Stretches]:
        """The texts to continue, as they are."""
        return [self.prompt] if isinstance(self.prompt, str) else [*self.prompt]


def question_of(messages: list[Message]) -> Question:
    """A conversation as training has it: system words, then the user and the assistant in turn.

    What one of them says in several messages is one turn. The last message is the user's. Raises
    Refusal when the assistant speaks first.
    """
    system = [each.text for each in messages if each.role in ("system", "developer")]
    spoken = [each for each in messages if each.role in ("user", "assistant")]
    if spoken[0].role != "user":
        raise Refusal(
            422,
            "invalid_value",
            "messages: the first message but the system's must be the user's",
            param="messages",
        )
    turns = [
        (role, "\n".join(each.text for each in said))
        for role, said in groupby(spoken, key=lambda each: each.role)
    ]
    *before, (_, instruction) = turns
    words = [("system", "\n".join(system))] if system else []
    return Question(instruction, history=(*words, *before))


Kind = TypeVar("Kind", bound=Asked)

#: How pydantic names the ways to read a value that may be a text or a list; no user wrote those.
_WAYS = re.compile(r"str|constrained-str|list\[.*\]")


def parse(kind: type[Kind], body: bytes) -> Kind:
    """Read a request. Raises Refusal in one line for what is no JSON or no such request."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
    # Where a value may be a text or a list, the way that went further tells what is wrong, and at
    # the same place the one that found the right type.
    first = max(errors, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    if first["type"] == "json_invalid":
        raise Refusal(422, "malformed_json", f"the body is no JSON: {message}")
    param = ".".join(str(part) for part in first["loc"] if not _WAYS.fullmatch(str(part)))
    if not param:
        raise Refusal(422, "invalid_value", f"the body is no JSON object: {message}")
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    raise Refusal(422, code, f"{param}: {message}", param=param)
