"""The small model's files: whole, small enough, and with a tokenizer that knows every text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from dollyllama.embedded import MODEL
from dollyllama.embedded.pretrain import POSITIONS, VOCAB_SIZE, tokenizer_texts
from dollyllama.embedded.tokenizer import save_tokenizer, train_tokenizer
from dollyllama.files import digest
from dollyllama.model.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("embedded", None)


def test_files_have_the_recorded_digests() -> None:
    lines = (MODEL.parent / "DIGESTS").read_text(encoding="utf-8").splitlines()
    recorded = {path: value for value, path in (line.split("  ") for line in lines)}
    assert recorded == {
        f"{MODEL.name}/{path.name}": digest(path) for path in sorted(MODEL.iterdir())
    }


def test_the_model_is_small() -> None:
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        count = sum(math.prod(weights.get_slice(key).get_shape()) for key in sorted(weights.keys()))
    assert 3_000_000 <= count <= 8_000_000
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16 * 2**20


def test_the_tokenizer_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    made = train_tokenizer(tokenizer_texts(), vocab_size=VOCAB_SIZE)
    save_tokenizer(made, tmp_path, max_length=POSITIONS)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(
        (MODEL / "tokenizer.json").read_text()
    )


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM singer WHERE age > 30",
        "def f(x):\n    return x * 3\n",
        " leading and  double   spaces ",
        "Zürich, 日本, \u2028 🦙\t\x00",
        "",
    ],
)
def test_any_text_comes_back_unchanged(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_pieces_do_not_depend_on_the_text_before(tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert ids("one:\n") + ids("SELECT 42") == ids("one:\nSELECT 42")


def test_numbers_are_digits(tokenizer: Any) -> None:
    assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4


def test_padding_is_no_end_of_sequence(tokenizer: Any) -> None:
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
