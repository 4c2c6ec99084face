"""The API over HTTP, against a real server on a port of its own."""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dollyllama.config import PromptFormat
from dollyllama.data.example import Question
from dollyllama.data.prompt import build_prompt, format_prompt
from dollyllama.decoding.generate import Completion, generate
from dollyllama.serving.app import MAX_BODY_BYTES, TROUBLES, Settings, build_app
from dollyllama.serving.engine import Engine
from dollyllama.serving.prompts import PromptCounter
from dollyllama.serving.server import Server, bind
from tests.data.build import LLAMA_2
from tests.decoding.build import Scripted
from tests.serving.build import CONTRASTIVE, GREEDY, Stepped, until

QUESTION = "Write a Python class Marble with the attributes colour and weight."
EXTRA = {"alpha": 0.6, "k": 4}
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Served:
    """A running server. url: without /v1."""

    url: str
    engine: Engine
    server: Server

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=fields, timeout=30)

    def connect(self) -> socket.socket:
        """A connection to send bytes over."""
        return socket.create_connection(("127.0.0.1", int(self.url.split(":")[-1])), timeout=30)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)


@contextmanager
def serving(
    model: Any,
    tokenizer: Any,
    *,
    max_batch: int = 8,
    max_queue: int = 64,
    grace_seconds: int = 0,
    prompt_format: PromptFormat = PromptFormat.alpaca,
    **settings: Any,
) -> Iterator[Served]:
    positions = model.config.max_position_embeddings
    engine = Engine(model, tokenizer, max_batch=max_batch, max_queue=max_queue)
    chosen = {
        "model": "tiny",
        "created": 0,
        "decoding": GREEDY,
        "most_tokens": positions,
        "seconds": 60.0,
        "api_key": None,
    }
    counter = PromptCounter(tokenizer, positions, prompt_format)
    app = build_app(engine, counter, Settings(**(chosen | settings)))
    server = Server(app, engine, grace_seconds=grace_seconds)
    with bind("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(url, engine, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(model: Any, tokenizer: Any) -> Iterator[Served]:
    with serving(model, tokenizer, max_queue=8) as running:
        yield running


@pytest.fixture
def stepped(bytes_tokenizer: Any) -> Iterator[Stepped]:
    model = Stepped({"a": [50] * 40, "b": [51], "c": [52]}, bytes_tokenizer)
    yield model
    model.steps.release(1000)


def alone(model: Any, tokenizer: Any, prompt: str, decoding: Any = GREEDY) -> Completion:
    return generate(model, tokenizer, [prompt], decoding, batch_size=1, seed=0)[0]


def test_a_chat_is_asked_in_the_template_that_the_run_was_trained_on(
    model: Any, tokenizer: Any
) -> None:
    chat_tokenizer = copy.deepcopy(tokenizer)
    chat_tokenizer.chat_template = (
        "{% if messages|length > 3 %}{{ raise_exception('too many turns') }}{% endif %}" + LLAMA_2
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    question = Question(QUESTION, history=(("system", "Be brief."),))
    prompt = build_prompt(question, PromptFormat.chat, chat_tokenizer)
    (wanted,) = generate(model, chat_tokenizer, [prompt], GREEDY, batch_size=1, seed=0)
    own = chat_tokenizer.apply_chat_template(messages, return_dict=False)
    with serving(model, chat_tokenizer, prompt_format=PromptFormat.chat) as running:
        reply = running.post("/v1/chat/completions", messages=messages).json()
        assert reply["choices"][0]["message"]["content"] == wanted.text
        assert reply["usage"]["prompt_tokens"] == len(own)
        turns = [*messages, {"role": "assistant", "content": "So."}, messages[1]]
        refused = running.post("/v1/chat/completions", messages=turns)
    assert refused.status_code == 422
    assert "too many turns" in refused.json()["error"]["message"]


def test_the_official_client_chats(served: Served, model: Any, tokenizer: Any) -> None:
    wanted = alone(model, tokenizer, format_prompt(QUESTION), CONTRASTIVE)
    client = served.client()
    ask: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "extra_body": EXTRA,
    }
    whole = client.chat.completions.create(**ask)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == wanted.text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    prompt_tokens = len(tokenizer(format_prompt(QUESTION)).input_ids)
    assert whole.usage.prompt_tokens == prompt_tokens
    assert whole.usage.completion_tokens == wanted.tokens == 16
    assert whole.usage.total_tokens == prompt_tokens + 16

    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == wanted.text
    assert len(deltas) > 8
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_official_client_completes(served: Served, model: Any, tokenizer: Any) -> None:
    prompts = ["SELECT name FROM", "def __init__(self,"]
    wanted = [alone(model, tokenizer, prompt, CONTRASTIVE).text for prompt in prompts]
    client = served.client()
    whole = client.completions.create(model="tiny", prompt=prompts, extra_body=EXTRA)
    assert [choice.text for choice in whole.choices] == wanted
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(
        model="tiny", prompt=prompts, stream=True, extra_body=EXTRA
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == wanted


def test_the_official_client_lists_the_model(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "dollyllama"
    with pytest.raises(openai.NotFoundError, match="has the model tiny"):
        client.completions.create(model="tinny", prompt="a")


def test_concurrent_requests_get_the_answers_of_single_ones(
    served: Served, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    run = Engine._run
    monkeypatch.setattr(
        Engine, "_run", lambda self, jobs: (batches.append(len(jobs)), run(self, jobs))
    )
    prompts = [f"{word} and then" for word in ("One", "Two", "Three", "Four", "Five", "Six")]
    decodings = [GREEDY, CONTRASTIVE, replace(GREEDY, max_new_tokens=5)] * 2
    fields: list[dict[str, Any]] = [{}, EXTRA, {"max_tokens": 5}] * 2
    with ThreadPoolExecutor(6) as pool:
        sent = [
            pool.submit(served.post, prompt=prompt, **more)
            for prompt, more in zip(prompts, fields, strict=True)
        ]
        texts = [each.result().json()["choices"][0]["text"] for each in sent]
    assert texts == [
        alone(model, tokenizer, prompt, decoding).text
        for prompt, decoding in zip(prompts, decodings, strict=True)
    ]
    assert sum(batches) == 6


def test_requests_that_wait_together_are_one_batch(bytes_tokenizer: Any, stepped: Stepped) -> None:
    with (
        serving(stepped, bytes_tokenizer) as running,
        ThreadPoolExecutor(3) as pool,
    ):
        first = pool.submit(running.post, prompt="a")
        until(lambda: len(running.engine._answering) == 1)
        others = [pool.submit(running.post, prompt=prompt) for prompt in "bc"]
        until(lambda: len(running.engine._waiting) == 2)
        stepped.steps.release(1000)
        assert [each.result().json()["choices"][0]["text"] for each in others] == ["Q", "R"]
        assert first.result().status_code == 200
        assert stepped.calls[16:] == [(2, 2), (2, 1)]


def test_stop_strings_and_seeds_are_honoured(served: Served, model: Any, tokenizer: Any) -> None:
    text = alone(model, tokenizer, "SELECT name FROM").text
    stop = text[len(text) // 2 :][:3]
    reply = served.post(prompt="SELECT name FROM", stop=stop).json()
    assert reply["choices"][0]["text"] == text[: text.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"
    drawn = [
        served.post(prompt="Once", temperature=1.0, seed=seed).json()["choices"][0]["text"]
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_that_ends_by_itself_says_so(bytes_tokenizer: Any) -> None:
    with serving(Scripted({"b": [51]}, bytes_tokenizer), bytes_tokenizer) as running:
        reply = running.post(prompt="b").json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def error(response: httpx.Response) -> dict[str, Any]:
    values: dict[str, Any] = response.json()
    assert set(values) == {"error"}
    assert set(values["error"]) == {"message", "type", "param", "code"}
    return values["error"]


def test_a_prompt_beyond_the_context_is_413(served: Served) -> None:
    said = error(response := served.post(prompt="word " * 600))
    assert (response.status_code, said["code"]) == (413, "context_length_exceeded")
    assert "512 positions" in said["message"]
    with pytest.raises(openai.APIStatusError) as caught:
        served.client().completions.create(model="tiny", prompt="word " * 600)
    assert caught.value.status_code == 413
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_413(served: Served, chunked: bool) -> None:
    body = json.dumps({"prompt": "a" * MAX_BODY_BYTES}).encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 2**16):
            yield body[start : start + 2**16]

    response = httpx.post(
        f"{served.url}/v1/completions",
        content=parts() if chunked else body,
        headers={"Content-Type": "application/json"},
    )
    assert (response.status_code, error(response)["code"]) == (413, "body_too_large")


def test_what_is_invalid_is_422(served: Served) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        served.client().completions.create(model="tiny", prompt="a", logprobs=3)
    assert (caught.value.param, caught.value.code) == ("logprobs", "unsupported_field")
    assert error(served.post(prompt="a", max_tokens=9999))["code"] == "too_many_tokens"
    assert error(served.post(prompt=["a"] * 9))["code"] == "too_many_prompts"
    response = httpx.post(
        f"{served.url}/v1/completions", content="{", headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, error(response)["code"]) == (422, "malformed_json")


def test_a_web_page_cannot_ask(served: Served) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = httpx.post(
            f"{served.url}/v1/completions",
            content='{"prompt": "a"}',
            headers={"Content-Type": content_type},
        )
        assert (response.status_code, error(response)["code"]) == (415, "unsupported_media_type")
    for path in ("/v1/models", "/health"):
        response = httpx.get(f"{served.url}{path}", headers={"Host": "evil.example:8000"})
        assert (response.status_code, error(response)["code"]) == (403, "foreign_host")


def test_paths_and_methods_that_are_not_there_are_told_as_errors(served: Served) -> None:
    response = httpx.get(f"{served.url}/v1/embeddings")
    assert (response.status_code, error(response)["code"]) == (404, "not_found")
    response = httpx.get(f"{served.url}/v1/completions")
    assert (response.status_code, error(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


def test_a_fault_of_our_own_is_500_and_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> int:
        raise KeyError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(PromptCounter, "count", broken)
        response = served.post(prompt="a")
    assert (response.status_code, error(response)["code"]) == (500, "internal_error")
    until(lambda: "KeyError: 'lost'" in caplog.text)
    assert served.post(prompt="a").status_code == 200


def test_the_page_on_serving_names_every_refusal() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \| (.+?) \|", page, re.MULTILINE)
    named = {
        (int(status), code)
        for statuses, codes in rows
        for status in statuses.split(",")
        for code in re.findall(r"`(\w+)`", codes)
    }
    sources = (root / "dollyllama/serving").glob("*.py")
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    raised = {
        (int(status), name) for status, name in re.findall(r'Refusal\(\s*(\d+),\s*"(\w+)"', code)
    }
    raised |= {(status, str(trouble)) for trouble, (status, _) in TROUBLES.items()}
    assert len(raised) > 15
    assert raised <= named


def test_a_full_queue_is_429_and_says_when_to_come_back(
    bytes_tokenizer: Any, stepped: Stepped
) -> None:
    with (
        serving(stepped, bytes_tokenizer, max_batch=1, max_queue=1) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(running.post, prompt="a")
        until(lambda: len(running.engine._answering) == 1)
        second = pool.submit(running.post, prompt="b")
        until(lambda: len(running.engine._waiting) == 1)
        response = running.post(prompt="c")
        assert (response.status_code, error(response)["code"]) == (429, "queue_full")
        assert int(response.headers["Retry-After"]) >= 1
        stepped.steps.release(1000)
        assert [each.result().status_code for each in (first, second)] == [200, 200]
        assert running.post(prompt="c").status_code == 200


def test_an_answer_that_comes_too_late_is_503(bytes_tokenizer: Any, stepped: Stepped) -> None:
    with serving(stepped, bytes_tokenizer, seconds=0.2) as running:
        response = running.post(prompt="a")
        assert (response.status_code, error(response)["code"]) == (503, "timeout")
        assert running.engine._answering[0].done
        stepped.steps.release(1000)


def test_a_server_that_ends_is_503(bytes_tokenizer: Any, stepped: Stepped) -> None:
    with (
        serving(stepped, bytes_tokenizer, max_batch=1) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        assert httpx.get(f"{running.url}/health").json() == {"status": "ok"}
        pool.submit(running.post, prompt="a")
        until(lambda: len(running.engine._answering) == 1)
        waiting = pool.submit(running.post, prompt="b")
        running.engine.close(0.0)
        response = running.post(prompt="c")
        assert (response.status_code, error(response)["code"]) == (503, "not_ready")
        assert httpx.get(f"{running.url}/health").status_code == 503
        stepped.steps.release(1000)
        assert waiting.result().status_code == 503


@contextmanager
def streamed(running: Served, prompt: str, client: httpx.Client) -> Iterator[Iterator[str]]:
    """The lines of a stream, behind its first piece of text."""
    with client.stream(
        "POST", f"{running.url}/v1/completions", json={"prompt": prompt, "stream": True}
    ) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = (line for line in response.iter_lines() if line)
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"]
        yield lines


def test_a_stream_is_told_of_the_end_and_is_not_marked_as_whole(
    bytes_tokenizer: Any, stepped: Stepped
) -> None:
    with (
        serving(stepped, bytes_tokenizer) as running,
        httpx.Client(timeout=30) as client,
    ):
        stepped.steps.release(2)
        with streamed(running, "a", client) as lines:
            running.server.should_exit = True
            until(lambda: running.engine._closed)
            stepped.steps.release(1000)
            rest = list(lines)
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert "data: [DONE]" not in rest


def test_a_stream_may_end_within_the_grace(bytes_tokenizer: Any, stepped: Stepped) -> None:
    with (
        serving(stepped, bytes_tokenizer, grace_seconds=100) as running,
        httpx.Client(timeout=30) as client,
    ):
        stepped.steps.release(2)
        with streamed(running, "a", client) as lines:
            running.server.should_exit = True
            until(lambda: running.engine._closed)
            stepped.steps.release(1000)
            assert list(lines)[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_goes_away_frees_its_row(
    stream: bool, bytes_tokenizer: Any, stepped: Stepped
) -> None:
    with serving(stepped, bytes_tokenizer, max_batch=1) as running:
        if stream:
            with httpx.Client(timeout=30) as client:
                stepped.steps.release(2)
                with streamed(running, "a", client):
                    pass
        else:
            with running.connect() as raw:
                raw.sendall(request_bytes(b'{"prompt": "a"}'))
                until(lambda: len(running.engine._answering) == 1)
        (gone,) = running.engine._answering
        until(lambda: gone.done)
        # The row ends with the pass that it is in, and the next needs two: 40 would be too many.
        stepped.steps.release(4)
        assert running.post(prompt="b").json()["choices"][0]["text"] == "Q"


def request_bytes(body: bytes, **headers: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def test_what_is_no_http_is_answered_and_hurts_nobody(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    with served.connect() as raw:
        raw.sendall(request_bytes(b'{"prompt": "a"}')[:-3])
        raw.shutdown(socket.SHUT_WR)
    assert served.post(prompt="a").status_code == 200


def test_a_body_that_comes_too_slowly_is_408(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollyllama.serving.app.BODY_SECONDS", 0.1)
    with served.connect() as raw:
        raw.sendall(request_bytes(b'{"prompt": "a"}')[:-3])
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_head_that_comes_too_slowly_ends_the_connection_and_a_quick_one_does_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollyllama.serving.server.HEAD_SECONDS", 0.3)
    with served.connect() as slow:
        slow.sendall(b"POST /v1/comp")
        assert slow.recv(100) == b""
    # The second request of a connection is waited for no longer than the first.
    with served.connect() as twice:
        twice.sendall(HEALTH)
        assert twice.recv(1000).startswith(b"HTTP/1.1 200")
        twice.sendall(b"GET /health HTTP/1.1\r\nHost:")
        while more := twice.recv(1000):
            assert b"HTTP/1.1" not in more
    # An answer may take longer than a head.
    with served.connect() as quick:
        body = json.dumps({"prompt": "a", "max_tokens": 200}).encode()
        quick.sendall(request_bytes(body))
        assert quick.recv(100).startswith(b"HTTP/1.1 200")


def healthy(connection: socket.socket) -> bool:
    """Whether the answer to ``HEALTH`` is 200; its head and its body may come apart."""
    answer = b""
    while not answer.endswith(b"}"):
        if not (part := connection.recv(1000)):
            return False
        answer += part
    return answer.startswith(b"HTTP/1.1 200")


def test_a_connection_too_many_is_closed_and_the_others_stay(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served.connect() as first:
        first.sendall(HEALTH)
        assert healthy(first)
        monkeypatch.setattr("dollyllama.serving.server.MAX_CONNECTIONS", 0)
        with served.connect() as second, suppress(ConnectionError):
            second.sendall(HEALTH)
            assert second.recv(1000) == b""
        first.sendall(HEALTH)
        assert healthy(first)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
#: A request's own keys with values right and wrong, and keys that it does not have.
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            *("prompt", "messages", "model", "max_tokens", "stream", "stop", "n", "seed"),
            *("temperature", "top_p", "alpha", "k", "q", "logprobs", "echo", "user"),
        ]
    )
    | st.text(max_size=8),
    JSON | st.sampled_from(["a", 1, 0, -1, 0.5, 2**64, True, [{"role": "user", "content": "a"}]]),
    max_size=6,
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """One for many requests: making one reads all certificates that the machine trusts."""
    with httpx.Client(timeout=30) as opened:
        yield opened


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]), fields=FIELDS | JSON)
def test_whatever_the_json_the_answer_is_one_that_is_documented(
    served: Served, client: httpx.Client, path: str, fields: Any
) -> None:
    if isinstance(fields, dict):
        fields.setdefault("max_tokens", 1)
    body = json.dumps(fields).encode("utf-8", "surrogatepass")
    reply = client.post(
        served.url + path, content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code in (200, 400, 404, 422), reply.text
    if reply.status_code != 200:
        assert error(reply)["message"]


@pytest.fixture(scope="module")
def locked(model: Any, tokenizer: Any) -> Iterator[Served]:
    with serving(model, tokenizer, api_key="sesame") as running:
        yield running


def test_without_the_key_nothing_but_health_is_answered(locked: Served) -> None:
    calls: list[Callable[..., httpx.Response]] = [
        lambda **more: httpx.get(f"{locked.url}/v1/models", **more),
        lambda **more: httpx.get(f"{locked.url}/v1/nowhere", **more),
        lambda **more: httpx.post(f"{locked.url}/v1/completions", json={"prompt": "a"}, **more),
        lambda **more: httpx.post(f"{locked.url}/v1/chat/completions", content="{", **more),
    ]
    for call in calls:
        assert error(call())["code"] == "missing_api_key"
        for header in ("Bearer sesam", "Bearer sesame2", "sesame", "Basic sesame", b"Bearer \xe9"):
            response = call(headers={"Authorization": header})
            assert (response.status_code, error(response)["code"]) == (401, "invalid_api_key")
            assert "WWW-Authenticate" in response.headers
    assert httpx.get(f"{locked.url}/health").status_code == 200


def test_the_official_client_brings_the_key(locked: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.client("wrong").models.list()
    reply = locked.client("sesame").completions.create(model="tiny", prompt="a", max_tokens=1)
    assert reply.choices[0].finish_reason == "length"
