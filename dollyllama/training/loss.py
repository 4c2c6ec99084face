"""The training loss: each supervised token of an optimizer step counts once, whatever its batch.

B rows, T tokens of a row, D hidden width, V vocabulary, N supervised tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, log_softmax, pad

from dollyllama.data.batches import MULTIPLE, padding_behind
from dollyllama.data.tokens import IGNORED, EncodedExample
from dollyllama.model.forwards import replaced_forwards

#: Logits at a time, and what a float32 of each takes is 64 MiB: of 32,000 tokens, some 520 places.
_LOGITS = 2**24


def supervision(
    rows: Sequence[EncodedExample],
    labels: Tensor,
    row_places: Tensor | None,
    sources: Sequence[str],
) -> dict[str, Tensor]:
    """Say which hidden states predict a supervised token, which one, and of which source.

    labels: of all rows, as the collators make them, so that no row's first token has one.
    row_places: where in the flattened batch what they label stands; None where that is in order.
    Returns predicting_N, places in the flattened batch, target_N, the tokens to be predicted, and
    source_N, indices in ``sources``.
    """
    flat = labels.flatten()
    predicted_N = (flat != IGNORED).nonzero().flatten()
    predicting_N = predicted_N - 1
    counts = torch.tensor([row.supervised for row in rows])
    source_B = torch.tensor([sources.index(row.example.source) for row in rows])
    return {
        "predicting": predicting_N if row_places is None else row_places[predicting_N],
        "target": flat[predicted_N],
        "source": source_B.repeat_interleave(counts),
    }


class SupervisedLoss:
    """Cross-entropy over supervised tokens alone, for Trainer's ``compute_loss_func``.

    While ``attached``, the head computes logits at the places that a batch names as
    ``predicting``, and nowhere else: of a padded batch of instructions that is often less than
    half, and the head is a large part of a small model. It does so a stretch of places after the
    other, each with its gradient, so that the logits of a long batch never exist at once (32,000
    tokens to choose from at 8,192 places are a GiB in float32). The head may be any module
    (quantised, wrapped in LoRA, tied). A model that changes what its head answers (scaled, capped
    logits) gets the logits of all places at once.

    sums: loss of each source's tokens since the last ``drain``, on the model's device.
    """

    def __init__(self, sources: Sequence[str], device: torch.device) -> None:
        self.sums = torch.zeros(len(sources), device=device)
        self._places: dict[str, Tensor] | None = None
        self._losses_N: Tensor | None = None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        head = model.get_output_embeddings()
        chunked = _answers_with_its_heads_logits(model, head)
        handle = model.register_forward_pre_hook(self._take_places, with_kwargs=True)
        try:
            with replaced_forwards(
                [(head, self._head_forward(head, head.forward, chunked=chunked))]
            ):
                yield
        finally:
            handle.remove()

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Sum of this micro-batch's token losses by the number of the whole step's tokens."""
        assert self._places is not None
        assert num_items_in_batch is not None
        if self._losses_N is None:
            losses_N = cross_entropy(
                outputs.logits[0].float(), self._places["target"], reduction="none"
            )
            total = losses_N.sum()
        else:
            losses_N, total = self._losses_N, outputs.logits.sum()
        self.sums.index_add_(0, self._places["source"], losses_N.detach())
        self._places = self._losses_N = None
        return total / num_items_in_batch

    def drain(self) -> list[float]:
        """Return the summed losses by source and begin anew."""
        sums: list[float] = self.sums.tolist()
        self.sums.zero_()
        return sums

    def _take_places(
        self, module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A pass that names no places (an evaluation's) gets all logits.
        self._places = {
            name: named.pop(name) for name in ("predicting", "target", "source") if name in named
        } or None
        return positional, named

    def _head_forward(
        self, head: Any, slow: Callable[[Tensor], Tensor], *, chunked: bool
    ) -> Callable[[Tensor], Tensor]:
        def forward(hidden_BTD: Tensor) -> Tensor:
            if self._places is None:
                return slow(hidden_BTD)
            hidden_ND = hidden_BTD.flatten(0, 1)[self._places["predicting"]]
            if not chunked:
                return slow(hidden_ND[None])
            parameters = [each for each in head.parameters() if each.requires_grad]
            size = max(_LOGITS // head.out_features // MULTIPLE, 1) * MULTIPLE
            total, self._losses_N = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                hidden_ND, self._places["target"], slow, size, *parameters
            )
            return total.view(1, 1, 1)  # type: ignore[no-any-return]

        return forward


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum and parts of the cross-entropy behind a head, whose gradients are made on the way.

    As in Liger Kernel's FusedLinearCrossEntropy (Hsu et al. 2024, arXiv:2410.10989, section 3.2),
    but for any head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        target_N: Tensor,
        head: Callable[[Tensor], Tensor],
        size: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        count = len(hidden_ND)
        padding = padding_behind(count)  # below, N counts it too
        hidden_ND, target_N = pad(hidden_ND, (0, 0, 0, padding)), pad(target_N, (0, padding))
        loss_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        gradients = [
            torch.zeros_like(each) if want else None
            for each, want in zip((hidden_ND, *parameters), wanted, strict=True)
        ]
        for start in range(0, len(hidden_ND), size):
            places = slice(start, start + size)
            hidden_CD = hidden_ND[places].detach().requires_grad_(wanted[0])
            with torch.enable_grad():
                logits_CV = head(hidden_CD[None])[0]
            target_C1 = target_N[places, None]
            gradient_CV = log_softmax(logits_CV.detach(), dim=-1, dtype=torch.float32)
            loss_N[places] = -gradient_CV.gather(1, target_C1).squeeze(1)
            gradient_CV.exp_()
            gradient_CV.scatter_add_(1, target_C1, -torch.ones_like(target_C1, dtype=torch.float32))
            gradient_CV[max(count - start, 0) :] = 0.0
            inputs = [each for each in (hidden_CD, *parameters) if each.requires_grad]
            made = iter(torch.autograd.grad(logits_CV, inputs, gradient_CV.to(logits_CV.dtype)))
            if gradients[0] is not None:
                gradients[0][places] = next(made)
            for gradient in gradients[1:]:
                if gradient is not None:
                    gradient.add_(next(made))
        if gradients[0] is not None:
            gradients[0] = gradients[0][:count]
        ctx.save_for_backward(*gradients)
        loss_N = loss_N[:count]
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum(), loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor, by_losses: Tensor) -> Any:
        hidden, *parameters = [
            None if each is None else each * by_total.to(each.dtype) for each in ctx.saved_tensors
        ]
        return hidden, None, None, None, *parameters


def _answers_with_its_heads_logits(model: Any, head: torch.nn.Module) -> bool:
    """Whether the model's logits are the head's own: some models scale or cap them."""
    seen: list[Tensor] = []
    was_training = model.training
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
            logits = model.eval()(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
        model.train(was_training)
    return torch.equal(logits, seen[-1])
