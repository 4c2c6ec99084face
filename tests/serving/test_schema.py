"""Requests: what each asks of decoding, and one line for what cannot be honoured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dollyllama.config import Decoding, PromptFormat, Strategy
from dollyllama.data.example import Question
from dollyllama.data.prompt import Stretches, build_prompt
from dollyllama.serving.refusal import Refusal
from dollyllama.serving.schema import ChatRequest, CompletionRequest, parse
from tests.serving.build import CONTRASTIVE, GREEDY, NUCLEUS

QUESTION = [{"role": "user", "content": "Why?"}]


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"messages": QUESTION} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "Once"} | fields).encode())


def decoding(default: Decoding, **fields: Any) -> Decoding:
    return completion(**fields).decoding(default, most_tokens=100)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, GREEDY),
        ({"temperature": 0}, GREEDY),
        ({"temperature": 0, "top_p": 0.5}, GREEDY),
        ({"alpha": 0.6, "k": 4}, CONTRASTIVE),
        ({"alpha": 1, "k": 1}, replace(CONTRASTIVE, alpha=1, k=1)),
        ({"top_p": 0.9}, NUCLEUS),
        ({"temperature": 0.5}, replace(NUCLEUS, temperature=0.5, top_p=1.0)),
        ({"repetition_penalty": 1.2}, replace(GREEDY, repetition_penalty=1.2)),
        ({"max_tokens": 3}, replace(GREEDY, max_new_tokens=3)),
        ({"max_tokens": 100}, replace(GREEDY, max_new_tokens=100)),
        ({"temperature": None, "alpha": None, "max_tokens": None}, GREEDY),
    ],
)
def test_a_request_changes_what_it_says_and_nothing_else(
    fields: dict[str, Any], wanted: Decoding
) -> None:
    assert decoding(GREEDY, **fields) == wanted


def test_what_a_request_leaves_open_is_as_the_run_decodes() -> None:
    assert decoding(CONTRASTIVE, k=7) == replace(CONTRASTIVE, k=7)
    assert decoding(CONTRASTIVE, temperature=0) == GREEDY
    assert decoding(CONTRASTIVE, top_p=0.9) == NUCLEUS
    assert decoding(NUCLEUS, temperature=0.5) == replace(NUCLEUS, temperature=0.5)
    penalised = replace(GREEDY, repetition_penalty=1.2)
    assert decoding(penalised, alpha=0.6, k=4) == CONTRASTIVE
    assert decoding(penalised, top_p=0.9) == replace(NUCLEUS, repetition_penalty=1.2)
    assert decoding(replace(GREEDY, max_new_tokens=500)) == replace(GREEDY, max_new_tokens=100)


def test_the_newer_name_of_the_limit_counts_in_a_chat() -> None:
    asked = chat(max_completion_tokens=5)
    assert asked.decoding(GREEDY, most_tokens=100).max_new_tokens == 5


def test_fields_that_ask_for_nothing_or_name_the_caller_pass() -> None:
    chat(
        n=1,
        frequency_penalty=0.0,
        presence_penalty=0,
        logprobs=False,
        tools=[],
        response_format={"type": "text"},
        user="me",
        metadata={"a": "b"},
        tool_choice="none",
        logit_bias=None,
        store=False,
    )
    completion(best_of=1, echo=False, suffix=None, logprobs=None)


def build(question: Question) -> Stretches:
    return build_prompt(question, PromptFormat.alpaca, None)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([message("user", "Why?")], Question("Why?")),
        (
            [message("user", [{"type": "text", "text": text} for text in ("W", "hy?")])],
            Question("Why?"),
        ),
        (
            [message("system", "Be brief."), message("user", "Why?")],
            Question("Why?", history=(("system", "Be brief."),)),
        ),
        (
            [message("user", "Why"), message("system", "Be brief."), message("user", "not?")],
            Question("Why\nnot?", history=(("system", "Be brief."),)),
        ),
        (
            [
                message("developer", "Be brief."),
                message("user", "Why?"),
                # As the official client's own objects are dumped.
                message("assistant", "Because.") | {"refusal": None, "tool_calls": None},
                message("user", "Who?"),
            ],
            Question(
                "Who?",
                history=(("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")),
            ),
        ),
    ],
)
def test_a_conversation_is_asked_as_training_has_it(
    messages: list[Any], question: Question
) -> None:
    assert chat(messages=messages).prompts(build) == [build(question)]


def test_an_assistant_that_speaks_first_is_refused() -> None:
    request = chat(messages=[message("assistant", "Hi."), message("user", "Why?")])
    with pytest.raises(Refusal, match="must be the user's"):
        request.prompts(build)


def test_the_prompt_of_a_completion_is_raw() -> None:
    assert completion(prompt=" a\n").prompts(build) == [" a\n"]
    assert completion(prompt=["a", "b"]).prompts(build) == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "code", "param", "said"),
    [
        ({"tools": [{}]}, "unsupported_field", "tools", "not supported"),
        ({"n": 2}, "unsupported_field", "n", "not supported"),
        ({"n": True}, "unsupported_field", "n", "not supported"),
        ({"logprobs": True}, "unsupported_field", "logprobs", "not supported"),
        ({"frequency_penalty": 0.5}, "unsupported_field", "frequency_penalty", "not supported"),
        ({"temprature": 1}, "unknown_field", "temprature", "did you mean temperature?"),
        ({"x" * 1000: 1}, "unknown_field", "x" * 64, "leave it out"),
        ({"temperature": "hot"}, "invalid_value", "temperature", "number"),
        ({"temperature": True}, "invalid_value", "temperature", "number"),
        ({"temperature": 2.5}, "invalid_value", "temperature", "less than or equal to 2"),
        ({"temperature": 1e-9}, "invalid_value", "temperature", "at least 0.01"),
        ({"temperature": float("nan")}, "invalid_value", "temperature", "finite"),
        ({"top_p": 0}, "invalid_value", "top_p", "greater than 0"),
        ({"k": 0}, "invalid_value", "k", "greater than or equal to 1"),
        ({"k": 2.0}, "invalid_value", "k", "integer"),
        ({"k": 65, "alpha": 0.5}, "invalid_value", "k", "64"),
        ({"alpha": 1.5, "k": 4}, "invalid_value", "alpha", "less than or equal to 1"),
        ({"alpha": 0.5}, "missing_field", "k", "give k too"),
        ({"k": 5}, "missing_field", "alpha", "give alpha too"),
        ({"alpha": 0.5, "k": 4, "temperature": 1}, "contradiction", "temperature", "no effect"),
        ({"q": 1, "k": 4}, "contradiction", "k", "q asks for adaptive contrastive search"),
        ({"q": 0}, "invalid_value", "q", "greater than 0"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, "contradiction", "max_tokens", "one limit"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 101}, "too_many_tokens", "max_tokens", "at most 100"),
        ({"stop": ["a", ""]}, "invalid_value", "stop.1", "at least 1 character"),
        ({"stop": list("abcde")}, "invalid_value", "stop", "at most 4"),
        ({"seed": 2**63}, "invalid_value", "seed", ""),
        ({"seed": 10**400}, "invalid_value", "seed", ""),
        ({"stream": "yes"}, "invalid_value", "stream", "boolean"),
        ({"stream_options": {}}, "invalid_value", "stream_options", "stream=true"),
        ({"messages": []}, "invalid_value", "messages", "at least 1 item"),
        ({"messages": [message("tool", "1")]}, "invalid_value", "messages.0.role", "'user'"),
        ({"messages": [message("user", 1)]}, "invalid_value", "messages.0.content", "string"),
        ({"messages": [message("user", " ")]}, "invalid_value", "messages", "is empty"),
        ({"messages": [message("assistant", "a")]}, "invalid_value", "messages", "the user's"),
        (
            {"messages": [message("user", [{"type": "image_url"}])]},
            "invalid_value",
            "messages.0.content.0.type",
            "'text'",
        ),
        (
            {"messages": [message("user", "a") | {"tool_calls": [1]}]},
            "invalid_value",
            "messages.0.tool_calls",
            "not permitted",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str, said: str
) -> None:
    with pytest.raises(Refusal) as caught:
        chat(**fields).decoding(GREEDY, most_tokens=100)
    refusal = caught.value
    assert (refusal.status, refusal.code, refusal.param) == (422, code, param)
    assert said in str(refusal)
    assert len(str(refusal).splitlines()) == 1


@pytest.mark.parametrize(
    ("prompt", "param"), [("", "prompt"), (["a", ""], "prompt"), ([], "prompt"), ([1, 2], "prompt")]
)
def test_a_prompt_without_text_is_refused(prompt: Any, param: str) -> None:
    with pytest.raises(Refusal) as caught:
        completion(prompt=prompt)
    assert (caught.value.status, str(caught.value.param).split(".")[0]) == (422, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"prompt": "\\ud800"}', b"[" * 5000, b'{"prompt": "a"} x', b"null"],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse(CompletionRequest, body)
    assert caught.value.status == 422
    assert "no JSON" in str(caught.value)


def test_contrastive_search_of_the_run_has_no_repetition_penalty() -> None:
    with pytest.raises(Refusal, match="temperature=0"):
        decoding(CONTRASTIVE, repetition_penalty=1.2)
    greedy = decoding(CONTRASTIVE, repetition_penalty=1.2, temperature=0)
    assert (greedy.strategy, greedy.repetition_penalty) == (Strategy.greedy, 1.2)
