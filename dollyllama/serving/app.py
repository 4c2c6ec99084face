"""OpenAI's chat and completions API over an engine: routes, and an HTTP request as its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dollyllama.config import Decoding
from dollyllama.serving import replies
from dollyllama.serving.engine import (
    Answer,
    ClosedError,
    Delta,
    Engine,
    Event,
    Failure,
    Job,
    QueueFullError,
    Trouble,
)
from dollyllama.serving.guard import Guard
from dollyllama.serving.prompts import PromptCounter
from dollyllama.serving.refusal import Refusal
from dollyllama.serving.schema import ChatRequest, CompletionRequest, parse

#: More than any prompt that fits a model needs.
MAX_BODY_BYTES = 2**20

#: A caller that sends its request more slowly is let go.
BODY_SECONDS = 10.0

#: What jobs that were accepted can end with, as HTTP says it.
TROUBLES = {
    Trouble.internal_error: (500, "answering failed: the server's log tells why"),
    Trouble.out_of_memory: (
        500,
        "memory ran out: ask for fewer tokens, or start the server with a smaller --max-batch",
    ),
    Trouble.shutting_down: (503, "the server is shutting down"),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server decides for all requests.

    model: the name it goes by. decoding: where a request says nothing. most_tokens: that one may
    ask for. seconds: from accepting a request to its last token. api_key: None on loopback alone.
    """

    model: str
    created: int
    decoding: Decoding
    most_tokens: int
    seconds: float
    api_key: str | None


