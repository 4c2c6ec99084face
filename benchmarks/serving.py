"""A thousand clients at once, well-behaved and not, against ``serve``: a file for locust.

    pip install locust
    python -m dollyllama serve RUN --port 8123
    locust -f benchmarks/serving.py --headless -u 1000 -r 100 -t 60s --stop-timeout 60 \
        --only-summary --host http://127.0.0.1:8123

Every status that docs/serving.md does not name for a request fails it, and so does a stream without
its end. What came back is counted by status at the end, beside the memory of the server, which is
looked at once a second where it runs on this machine.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import gevent
import psutil
from locust import HttpUser, between, events, task

#: What a busy server may say to a request that is in order.
BUSY = (429, 503)
STATUSES: Counter[tuple[str, int]] = Counter()
#: MiB that the server held, resident.
MEMORY: list[float] = []


class Client(HttpUser):  # type: ignore[misc]  # locust is untyped
    wait_time = between(0.5, 2)

    @task(3)  # type: ignore[untyped-decorator]
    def complete(self) -> None:
        body = {"prompt": "SELECT name FROM", "max_tokens": 8}
        with self.client.post(
            "/v1/completions", json=body, name="completion", catch_response=True
        ) as reply:
            judge("completion", reply, allowed=(200, *BUSY))

    @task(1)  # type: ignore[untyped-decorator]
    def stream(self) -> None:
        message = {"role": "user", "content": "Write a Python class Marble."}
        body = {"messages": [message], "max_tokens": 16, "stream": True}
        with self.client.post(
            "/v1/chat/completions", json=body, name="stream", stream=True, catch_response=True
        ) as reply:
            whole = b"".join(reply.iter_content(None)) if reply.status_code == 200 else b""
            judge("stream", reply, allowed=(200, *BUSY))
            if reply.status_code == 200 and not whole.endswith(b"data: [DONE]\n\n"):
                reply.failure("a stream without its end")

    @task(1)  # type: ignore[untyped-decorator]
    def disturb(self) -> None:
        body = "{" * random.randint(1, 2**21)
        with self.client.post(
            "/v1/completions",
            data=body,
            headers={"Content-Type": "application/json"},
            name="malformed",
            catch_response=True,
        ) as reply:
            judge("malformed", reply, allowed=(413, 422))


def judge(kind: str, reply: Any, *, allowed: tuple[int, ...]) -> None:
    STATUSES[kind, reply.status_code] += 1
    if reply.status_code in allowed:
        reply.success()
    else:
        reply.failure(f"status {reply.status_code}")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def look(environment: Any, **_: Any) -> None:
    port = urlsplit(environment.host).port
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
            gevent.spawn(watch, psutil.Process(connection.pid))


def watch(server: psutil.Process) -> None:
    while server.is_running():
        MEMORY.append(server.memory_info().rss / 2**20)
        gevent.sleep(1)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def tell(**_: Any) -> None:
    for (kind, status), count in sorted(STATUSES.items()):
        print(f"{kind}: {count:,} times {status}")
    if MEMORY:
        print(
            f"the server: {MEMORY[0]:,.0f} MiB before, {max(MEMORY):,.0f} at the most, "
            f"{MEMORY[-1]:,.0f} at the end"
        )
