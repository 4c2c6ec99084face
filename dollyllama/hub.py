"""The Hugging Face Hub as a place that may not answer."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request

from dollyllama.explain import first_line


def hub_answers(endpoint: str) -> bool:
    """Whether the Hub's name resolves; with a proxy or in offline mode, leave it to the library."""
    if urllib.request.getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, 443)
    except socket.gaierror:
        return False
    return True


def root_line(error: BaseException) -> str:
    """The first line of an error's innermost cause: the libraries wrap and repeat."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
