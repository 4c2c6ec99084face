"""In a pack, no token sees another row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dollyllama.data.batches import collate_packed
from dollyllama.data.tokens import IGNORED, EncodedExample
from dollyllama.fast.attach import fast_path
from dollyllama.model.attention import row_attention
from dollyllama.training.loss import SupervisedLoss, supervision
from tests.training.build import make_model, make_rows

LENGTHS = [7, 19, 1, 12]
ROWS = make_rows(LENGTHS)


def starting_alike() -> list[EncodedExample]:
    """Rows with one frame, two of which have more in common; two are equal, one is the frame."""
    frame, more = (row.ids for row in make_rows([20, 18], seed=2))
    rows = make_rows([7, 19, 3, 12, 5])
    starts = [[*frame], [*frame, *more], [], [*frame, *more], [*frame]]
    texts = [[*start, *row.ids] for start, row in zip(starts, rows, strict=True)]
    texts += [texts[1], [*frame]]
    # The loss counts from within the frame on.
    return [replace(rows[0], ids=ids, spans=((min(17, len(ids) // 2), len(ids)),)) for ids in texts]


def packed_logits(model: Any, rows: list[EncodedExample]) -> list[Tensor]:
    """Logits of each row as the model computes them in one pack."""
    pack = collate_packed(rows)
    del pack["labels"]
    places = pack.pop("row_places")
    with row_attention(model, longest=max(LENGTHS)):
        logits = model(**pack, use_cache=False).logits[0, places]
    return list(logits.split(pack["row_lengths"]))[: len(rows)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_in_a_pack_are_those_of_the_row_alone(kv_heads: int) -> None:
    model = make_model(num_key_value_heads=kv_heads).eval()
    with torch.no_grad():
        for row, found in zip(ROWS, packed_logits(model, ROWS), strict=True):
            alone = model(input_ids=torch.tensor([row.ids])).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_gradients_in_a_pack_are_those_of_the_row_alone() -> None:
    weights = torch.randn(LENGTHS[1], 99, generator=torch.Generator().manual_seed(1))

    def gradients(logits: Tensor, model: Any) -> list[Tensor]:
        parameters = [each for each in model.parameters() if each.requires_grad]
        return list(torch.autograd.grad((logits * weights).sum(), parameters))

    model = make_model().eval()
    in_pack = gradients(packed_logits(model, ROWS)[1], model)
    alone = gradients(model(input_ids=torch.tensor([ROWS[1].ids])).logits[0], model)
    for found, expected in zip(in_pack, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logits_behind_a_shared_start_are_those_of_the_row_alone(kv_heads: int) -> None:
    model, rows = make_model(num_key_value_heads=kv_heads).eval(), starting_alike()
    assert collate_packed(rows)["input_ids"].shape[1] < sum(len(row.ids) for row in rows) / 2
    with torch.no_grad():
        for row, found in zip(rows, packed_logits(model, rows), strict=True):
            alone = model(input_ids=torch.tensor([row.ids])).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_shared_start_gets_the_gradients_of_all_its_rows() -> None:
    model, rows = make_model().train(), starting_alike()
    parameters = [each for each in model.parameters() if each.requires_grad]
    supervised = sum(row.supervised for row in rows)
    batch = collate_packed(rows)
    labels = batch.pop("labels")
    batch |= supervision(rows, labels, batch.pop("row_places"), ["sql"])
    criterion = SupervisedLoss(["sql"], torch.device("cpu"))
    with row_attention(model, longest=64), fast_path(model), criterion.attached(model):
        loss = criterion(model(**batch, use_cache=False), labels, supervised)
    found = torch.autograd.grad(loss, parameters)

    total = 0.0
    expected = [torch.zeros_like(each) for each in parameters]
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
        labels = torch.from_numpy(row.labels)
        alone = cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum")
        total += alone.item()
        gradients = torch.autograd.grad(alone / supervised, parameters)
        expected = [sum(pair) for pair in zip(expected, gradients, strict=True)]
    assert criterion.drain() == [pytest.approx(total, rel=1e-5)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_another_row_changes_not_a_bit_of_the_rest(changed: int) -> None:
    model = make_model().eval()
    others = list(ROWS)
    others[changed] = make_rows(LENGTHS, seed=1)[changed]
    with torch.no_grad():
        before, after = packed_logits(model, ROWS), packed_logits(model, others)
    for number in range(len(LENGTHS)):
        assert torch.equal(before[number], after[number]) == (number != changed)


def test_no_gradient_flows_from_one_row_to_another() -> None:
    model = make_model().eval()
    pack = collate_packed(ROWS)
    embedded = model.get_input_embeddings()(pack.pop("input_ids")).detach().requires_grad_()
    del pack["labels"], pack["row_places"]
    with row_attention(model, longest=max(LENGTHS)):
        logits = model(inputs_embeds=embedded, **pack, use_cache=False).logits[0]
    logits[LENGTHS[0] : LENGTHS[0] + LENGTHS[1]].sum().backward()
    assert embedded.grad is not None
    touched = embedded.grad[0].abs().sum(1) > 0
    rows = torch.repeat_interleave(torch.arange(5), torch.tensor(pack["row_lengths"]))
    assert touched[rows == 1].all()
    assert not touched[rows != 1].any()


def test_the_model_attends_as_before_afterwards() -> None:
    model = make_model()
    before = model.config._attn_implementation
    with row_attention(model, longest=4):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_a_sliding_window_shorter_than_a_row_is_refused() -> None:
    model = make_model()
    model.config.sliding_window = 16
    with row_attention(model, longest=16):
        pass
    with pytest.raises(ValueError, match=r"19 tokens.*use data\.max_length=16"):
        row_attention(model, longest=19).__enter__()
