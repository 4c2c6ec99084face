from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from dollyllama.config import Dtype, Quantization, QuantizationMethod, Upcast
from dollyllama.decoding import contrastive
from dollyllama.decoding.contrastive import (
    contrastive_search,
    largest_similarity,
    most_probable,
    pick,
)
from dollyllama.decoding.generate import pad_left
from dollyllama.embedded import MODEL
from dollyllama.model.load import load_base, load_tokenizer
from dollyllama.model.precision import upcast
from tests.decoding.build import PAD, make_llama, random_prompts


def plain_contrastive_search(
    model: Any, prompt: list[int], alpha: float, k: int, max_new_tokens: int, eos: int | None = None
) -> list[int]:
    """Su et al. 2022, eq. 5, as it reads: no cache, no batch, float64, one pass a candidate.

    A quantised model stays in its precision.
    """
    if not getattr(model, "is_quantized", False):
        model = model.double()
    ids = list(prompt)

    def states(sequence: list[int]) -> tuple[Any, Any]:
        with torch.no_grad():
            out = model(torch.tensor([sequence]), output_hidden_states=True)
        return out.logits[0, -1], out.hidden_states[-1][0]

    for _ in range(max_new_tokens):
        logits, context = states(ids)
        probability = logits.softmax(dim=-1)
        best, best_score = -1, -float("inf")
        for candidate in probability.argsort(descending=True)[:k].tolist():
            _, hidden = states([*ids, candidate])
            penalty = max(
                float(torch.cosine_similarity(hidden[-1], earlier, dim=0)) for earlier in context
            )
            score = (1 - alpha) * float(probability[candidate]) - alpha * penalty
            if score > best_score:
                best, best_score = candidate, score
        ids.append(best)
        if best == eos:
            break
    return ids


def greedy(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("alpha", "k", "length"),
    [(0.5, 4, 1), (0.5, 4, 7), (0.2, 8, 23), (0.6, 2, 40), (0.9, 8, 5), (1.0, 4, 12)],
)
def test_the_tokens_are_those_of_the_equation(
    alpha: float, k: int, length: int, attention: str
) -> None:
    model = make_llama(seed=length, attn_implementation=attention)
    (prompt,) = random_prompts([length], seed=length)
    ours = contrastive_search(model, torch.tensor([prompt]), alpha=alpha, k=k, max_new_tokens=16)
    assert ours[0].tolist() == plain_contrastive_search(model, prompt, alpha, k, 16)


def test_alpha_matters(llama: LlamaForCausalLM) -> None:
    prompt = torch.tensor(random_prompts([9]))
    runs = {
        tuple(contrastive_search(llama, prompt, alpha=alpha, max_new_tokens=24)[0].tolist())
        for alpha in (0.0, 0.5, 1.0)
    }
    assert len(runs) == 3


@pytest.mark.parametrize(("alpha", "k"), [(0.0, 1), (0.0, 4), (0.0, 8), (0.5, 1), (1.0, 1)])
def test_alpha_0_and_k_1_are_greedy(llama: LlamaForCausalLM, alpha: float, k: int) -> None:
    for prompt in random_prompts([1, 6, 30]):
        ids = torch.tensor([prompt])
        ours = contrastive_search(llama, ids, alpha=alpha, k=k, max_new_tokens=20)
        assert ours[0].tolist() == greedy(llama, prompt, 20)


