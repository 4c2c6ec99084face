from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from dollyllama.config import Strategy
from dollyllama.data.prompt import Stretch, format_response
from dollyllama.data.tokens import encode_responses
from dollyllama.decoding import generate as module
from dollyllama.decoding.contrastive import contrastive_search
from dollyllama.decoding.generate import (
    Completion,
    StoppedBy,
    generate,
    greedy,
    nucleus,
    penalised,
    stream,
)
from tests.decoding.build import EOS, Scripted, make_decoding, make_llama, make_tokenizer

STRATEGIES: dict[Strategy, dict[str, Any]] = {
    Strategy.greedy: {},
    Strategy.temperature: {"temperature": 1.5},
    Strategy.nucleus: {"temperature": 1.5, "top_p": 0.95},
    Strategy.contrastive: {"alpha": 0.5, "k": 4},
    Strategy.adaptive_contrastive: {"q": 2.0},
}
PROMPTS = ["Say no.", "a", "What is the third of these?", "??", "A rather longer prompt, of words."]


def run(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] = PROMPTS,
    *,
    strategy: Strategy = Strategy.greedy,
    max_new_tokens: int = 12,
    batch_size: int = 4,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    return generate(
        model,
        tokenizer,
        prompts,
        make_decoding(strategy, max_new_tokens, **STRATEGIES[strategy]),
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


def scripted(texts: dict[str, str], **options: Any) -> tuple[Scripted, PreTrainedTokenizerFast]:
    """A model that writes these texts, byte by byte, and then end-of-sequence."""
    tokenizer = make_tokenizer()
    script = {
        prompt: tokenizer(text, add_special_tokens=False).input_ids
        for prompt, text in texts.items()
    }
    return Scripted(script, tokenizer, **options), tokenizer


def write(text: str, max_new_tokens: int = 200) -> Completion:
    model, tokenizer = scripted({"p": text})
    return run(model, tokenizer, ["p"], max_new_tokens=max_new_tokens)[0]


# --- stopping -----------------------------------------------------------------------------------


def test_the_end_marker_stops_and_is_no_part_of_the_text() -> None:
    assert write("SELECT 1\n### End") == Completion("SELECT 1", 17, StoppedBy.end_marker)


def test_what_follows_the_end_marker_is_not_written() -> None:
    stopped = write("yes\n### End\n\n### Instruction:\nSay more.")
    assert stopped == Completion("yes", 12, StoppedBy.end_marker)


def test_end_of_sequence_stops() -> None:
    assert write("no marker") == Completion("no marker", 10, StoppedBy.eos)


def test_another_token_that_the_model_ends_with_stops() -> None:
    """As of chat models, which end a turn with another token than a text."""
    model, tokenizer = scripted({"p": "One. Two."})
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")]
    )
    (completion,) = run(model, tokenizer, ["p"], max_new_tokens=20)
    assert (completion.text, completion.stopped_by) == ("One.", StoppedBy.eos)


def test_the_length_limit_stops() -> None:
    assert write("0123456789", 5) == Completion("01234", 5, StoppedBy.length)


def test_a_text_of_exactly_the_limit_stopped_by_length_unless_its_end_is_written() -> None:
    assert write("01234", 5).stopped_by is StoppedBy.length
    assert write("01234", 6).stopped_by is StoppedBy.eos
    assert write("0\n### End", 9) == Completion("0", 9, StoppedBy.end_marker)
    assert write("0\n### End", 8) == Completion("0\n### En", 8, StoppedBy.length)


@pytest.mark.parametrize(
    "heading", ["### Ending", "### Endpoints\nGET /", "## End", "###End", "### end", "### Endé."]
)
def test_what_only_looks_like_the_end_marker_does_not_stop(heading: str) -> None:
    text = f"A\n{heading}\nB"
    assert write(text) == Completion(text, len(text.encode()) + 1, StoppedBy.eos)


