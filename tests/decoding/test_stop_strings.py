"""Stop strings: the same text before them however it arrives, and no part of one shown."""

from __future__ import annotations

import random

from dollyllama.decoding.stop_strings import before_stop, safe_text


def letter_by_letter(text: str, stops: list[str]) -> str | None:
    """The reference: stop as soon as what was read ends with a stop, the longest of them."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return None


def cases(count: int) -> list[tuple[str, list[str]]]:
    draw = random.Random(0)

    def word(longest: int) -> str:
        return "".join(draw.choices("ab\n", k=draw.randint(1, longest)))

    return [(word(12), [word(4) for _ in range(draw.randint(0, 4))]) for _ in range(count)]


def test_the_text_ends_before_the_first_stop_that_is_complete() -> None:
    found = 0
    for text, stops in cases(2000):
        assert before_stop(text, stops) == letter_by_letter(text, stops)
        found += before_stop(text, stops) is not None
    assert 500 < found < 2000


def test_nothing_that_may_belong_to_a_stop_is_shown_and_all_else_is() -> None:
    for text, stops in cases(2000):
        if before_stop(text, stops) is None:
            shown = safe_text(text, stops)
            held = text[len(shown) :]
            assert text.startswith(shown)
            # What is held back may become a stop, and one letter more might not be held.
            assert not held or any(stop.startswith(held) for stop in stops)
            longer = [text[place:] for place in range(len(shown))]
            assert not any(stop.startswith(rest) for rest in longer for stop in stops)
