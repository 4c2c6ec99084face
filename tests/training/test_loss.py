"""The loss in stretches is cross-entropy, with its gradients, for any number of places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dollyllama.training.loss import SupervisedLoss, supervision
from tests.training.build import make_model, make_rows


@pytest.mark.parametrize("supervised", [1, 2, 15, 16, 17, 47])
def test_any_number_of_places_gives_the_loss_and_the_gradients_of_cross_entropy(
    supervised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dollyllama.training.loss._LOGITS", 20 * 99)  # stretches of 16 places
    (row,) = make_rows([48])
    row = replace(row, spans=((48 - supervised, 48),))
    model = make_model().double()
    head = model.get_output_embeddings()
    # What padding would leave a trace in.
    head.bias = nn.Parameter(torch.randn(head.out_features, dtype=torch.float64))
    head.requires_grad_()
    ids_BT = torch.tensor([row.ids])
    labels_BT = torch.from_numpy(row.labels)[None]
    wanted = [each for each in model.parameters() if each.requires_grad]

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, wanted))

    logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0]
    plain = cross_entropy(logits_TV[:-1], labels_BT[0, 1:], reduction="sum") / supervised
    expected = gradients(plain)

    criterion = SupervisedLoss(["a"], torch.device("cpu"))
    named = supervision([row], labels_BT, None, [row.example.source])
    with criterion.attached(model):
        outputs = model(input_ids=ids_BT, use_cache=False, **named)
        found = criterion(outputs, labels_BT, supervised)
    torch.testing.assert_close(found, plain.to(found.dtype), rtol=1e-5, atol=0)
    assert criterion.drain()[0] == pytest.approx(plain.item() * supervised, rel=1e-5)
    for mine, theirs in zip(gradients(found), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