def test_an_answer_may_be_empty() -> None:
    assert write("") == Completion("", 1, StoppedBy.eos)
    assert write("\n### End") == Completion("", 9, StoppedBy.end_marker)


def test_the_marker_stops_however_it_is_cut_into_tokens(shared: Path) -> None:
    for folder in ("models/stories260K", "tokenizers/open_llama_v2"):
        tokenizer = AutoTokenizer.from_pretrained(shared / folder)
        stop = module._stop(tokenizer, frozenset({tokenizer.eos_token_id}))
        for text in ("SELECT 1", "It is\n\n - a list\n - of two.", "x", "日本 ### Ends?"):
            (ids,) = encode_responses([(Stretch(format_response(text)),)], tokenizer)
            ids = [*ids, tokenizer.eos_token_id]
            places = [place for place in range(1, len(ids) + 1) if stop([ids[:place]])[0]]
            assert places == [len(ids)], (folder, text)
            going_on = [*ids[:-1], *tokenizer("\nmore", add_special_tokens=False).input_ids]
            assert any(stop([going_on[:place]])[0] for place in range(len(ids), len(ids) + 3)), (
                folder,
                text,
            )
        pieces = [tokenizer.convert_tokens_to_ids(f"<0x{ord(char):02X}>") for char in "### End\n"]
        assert stop([pieces]) == [True]
        assert stop([pieces[:-1]]) == [False]


def test_the_answer_that_training_teaches_comes_back(shared: Path) -> None:
    for folder in ("models/stories260K", "tokenizers/open_llama_v2"):
        tokenizer = AutoTokenizer.from_pretrained(shared / folder)
        for text in ("SELECT a FROM b", "Two\nlines: 1, 2.", "naïve — ≥ 3"):
            (ids,) = encode_responses([(Stretch(format_response(text)),)], tokenizer)
            end = tokenizer.eos_token_id
            completion = module._completion([*ids, end], tokenizer, frozenset({end}), [])
            assert completion == Completion(text, len(ids) + 1, StoppedBy.end_marker)


@pytest.mark.parametrize("folder", ["models/stories260K", "tokenizers/open_llama_v2"])
def test_what_continues_a_text_begins_where_the_text_ends(shared: Path, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / folder)
    for before, behind in (
        ("SELECT name FROM", " my_bank"),
        ("Once upon a ti", "me there was"),
        ("def f():", "\n    return 1"),
        ("日本 — ≥", " 3"),
        ("日本 — ≥", "日本"),
    ):
        lead = tokenizer(before).input_ids[-8:]
        (ids,) = encode_responses([(Stretch(behind),)], tokenizer)
        for place in range(1, len(ids) + 1):
            written = ids[:place]
            text = module._completion(written, tokenizer, frozenset(), lead).text
            assert behind.startswith(text.rstrip("\ufffd"))
            assert text.startswith(module._showable(written, tokenizer, lead))
        assert text == behind


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", Strategy)
def test_a_batch_writes_what_its_prompts_write_alone(
    llama: LlamaForCausalLM, byte_tokenizer: Any, strategy: Strategy
) -> None:
    single = run(llama, byte_tokenizer, strategy=strategy, batch_size=1)
    for batch_size in (2, 5):
        assert run(llama, byte_tokenizer, strategy=strategy, batch_size=batch_size) == single
    assert len({completion.text for completion in single}) == len(PROMPTS)


# Nucleus aside, whose draws depend on a prompt's place.
@pytest.mark.parametrize("strategy", [Strategy.greedy, Strategy.contrastive])
def test_a_prompts_answer_is_at_its_place(
    llama: LlamaForCausalLM, byte_tokenizer: Any, strategy: Strategy
) -> None:
    forward = run(llama, byte_tokenizer, strategy=strategy)
    backward = run(llama, byte_tokenizer, PROMPTS[::-1], strategy=strategy)
    assert forward == backward[::-1]


