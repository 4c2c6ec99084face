"""The server under the application: a socket of its own, quiet, and an end that tells everybody."""

from __future__ import annotations

import asyncio
import resource
import socket
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from dollyllama.serving.engine import Engine

#: What is being answered when the server is told to end may take so long.
GRACE_SECONDS = 10

#: A caller whose request line and headers take longer is let go.
HEAD_SECONDS = 10.0

#: Open connections, idle ones included; a further one is closed as it comes. Fewer where the system
#: gives this process too few files for so many.
MAX_CONNECTIONS = 2_000


def bind(host: str, port: int) -> socket.socket:
    """A socket at ``host`` and ``port`` (0: a free one) that nobody can reach before it is served.

    ValueError when it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host} is no address of this machine: {error}") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ValueError(f"--host {host} --port {port} cannot be had: {error.strerror}") from None
    return bound


class Connection(H11Protocol):
    """Closes itself when the head of a request does not come in time, or when there are too many.

    uvicorn by itself waits for a head for ever, and the application sees no request before that.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self.connections) > min(MAX_CONNECTIONS, files // 2):
            transport.abort()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Closes the engine as soon as it is to end, so that nobody waits for what will not come.

    greeting: printed once callers can connect. A second Ctrl-C cuts off what is being answered.
    """

    def __init__(
        self,
        app: Starlette,
        engine: Engine,
        *,
        grace_seconds: int = GRACE_SECONDS,
        greeting: str | None = None,
    ):
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=grace_seconds + 5,
            )
        )
        self._engine = engine
        self._grace_seconds = grace_seconds
        self._greeting = greeting
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._greeting is not None and self.started:
            print(self._greeting, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif self._loop is not None:
            # Not here: what the signal interrupted may hold the engine's lock.
            self._loop.call_soon_threadsafe(self._engine.close, 0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.close(self._grace_seconds)
        await super().shutdown(sockets)