def test_a_left_padded_batch_writes_what_its_rows_write_alone(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([3, 17, 1, 30, 8])
    ids, mask = pad_left(prompts, PAD, torch.device("cpu"))
    together = contrastive_search(llama, ids, mask, alpha=0.6, k=4, max_new_tokens=20)
    for row, prompt in enumerate(prompts):
        alone = contrastive_search(llama, torch.tensor([prompt]), alpha=0.6, k=4, max_new_tokens=20)
        assert together[row, ids.shape[1] - len(prompt) :].tolist() == alone[0].tolist()


def test_what_the_padding_holds_does_not_matter(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([3, 12])
    runs = []
    for filler in (PAD, 77):
        ids, mask = pad_left(prompts, filler, torch.device("cpu"))
        runs.append(contrastive_search(llama, ids, mask, max_new_tokens=12)[:, 12:].tolist())
    assert runs[0] == runs[1]


def test_rows_end_at_end_of_sequence_and_the_others_go_on(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([5, 9, 14])
    free = [plain_contrastive_search(make_llama(), prompt, 0.5, 4, 20) for prompt in prompts]
    written = [ids[len(prompt) :] for ids, prompt in zip(free, prompts, strict=True)]
    end = written[1][4]  # a token of the second row's own plays the end-of-sequence
    ids, mask = pad_left(prompts, PAD, torch.device("cpu"))
    ended = contrastive_search(llama, ids, mask, max_new_tokens=20, eos_token_id=end)
    for row, tokens in enumerate(written):
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        behind = ended[row, ids.shape[1] :].tolist()
        assert behind[:stop] == tokens[:stop]
        assert set(behind[stop:]) <= {end}


def test_a_stop_rule_sees_what_the_running_rows_wrote(llama: LlamaForCausalLM) -> None:
    prompts = random_prompts([5, 9])
    ids, mask = pad_left(prompts, PAD, torch.device("cpu"))
    free = contrastive_search(llama, ids, mask, max_new_tokens=9)[:, 9:].tolist()
    seen: list[list[list[int]]] = []

    def stop(written: list[list[int]]) -> list[bool]:
        seen.append([list(row) for row in written])
        return [len(row) == 3 and row == free[0][:3] for row in written]

    stopped = contrastive_search(llama, ids, mask, max_new_tokens=9, stop=stop)[:, 9:].tolist()
    assert stopped == [free[0][:3] + [0] * 6, free[1]]
    assert [len(rows) for rows in seen] == [2] * 3 + [1] * 6
    assert seen[-1] == [free[1]]


def test_it_serves_an_adapter(llama: LlamaForCausalLM) -> None:
    model = get_peft_model(
        make_llama(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    (prompt,) = random_prompts([11])
    ours = contrastive_search(model, torch.tensor([prompt]), max_new_tokens=16)[0].tolist()
    assert ours == plain_contrastive_search(model, prompt, 0.5, 4, 16)
    base = contrastive_search(llama, torch.tensor([prompt]), max_new_tokens=16)[0].tolist()
    assert ours != base


def test_it_serves_an_adapter_on_an_nf4_base_alone_and_in_a_batch() -> None:
    tokenizer = load_tokenizer("embedded", None)
    base = load_base(
        str(MODEL),
        None,
        pickled_weights=False,
        dtype=Dtype.float32,
        quantization=Quantization(
            method=QuantizationMethod.nf4, double=True, compute_dtype=Dtype.float32
        ),
        device=torch.device("cpu"),
        tokenizer=tokenizer,
    )
    torch.manual_seed(0)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    prompts = tokenizer(["List the names of all", "A talk:\n"]).input_ids
    ids, mask = pad_left(prompts, tokenizer.pad_token_id, torch.device("cpu"))
    ours = contrastive_search(model, ids, mask, alpha=0.6, k=4, max_new_tokens=12)
    for row, prompt in enumerate(prompts):
        expected = plain_contrastive_search(model, prompt, 0.6, 4, 12)
        assert ours[row, ids.shape[1] - len(prompt) :].tolist() == expected


def test_it_serves_half_precision() -> None:
    ids = torch.tensor(random_prompts([11]))
    written = contrastive_search(make_llama().bfloat16(), ids, max_new_tokens=8)
    assert written.shape == (1, 19)


def test_one_pass_a_token_after_the_prompt() -> None:
    model = make_llama()
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    contrastive_search(model, torch.tensor(random_prompts([11])), k=4, max_new_tokens=6)
    assert lengths == [11, 4, 4, 4, 4, 4, 4]


def choose(probability: Any, hidden: Any, context: Any, seen: Any, alpha: float) -> list[int]:
    penalty = largest_similarity(hidden, context, seen)
    k = torch.tensor([probability.shape[1]])
    return pick(probability, penalty, k, torch.tensor([alpha]).double()).tolist()


def test_of_equal_scores_the_more_probable_candidate_wins() -> None:
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    context = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    seen = torch.tensor([[True, True]])
    probability = torch.tensor([[0.5, 0.25, 0.25]])
    assert choose(probability, hidden, context, seen, alpha=1.0) == [0]
    # Hand-worked: the second is orthogonal to what is seen, 0.5 * 0.25 > 0.5 * 0.5 - 0.5 * 1.
    only_first = torch.tensor([[True, False]])
    assert choose(probability, hidden, context, only_first, alpha=0.5) == [1]
    # 0.9 * 0.5 - 0.1 = 0.35 > 0.9 * 0.25 = 0.225.
    assert choose(probability, hidden, context, only_first, alpha=0.1) == [0]


def test_a_row_picks_among_its_own_k_and_by_its_own_alpha() -> None:
    probability = torch.tensor([[0.4, 0.3, 0.2]] * 3)
    penalty = torch.tensor([[0.9, 0.5, 0.1]] * 3)
    k = torch.tensor([3, 2, 3])
    alpha = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert pick(probability, penalty, k, alpha).tolist() == [2, 1, 0]


def test_of_equally_probable_tokens_the_smaller_id_comes_first() -> None:
    rows = torch.randint(0, 4, (200, 50), generator=torch.Generator().manual_seed(1)).float()
    for k in (1, 3, 12, 13, 50):
        expected = [
            sorted(range(50), key=lambda token: (-row[token], token))[:k] for row in rows.tolist()
        ]
        assert most_probable(rows, k).tolist() == expected
    distinct = torch.randn(200, 50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(most_probable(distinct, 7), distinct.topk(7).indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"alpha in \[0, 1\]"),
        ({"k": 0}, "k >= 1"),
        ({"k": 300}, "k=300 candidates, but the vocabulary has 259"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(
    llama: LlamaForCausalLM, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive_search(llama, torch.tensor([[5]]), **({"max_new_tokens": 4} | arguments))


def test_an_empty_prompt_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        contrastive_search(llama, torch.empty(1, 0, dtype=torch.long), max_new_tokens=4)


def test_a_cache_that_forgets_is_refused_by_name() -> None:
    config = MistralConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        sliding_window=8,
    )
    model = MistralForCausalLM(config).eval()
    with pytest.raises(ValueError, match="MistralForCausalLM wants DynamicSlidingWindowLayer"):
        contrastive_search(model, torch.tensor([[5]]), max_new_tokens=4)


def test_a_pretrained_model_writes_what_the_equation_says(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = ["Once upon a time", "The dog saw a big red ball and"]
    batch = [tokenizer(prompt).input_ids for prompt in prompts]
    ids, mask = pad_left(batch, 0, torch.device("cpu"))
    ours = contrastive_search(model, ids, mask, alpha=0.5, k=4, max_new_tokens=40)
    for row, prompt in enumerate(batch):
        expected = plain_contrastive_search(model, prompt, 0.5, 4, 40)
        assert ours[row, ids.shape[1] - len(prompt) :].tolist() == expected


def test_the_head_reads_one_candidate_a_row_and_is_left_as_it_was() -> None:
    model = make_llama()
    shapes: list[tuple[int, ...]] = []
    head = model.get_output_embeddings()
    spy = head.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    ids, mask = pad_left(random_prompts([7, 7, 4]), PAD, model.device)
    contrastive_search(model, ids, mask, alpha=0.6, k=4, max_new_tokens=5)
    assert shapes == [(3, 1, 32)] * 6  # the prompt, and a step for each token
    spy.remove()
    assert not head._forward_pre_hooks


def test_candidates_are_compared_before_the_head_rounds_their_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_llama().bfloat16()
    upcast(model, Upcast.norms)
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)
    rounded: list[bool] = []

    def record(states: torch.Tensor, dim: int) -> torch.Tensor:
        rounded.append(torch.equal(states, states.bfloat16().float()))
        return torch.nn.functional.normalize(states, dim=dim)

    monkeypatch.setattr(contrastive, "normalize", record)
    (prompt,) = random_prompts([9])
    contrastive_search(model, torch.tensor([prompt]), alpha=0.6, k=4, max_new_tokens=4)
    assert rounded == [False] * 6


def test_a_head_that_reads_other_states_is_refused_by_name() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=259, intermediate_size=64, is_decoder=True, **sizes)
    model = BertLMHeadModel(config).eval()
    (prompt,) = random_prompts([9])
    with pytest.raises(ValueError, match="BertLMHeadModel reads others than the last layer's"):
        contrastive_search(model, torch.tensor([prompt]), alpha=0.6, k=4, max_new_tokens=2)