def test_rows_that_finish_leave_the_batch() -> None:
    texts = {"pqr": "0123456789", "pq": "0", "p": "012", "s": "### End."}
    model, tokenizer = scripted(texts)
    completions = run(model, tokenizer, list(texts))
    assert [completion.text for completion in completions] == ["0123456789", "0", "012", ""]
    # Prompts of 4 bytes with <s>; "0" and the end are 2 tokens, "012" 4, the marker and "." 8.
    expected = [(4, 4)] + [(4, 1)] + [(3, 1)] * 2 + [(2, 1)] * 4 + [(1, 1)] * 3
    assert model.calls == expected


def test_batches_are_of_like_length_and_the_longest_come_first() -> None:
    texts = {"p" * length: "ok" for length in (3, 30, 4, 31, 2, 32)}
    model, tokenizer = scripted(texts)
    run(model, tokenizer, list(texts), batch_size=2)
    assert [shape for shape in model.calls if shape[1] > 1] == [(2, 33), (2, 31), (2, 4)]


def test_progress_counts_prompts(llama: LlamaForCausalLM, byte_tokenizer: Any) -> None:
    counts: list[int] = []
    run(llama, byte_tokenizer, batch_size=2, progress=counts.append)
    assert counts == [2, 4, 5]


def test_no_prompts_give_no_completions(llama: LlamaForCausalLM, byte_tokenizer: Any) -> None:
    assert run(llama, byte_tokenizer, []) == []


def test_the_model_trains_on_as_before(byte_tokenizer: Any) -> None:
    model = make_llama(attention_dropout=0.5)
    evaluated = run(model, byte_tokenizer)
    model.train()
    assert run(model, byte_tokenizer) == evaluated
    assert model.training
    assert all(each.training for each in model.modules())


