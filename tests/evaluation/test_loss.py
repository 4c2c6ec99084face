from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from dollyllama.data.example import Example
from dollyllama.data.tokens import EncodedExample
from dollyllama.evaluation.loss import average_losses, held_out_loss
from dollyllama.evaluation.metric import Metric, ratio_metric
from tests.decoding.build import make_llama, random_prompts


def encode(source: str, ids: list[int], masked: int) -> EncodedExample:
    return EncodedExample(Example(source, 0, "", "", "", ""), ids, ((masked, len(ids)),), False)


LENGTHS = [30, 4, 17, 9, 55, 2, 12]
EXAMPLES = [
    encode("sql" if row % 2 else "code", ids, masked)
    for row, (ids, masked) in enumerate(
        zip(random_prompts(LENGTHS), [10, 3, 0, 8, 20, 1, 5], strict=True)
    )
]


def plain_losses(model: Any, encoded: EncodedExample) -> list[float]:
    """One example, one token at a time, float64, from the definition."""
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    return [
        -float(logits[place - 1].log_softmax(dim=-1)[encoded.ids[place]])
        for place in range(max(encoded.spans[0][0], 1), len(encoded.ids))
    ]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_llama()


def run(model: Any, examples: list[EncodedExample] = EXAMPLES, batch_size: int = 3) -> list[Metric]:
    return average_losses(held_out_loss(model, examples, batch_size=batch_size))


def test_it_is_the_mean_over_supervised_tokens_of_each_source(model: LlamaForCausalLM) -> None:
    metrics = run(model)
    assert [metric.name for metric in metrics] == ["loss/all", "loss/code", "loss/sql"]
    for metric, sources in zip(metrics, (("code", "sql"), ("code",), ("sql",)), strict=True):
        losses = [plain_losses(model, each) for each in EXAMPLES if each.example.source in sources]
        tokens = [loss for each in losses for loss in each]
        assert metric.value == pytest.approx(sum(tokens) / len(tokens), rel=1e-5)
        sums, sizes = [math.fsum(each) for each in losses], [len(each) for each in losses]
        expected = ratio_metric(metric.name, sums, sizes)
        assert metric.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
        assert metric.n == len(losses)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_does_not_matter(model: LlamaForCausalLM, batch_size: int) -> None:
    for ours, expected in zip(run(model, batch_size=batch_size), run(model), strict=True):
        assert ours.value == pytest.approx(expected.value, rel=1e-6)
        assert ours.standard_error == pytest.approx(expected.standard_error, rel=1e-4)


def test_the_order_does_not_matter(model: LlamaForCausalLM) -> None:
    for ours, expected in zip(run(model, EXAMPLES[::-1]), run(model), strict=True):
        assert ours.value == pytest.approx(expected.value, rel=1e-6)


def test_every_example_has_its_own(model: LlamaForCausalLM) -> None:
    losses = held_out_loss(model, EXAMPLES, batch_size=3)
    for own, encoded in zip(losses, EXAMPLES, strict=True):
        plain = plain_losses(model, encoded)
        about = encoded.example
        assert (own.source, own.row, own.id) == (about.source, about.row, about.id)
        assert (own.loss, own.tokens) == (pytest.approx(math.fsum(plain), rel=1e-5), len(plain))


def test_masked_tokens_count_only_as_context(model: LlamaForCausalLM) -> None:
    ids = random_prompts([12])[0]
    whole, half = encode("a", ids, 0), encode("a", ids, 6)
    every = plain_losses(model, whole)
    assert run(model, [half])[0].value == pytest.approx(sum(every[5:]) / 6, rel=1e-5)
    assert run(model, [whole])[0].value == pytest.approx(sum(every) / 11, rel=1e-5)


def test_a_fair_die_costs_the_logarithm_of_its_faces() -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for metric in run(model):
        assert metric.value == pytest.approx(math.log(259))
        assert metric.standard_error == pytest.approx(0, abs=1e-6)


def test_only_the_logits_that_are_needed_are_computed() -> None:
    model = make_llama()
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    run(model, [encode("a", random_prompts([40])[0], 30), encode("a", random_prompts([38])[0], 35)])
    assert widths == [16]  # 10 + 3, and padding


def test_a_window_shorter_than_an_example_is_kept_to() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "sliding_window": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = MistralForCausalLM(MistralConfig(**shape, **heads)).eval()
    for own, encoded in zip(held_out_loss(model, EXAMPLES, batch_size=3), EXAMPLES, strict=True):
        assert own.loss == pytest.approx(math.fsum(plain_losses(model, encoded)), rel=1e-5)


def test_examples_without_a_supervised_token_are_left_out(model: LlamaForCausalLM) -> None:
    ids = random_prompts([5])[0]
    assert run(model, [encode("a", ids, 5)]) == []
    assert run(model, [encode("a", ids, 5), encode("a", ids, 4)])[0].n == 1
    assert run(model, []) == []


def test_neither_gradients_nor_dropout_nor_the_mode_are_touched() -> None:
    model = make_llama(attention_dropout=0.5)
    expected = run(model)
    model.train()
    assert run(model) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_counts_examples(model: LlamaForCausalLM) -> None:
    counts: list[int] = []
    held_out_loss(model, EXAMPLES, batch_size=3, progress=counts.append)
    assert counts == [3, 6, 7]
