"""Stopping before a text, which may be cut into tokens in any way."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the stop that is complete first, reading from the left; None without one.

    Of two that are complete at the same place the longer counts.
    """
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else None


def safe_text(text: str, stops: Sequence[str]) -> str:
    """A text that goes on, less an end that is a stop or may become one."""
    held = 0
    for stop in stops:
        longest = min(len(stop), len(text))
        fits = (length for length in range(longest, 0, -1) if text.endswith(stop[:length]))
        held = max(held, next(fits, 0))
    return text[: len(text) - held]