@pytest.mark.parametrize("strategy", [Strategy.greedy, Strategy.contrastive])
def test_greedy_and_contrastive_are_those_of_their_references(
    llama: LlamaForCausalLM, byte_tokenizer: Any, strategy: Strategy
) -> None:
    prompt = "Name a word."
    ids = byte_tokenizer(prompt, return_tensors="pt").input_ids
    if strategy is Strategy.greedy:
        with torch.no_grad():
            for _ in range(12):
                ids = torch.cat([ids, llama(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    else:
        ids = contrastive_search(llama, ids, alpha=0.5, k=4, max_new_tokens=12)
    expected = byte_tokenizer.decode(ids[0, -12:], skip_special_tokens=True).strip()
    assert run(llama, byte_tokenizer, [prompt], strategy=strategy)[0].text == expected


# --- the model's positions ----------------------------------------------------------------------


def test_a_row_ends_where_the_positions_end() -> None:
    model, tokenizer = scripted({"pppp": "0123456789", "p": "0123456789"}, positions=8)
    completions = run(model, tokenizer, ["pppp", "p"])
    assert completions == [
        Completion("012", 3, StoppedBy.length),
        Completion("012345", 6, StoppedBy.length),
    ]


@pytest.mark.parametrize("strategy", Strategy)
def test_no_strategy_goes_beyond_the_positions(strategy: Strategy, byte_tokenizer: Any) -> None:
    model = make_llama(positions=16)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    run(model, byte_tokenizer, ["p" * 10, "p"], strategy=strategy, max_new_tokens=99)
    assert max(seen) <= 15


def test_a_prompt_that_fills_the_positions_is_refused() -> None:
    model, tokenizer = scripted({"p": "0"}, positions=8)
    message = "prompt 1 has 9 tokens and the model 8 positions: shorten it"
    with pytest.raises(ValueError, match=message):
        run(model, tokenizer, ["p", "p" * 8])


def test_a_prompt_without_tokens_is_refused(llama: LlamaForCausalLM) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        run(llama, tokenizer, ["p", ""])


# --- nucleus ------------------------------------------------------------------------------------


def test_nucleus_depends_on_the_seed_and_on_nothing_else(
    llama: LlamaForCausalLM, byte_tokenizer: Any
) -> None:
    def draw(seed: int) -> list[Completion]:
        return run(llama, byte_tokenizer, ["Draw."] * 4, strategy=Strategy.nucleus, seed=seed)

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert draw(0) == first
    assert draw(1) != first
    assert len({completion.text for completion in first}) == 4


def test_a_rows_draws_stay_its_own_when_others_leave_the_batch(byte_tokenizer: Any) -> None:
    model = make_llama()
    # An end of sequence that is drawn now and then: rows finish at different times.
    model.lm_head.register_forward_hook(
        lambda _, __, logits: logits.index_copy(
            -1, torch.tensor([EOS]), logits.amax(dim=-1, keepdim=True)
        )
    )
    prompts = [f"Draw {number}." for number in range(8)]
    options: dict[str, Any] = {"strategy": Strategy.nucleus, "max_new_tokens": 30}
    together = run(model, byte_tokenizer, prompts, batch_size=8, **options)
    assert len({completion.tokens for completion in together}) > 3
    assert together == run(model, byte_tokenizer, prompts, batch_size=1, **options)


def test_nucleus_draws_from_the_smallest_set_that_reaches_top_p() -> None:
    # 0.5 does not reach 0.7 and 0.5 + 0.3 does: tokens 3 and 1, as 5 to 3.
    probability = torch.tensor([[0.15, 0.3, 0.05, 0.5]])
    choose = nucleus(["seed"], 1.0, 0.7)
    counts = Counter(int(choose(probability.log(), [0])) for _ in range(4000))
    assert set(counts) == {1, 3}
    error = math.sqrt(4000 * 0.625 * 0.375)
    assert abs(counts[3] - 4000 * 0.625) < 4 * error


def test_a_nucleus_that_one_token_fills_is_greedy() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    choose = nucleus([str(row) for row in range(50)], 1.0, 1e-9)
    assert torch.equal(choose(logits, list(range(50))), logits.argmax(dim=-1))


def test_top_p_1_draws_from_all_tokens_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    choose = nucleus(["seed"], 2.0, 1.0)
    counts = Counter(int(choose(logits, [0])) for _ in range(6000))
    weights = [math.exp(logit / 2) for logit in (0, 1, 2)]
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[token] - 6000 * share) < 4 * math.sqrt(6000 * share * (1 - share))


# --- memory -------------------------------------------------------------------------------------


class Exhausted:
    """Raises on every pass with more than so many rows."""

    def __init__(self, model: LlamaForCausalLM, most: int, error: Exception) -> None:
        self.model, self.most, self.error = model, most, error
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *, input_ids: Any, **rest: Any) -> Any:
        if input_ids.shape[1] > 1:
            self.sizes.append(len(input_ids))
        if len(input_ids) > self.most:
            raise self.error
        return self.model(input_ids=input_ids, **rest)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to …"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_when_memory_runs_out_the_batch_is_halved_and_the_work_goes_on(
    llama: LlamaForCausalLM, byte_tokenizer: Any, error: Exception
) -> None:
    model = Exhausted(llama, 2, error)
    assert run(model, byte_tokenizer, batch_size=5) == run(llama, byte_tokenizer)
    assert model.sizes == [5, 2, 2, 1]


def test_when_one_prompt_is_too_many_it_says_so(
    llama: LlamaForCausalLM, byte_tokenizer: Any
) -> None:
    with pytest.raises(
        ValueError, match=r"one prompt of 34 tokens: shorten it or lower decoding.max_new_tokens"
    ):
        run(Exhausted(llama, 0, OUT_OF_MEMORY[0]), byte_tokenizer)


def test_other_errors_are_not_taken_for_a_want_of_memory(
    llama: LlamaForCausalLM, byte_tokenizer: Any
) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run(Exhausted(llama, 0, RuntimeError("shapes cannot be multiplied")), byte_tokenizer)


