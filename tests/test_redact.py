"""No secret survives, and nothing else is touched."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from dollyllama.redact import MASK, redact


def test_values_of_secret_variables_are_masked_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    found = redact({"a": ["x correct-horse-battery y", {"0123456789abcdef": 1}], "b": 2.5})
    assert found == {"a": [f"x {MASK} y", {MASK: 1}], "b": 2.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Basic YXBpOjBmMWUyZDNjNGI=", f"Authorization: Basic {MASK}"),
        ("hub.token=abc", f"hub.token={MASK}"),
        ("--api-key=abc", f"--api-key={MASK}"),
        ("https://me:pass@host/x", f"https://{MASK}@host/x"),
        ("hf_" + "aB3" * 8, MASK),
        ("ghp_" + "aB3" * 12, MASK),
        ("sk-" + "aB3" * 12, MASK),
    ],
)
def test_tokens_are_known_by_their_shape(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "trainer.max_tokens=1000",
        "data.sources.sql.path=b-mc2/sql-create-context",
        "model.path=openlm-research/open_llama_7b_v2",
        "model.path=/home/me/hf_models/llama",
        "mail me@example.com",
        "basic tests of the bearer",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_short_value_does_not_blank_out_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a")
    assert redact("banana") == "banana"


ODD = 'it\'s "odd"\t\\ü & more\nof a second line'


@pytest.mark.parametrize(
    "spell",
    [str, json.dumps, repr, shlex.quote, quote, lambda text: " ".join(text.split())],
)
def test_a_secret_is_known_however_it_is_spelt(
    monkeypatch: pytest.MonkeyPatch, spell: Callable[[str], str]
) -> None:
    monkeypatch.setenv("MY_PASSWORD", ODD)
    assert redact(f"<{spell(ODD)}>").strip("<>\"'") == MASK


def test_every_line_of_a_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PRIVATE_KEY", ODD)
    assert redact("x of a second line y") == f"x {MASK} y"


def test_what_is_printed_is_masked_and_answers_are_not() -> None:
    code = (
        "import sys, logging, warnings\n"
        "from dollyllama.redact import mask_output\n"
        "mask_output(stdout=False); mask_output(stdout=False)\n"
        "secret = 'correct-horse\\nbattery-staple'\n"
        "print(secret); logging.warning(secret); warnings.warn(secret)\n"
        "print('no', secret, file=sys.stderr, flush=True)\n"
        "raise RuntimeError(secret)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "A_TOKEN": "correct-horse\nbattery-staple",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "correct-horse\nbattery-staple\n"
    assert done.stderr.count(MASK) == 4
    assert "battery" not in done.stderr
