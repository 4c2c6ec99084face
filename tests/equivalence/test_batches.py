"""However rows are batched, an optimizer step is that of the rows by themselves."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import GraniteForCausalLM

from dollyllama.config import Batching
from tests.equivalence.step import assert_same, step_by_hand, step_of_fit
from tests.training.build import make_model, make_rows

#: Ragged on purpose: the mean of the rows' means is far from the mean over their tokens.
ROWS = make_rows([5, 31, 9, 24, 6, 17, 40, 12])


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (1, 8), (3, 3)])
def test_a_step_is_that_of_the_rows_alone(
    batching: Batching, batch_size: int, accumulation: int
) -> None:
    """Batch 8 x 1 = 1 x 8, padded = packed, and all of them equal to no batch at all."""
    sizes = {"batch_size": batch_size, "accumulation": accumulation}
    if batching is Batching.packed and accumulation > 1:
        sizes["accumulation"] = 8  # as many bins as may come of eight rows; one epoch has them all
    step = step_of_fit(make_model(), ROWS, batching=batching, epochs=1, max_steps=None, **sizes)
    assert_same(step, step_by_hand(make_model(), ROWS))


@pytest.mark.parametrize("at_once", [1, 30 * 99, 2**24])
def test_a_head_with_lora_is_trained_through_the_selected_places(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("dollyllama.training.loss._LOGITS", at_once)
    step = step_of_fit(make_model(head=True), ROWS, batch_size=8)
    by_hand = step_by_hand(make_model(head=True), ROWS)
    assert any("lm_head" in name for name in by_hand.gradients)
    assert_same(step, by_hand)


@pytest.mark.parametrize("batching", [Batching.padded, Batching.packed])
def test_tied_embeddings_give_the_same_step(batching: Batching) -> None:
    step = step_of_fit(make_model(tie_word_embeddings=True), ROWS, batch_size=8, batching=batching)
    assert_same(step, step_by_hand(make_model(tie_word_embeddings=True), ROWS))


@pytest.mark.parametrize("batching", [Batching.padded, Batching.packed])
def test_activation_checkpointing_changes_no_gradient(batching: Batching) -> None:
    step = step_of_fit(
        make_model(), ROWS, batch_size=8, batching=batching, activation_checkpointing=True
    )
    assert_same(step, step_by_hand(make_model(), ROWS))


def test_loss_on_all_text_leaves_out_the_first_token_alone() -> None:
    rows = [dataclasses.replace(row, spans=((0, len(row.ids)),)) for row in ROWS]
    by_hand = step_by_hand(make_model(), rows)
    for batching in (Batching.padded, Batching.packed):
        assert_same(step_of_fit(make_model(), rows, batch_size=8, batching=batching), by_hand)


def test_the_pad_token_changes_nothing() -> None:
    """Padding is seen by no token: even a pad id that is a word of the rows is as good."""
    rows = [dataclasses.replace(row, ids=[7, *row.ids[1:-1], 0]) for row in ROWS]
    assert_same(step_of_fit(make_model(), rows, batch_size=8), step_by_hand(make_model(), rows))


def test_a_model_that_scales_its_heads_logits_gets_the_same_step() -> None:
    granite = make_model(GraniteForCausalLM, logits_scaling=4.0, rms_norm_eps=1e-6)
    by_hand = step_by_hand(granite, ROWS)
    assert_same(step_of_fit(granite, ROWS, batch_size=8), by_hand)