def test_the_scripted_models_end_is_the_tokenizers(byte_tokenizer: Any) -> None:
    assert byte_tokenizer.eos_token_id == EOS


# --- repetition penalty -------------------------------------------------------------------------


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, 50, (4, 12), generator=generator)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)
    ours = penalised(greedy, 1.7, ids_BT, torch.ones_like(ids_BT))
    for _ in range(10):
        logits_BV = torch.randn(4, 50, generator=generator)
        token_B = theirs(ids_BT, logits_BV.clone()).argmax(dim=-1)
        assert torch.equal(ours(logits_BV, [0, 1, 2, 3]), token_B)
        ids_BT = torch.cat([ids_BT, token_B[:, None]], dim=1)


def test_padding_is_not_penalised() -> None:
    ids_BT, mask_BT = torch.tensor([[2, 2, 5]]), torch.tensor([[0, 0, 1]])
    logits_BV = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0, 4.0]])
    assert penalised(greedy, 2.0, ids_BT, mask_BT)(logits_BV, [0]).tolist() == [2]


def test_a_penalty_of_one_is_none(
    llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ["One.", "Another one."]

    def answers(penalty: float | None) -> list[Completion]:
        decoding = make_decoding(max_new_tokens=30, repetition_penalty=penalty)
        return generate(llama, byte_tokenizer, prompts, decoding, batch_size=2, seed=0)

    assert answers(1.0) == answers(None) != answers(9.0)


# --- streaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", Strategy)
def test_streamed_pieces_are_the_answers(
    llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, strategy: Strategy
) -> None:
    prompts = ["One.", "Another one.", "x" * 40]
    decoding = make_decoding(strategy, 30, **STRATEGIES[strategy])
    expected = generate(llama, byte_tokenizer, prompts, decoding, batch_size=8, seed=3)
    texts = ["", "", ""]
    completions: dict[int, Completion] = {}
    for piece in stream(llama, byte_tokenizer, prompts, decoding, seed=3):
        assert piece.row not in completions
        texts[piece.row] += piece.text
        if piece.completion is not None:
            completions[piece.row] = piece.completion
    assert [completions[row] for row in range(3)] == expected
    assert texts == [each.text for each in expected]


@pytest.mark.parametrize(
    "written",
    [
        "Four.\n### End",
        "Four.\n### End of it\n### End",
        "Four.\n### Endpoints\nare here",
        "# a\n## b\n### E c\n### End",
        "  spaces  \n\n in between  \n### End\nmore",
        "naïve €  ### End",
        "",
        "### End",
        "#",
    ],
)
def test_no_piece_shows_what_the_answer_does_not_hold(
    byte_tokenizer: PreTrainedTokenizerFast, written: str
) -> None:
    ids = byte_tokenizer(written, add_special_tokens=False).input_ids
    model = Scripted({"q": ids}, byte_tokenizer).eval()
    decoding = make_decoding(max_new_tokens=60)
    pieces = list(stream(model, byte_tokenizer, ["q"], decoding, seed=0))
    (expected,) = generate(model, byte_tokenizer, ["q"], decoding, batch_size=1, seed=0)
    assert pieces[-1].completion == expected
    assert "".join(piece.text for piece in pieces) == expected.text
    assert len(expected.text) < 5 or len(pieces) > 3


def test_a_row_that_is_no_longer_wanted_ends(
    llama: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    decoding = make_decoding(max_new_tokens=30)
    prompts = ["One.", "Another one."]
    (_, alone) = generate(llama, byte_tokenizer, prompts, decoding, batch_size=2, seed=0)
    done: dict[int, Completion] = {}
    wanted = (False, True).__getitem__
    for piece in stream(llama, byte_tokenizer, prompts, decoding, seed=0, wanted=wanted):
        if piece.completion is not None:
            done[piece.row] = piece.completion
    assert done[0].tokens == 1
    assert done[1] == alone
