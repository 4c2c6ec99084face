"""The server under the application: a socket of its own, quiet, and an end that tells everybody."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from dollyllama.serving.engine import Engine

#: What is being answered when the server is told to end may take so long.
GRACE_SECONDS = 10


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


class Server(uvicorn.Server):
    """Closes the engine as soon as it is to end, so that nobody waits for what will not come."""

    def __init__(self, app: Starlette, engine: Engine, *, grace_seconds: int = GRACE_SECONDS):
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.close(self._grace_seconds)
        await super().shutdown(sockets)
