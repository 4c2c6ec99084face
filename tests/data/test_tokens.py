from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dollyllama.config import LossOn, Overlong
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import format_prompt, format_response
from dollyllama.data.tokens import IGNORED, EncodedExample, encode, encode_all
from tests.data.build import make_example

EXAMPLE = make_example("Say hé.", "Hé\u2028!")
PROMPT_BYTES = len(format_prompt("Say hé.").encode())
RESPONSE_BYTES = len("Hé\u2028!\n### End".encode())
WHOLE = 1 + PROMPT_BYTES + RESPONSE_BYTES + 1


def run(
    tokenizer: Any,
    example: Example = EXAMPLE,
    max_length: int = 1024,
    loss_on: LossOn = LossOn.response,
    overlong: Overlong = Overlong.truncate,
) -> EncodedExample | Rejected:
    return encode(example, tokenizer, max_length=max_length, loss_on=loss_on, overlong=overlong)


def encoded(tokenizer: Any, **changes: Any) -> EncodedExample:
    outcome = run(tokenizer, **changes)
    assert isinstance(outcome, EncodedExample), outcome
    return outcome


def test_ids_are_prompt_response_marker_and_end(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encoded(byte_tokenizer).ids
    text = format_prompt("Say hé.") + "Hé\u2028!\n### End"
    assert len(ids) == WHOLE
    assert (ids[0], ids[-1]) == (0, 1)
    assert byte_tokenizer.decode(ids[1:-1]) == text


def test_prompt_tokens_carry_no_loss(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    example = encoded(byte_tokenizer)
    assert example.labels[: 1 + PROMPT_BYTES] == [IGNORED] * (1 + PROMPT_BYTES)
    assert example.labels[1 + PROMPT_BYTES :] == example.ids[1 + PROMPT_BYTES :]
    assert len(example.labels) == len(example.ids)


def test_the_end_of_sequence_is_learnt(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert encoded(byte_tokenizer).labels[-1] == byte_tokenizer.eos_token_id


def test_full_text_learns_every_token(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    example = encoded(byte_tokenizer, loss_on=LossOn.full_text)
    assert example.labels == example.ids


@pytest.mark.parametrize("overlong", list(Overlong))
def test_an_exact_fit_is_not_truncated(
    byte_tokenizer: PreTrainedTokenizerFast, overlong: Overlong
) -> None:
    example = encoded(byte_tokenizer, max_length=WHOLE, overlong=overlong)
    assert (len(example.ids), example.truncated) == (WHOLE, False)


@pytest.mark.parametrize("missing", [1, 5, RESPONSE_BYTES])
def test_truncation_cuts_the_end_and_keeps_the_prompt(
    byte_tokenizer: PreTrainedTokenizerFast, missing: int
) -> None:
    example = encoded(byte_tokenizer, max_length=WHOLE - missing)
    assert example.ids == encoded(byte_tokenizer).ids[:-missing]
    assert example.truncated
    assert len(example.ids) - example.masked >= 1


@pytest.mark.parametrize("loss_on", list(LossOn))
def test_a_prompt_without_room_for_a_response_is_rejected(
    byte_tokenizer: PreTrainedTokenizerFast, loss_on: LossOn
) -> None:
    outcome = run(byte_tokenizer, max_length=1 + PROMPT_BYTES, loss_on=loss_on)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "prompt_too_long"


def test_reject_takes_no_cut_example(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    outcome = run(byte_tokenizer, max_length=WHOLE - 1, overlong=Overlong.reject)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "too_long"
    assert f"{WHOLE} tokens" in outcome.detail


def test_a_text_that_names_a_control_token_stays_text(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = encoded(byte_tokenizer, example=make_example("<s>", "a</s>b"))
    assert [example.ids.index(1), example.ids.count(0)] == [len(example.ids) - 1, 1]


def test_chunks_change_nothing_and_report_progress(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    examples = [make_example(f"i{n}", f"r{n}", row=n) for n in range(7)]
    done: list[int] = []
    values: dict[str, Any] = {
        "max_length": 512,
        "loss_on": LossOn.response,
        "overlong": Overlong.truncate,
    }
    whole = encode_all(examples, byte_tokenizer, **values)
    parts = encode_all(examples, byte_tokenizer, chunk=3, progress=done.append, **values)
    assert parts == whole
    assert done == [3, 6, 7]


def test_apart_is_together_with_the_real_tokenizer(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "open_llama_v2")
    for response in ("SELECT a FROM b", "  x", "é\u2028 \U0001f600", "1", "### x", "def f():\n  1"):
        example = make_example("Say it.", response)
        together = tokenizer(format_prompt("Say it.") + format_response(response)).input_ids
        assert encoded(tokenizer, example=example).ids == [*together, tokenizer.eos_token_id]