def build_app(engine: Engine, counter: PromptCounter, settings: Settings) -> Starlette:
    """The application. It starts the engine, and waits for its end when it ends itself."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.close(0.0)
        await asyncio.to_thread(engine.join, 30.0)

    model = {
        "id": settings.model,
        "object": "model",
        "created": settings.created,
        "owned_by": "dollyllama",
    }

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        _check_model(request.path_params["name"], settings)
        return JSONResponse(model)

    async def health(request: Request) -> Response:
        if engine.ready:
            return JSONResponse({"status": "ok"})
        return _refuse(_closed())

    answer = partial(_answer, engine=engine, counter=counter, settings=settings)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", partial(answer, kind=ChatRequest), methods=["POST"]),
            Route("/v1/completions", partial(answer, kind=CompletionRequest), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name}", one_model),
            Route("/health", health),
        ],
        middleware=[Middleware(Guard, api_key=settings.api_key)],
        exception_handlers={
            Refusal: _on_refusal,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            500: _on_error,
        },
        lifespan=lifespan,
    )


async def _answer(
    request: Request,
    *,
    kind: type[ChatRequest | CompletionRequest],
    engine: Engine,
    counter: PromptCounter,
    settings: Settings,
) -> Response:
    """One request from its body to its reply, or to the first piece of it."""
    asked = parse(kind, await _read_body(request))
    if asked.model is not None:
        _check_model(asked.model, settings)
    decoding = asked.decoding(settings.decoding, most_tokens=settings.most_tokens)
    prompts = asked.prompts(counter.build)
    if len(prompts) > engine.max_queue:
        raise Refusal(
            422,
            "too_many_prompts",
            f"prompt holds {len(prompts)} texts, but no more than {engine.max_queue} can wait here",
            param=kind.named,
        )
    prompt_tokens = await counter.count(prompts, param=kind.named)

    inbox: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    jobs = [
        Job(
            prompt,
            decoding,
            partial(_deliver, asyncio.get_running_loop(), inbox, index),
            stops=asked.stops,
            seed=asked.seed,
            streamed=bool(asked.stream),
        )
        for index, prompt in enumerate(prompts)
    ]
    try:
        engine.submit(jobs)
    except QueueFullError:
        raise Refusal(
            429, "queue_full", "too many requests wait already: try again", retry_seconds=1
        ) from None
    except ClosedError:
        raise _closed() from None
    events = _follow(inbox, len(jobs), settings.seconds)
    envelope = replies.new_envelope(settings.model, chat=kind is ChatRequest)
    handed_on = False
    try:
        if asked.stream:
            # A failure before anything is written still has a status of its own.
            first = await _unless_gone(request, anext(events))
            wants_usage = asked.wants_usage
            handed_on = True
            return _JobsResponse(
                jobs, _stream(envelope, first, events, len(jobs), prompt_tokens, wants_usage)
            )
        answers = await _unless_gone(request, _collect(events, len(jobs)))
        return JSONResponse(replies.whole(envelope, answers, prompt_tokens=prompt_tokens))
    finally:
        if not handed_on:
            _cancel(jobs)


# --- from the request ---------------------------------------------------------------------------


async def _read_body(request: Request) -> bytes:
    """The JSON body. Raises Refusal for another type, a long body or a slow one."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        # A web page cannot send this type to another site without being allowed to.
        raise Refusal(415, "unsupported_media_type", "send Content-Type: application/json")
    too_large = Refusal(
        413, "body_too_large", f"the body has more than {MAX_BODY_BYTES} bytes: shorten it"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refusal(
            408, "body_too_slow", f"the body did not come within {BODY_SECONDS:g} seconds"
        ) from None
    return bytes(body)


def _check_model(name: str, settings: Settings) -> None:
    if name != settings.model:
        raise Refusal(
            404, "model_not_found", f"this server has the model {settings.model}", param="model"
        )


async def _unless_gone(request: Request, wanted: Awaitable[T]) -> T:
    """Wait for a result as long as the caller does. Raises ClientDisconnect when it has gone."""
    result = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait([result, gone], return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        result.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- from the engine ----------------------------------------------------------------------------


def _deliver(
    loop: asyncio.AbstractEventLoop,
    inbox: asyncio.Queue[tuple[int, Event]],
    index: int,
    event: Event,
) -> None:
    """Hand an event of the engine's thread to the event loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, (index, event))


async def _follow(
    inbox: asyncio.Queue[tuple[int, Event]], jobs: int, seconds: float
) -> AsyncIterator[tuple[int, Delta | Answer]]:
    """What the jobs write until all have their answer. Raises Refusal when one fails or is late."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while jobs:
        try:
            index, event = await asyncio.wait_for(inbox.get(), deadline - loop.time())
        except TimeoutError:
            raise Refusal(
                503,
                "timeout",
                f"there was no whole answer within {seconds:g} seconds: ask for fewer tokens, or "
                f"when less is asked",
                retry_seconds=1,
            ) from None
        if isinstance(event, Failure):
            status, message = TROUBLES[event.trouble]
            raise Refusal(status, event.trouble, message)
        if isinstance(event, Answer):
            jobs -= 1
        yield index, event


async def _collect(events: AsyncIterator[tuple[int, Delta | Answer]], jobs: int) -> list[Answer]:
    answers = {index: event async for index, event in events if isinstance(event, Answer)}
    return [answers[index] for index in range(jobs)]


async def _stream(
    envelope: replies.Envelope,
    first: tuple[int, Delta | Answer],
    events: AsyncIterator[tuple[int, Delta | Answer]],
    jobs: int,
    prompt_tokens: int,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """The reply as server-sent events. An error ends it, without the mark of a whole stream."""
    if envelope.chat:
        for index in range(jobs):
            yield replies.server_sent(replies.opening(envelope, index))
    written = 0
    try:
        async for index, event in _behind(first, events):
            if isinstance(event, Delta):
                yield replies.server_sent(replies.piece(envelope, index, event.text))
            else:
                written += event.tokens
                yield replies.server_sent(replies.closing(envelope, index, event))
    except Refusal as refusal:
        yield replies.server_sent(refusal.body)
        return
    if wants_usage:
        counted = replies.counted(envelope, prompt_tokens=prompt_tokens, completion_tokens=written)
        yield replies.server_sent(counted)
    yield replies.STREAM_END


async def _behind(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for each in rest:
        yield each


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancel()


class _JobsResponse(StreamingResponse):
    """A stream whose jobs end with it, also when the caller goes away in the middle."""

    def __init__(self, jobs: Sequence[Job], content: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _cancel(self._jobs)


# --- refusals -----------------------------------------------------------------------------------


def _closed() -> Refusal:
    return Refusal(503, "not_ready", "the server is shutting down, or its engine has stopped")


def _refuse(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _refuse(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    refusal = Refusal(
        status, status.name.lower(), f"{request.method} {request.url.path[:64]}: {status.phrase}"
    )
    return JSONResponse(refusal.body, status, {**refusal.headers, **(error.headers or {})})


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody reads it. 499 is nginx's word for that."""
    return Response(status_code=499)


async def _on_error(request: Request, error: Exception) -> Response:
    return _refuse(Refusal(500, "internal_error", TROUBLES[Trouble.internal_error][1]))
