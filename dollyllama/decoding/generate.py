"""Answers to prompts: one function for every decoding strategy, with the same rules for stopping.

Shapes: B rows, T tokens so far (padding included), V vocabulary.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from dollyllama.config import Decoding, Strategy
from dollyllama.data.prompt import END_MARKER, Stretches, strip_end_marker
from dollyllama.data.tokens import encode_prompts
from dollyllama.decoding.cache import fresh_cache
from dollyllama.decoding.contrastive import contrastive_tokens
from dollyllama.decoding.penalty import adaptive, fixed
from dollyllama.decoding.stop_strings import safe_text
from dollyllama.decoding.stream import Stop, Stream, collect, follow, left_padded_positions


class StoppedBy(StrEnum):
    end_marker = enum.auto()
    eos = enum.auto()
    length = enum.auto()


class PromptTooLargeError(ValueError):
    """Memory does not suffice for one prompt alone. row: its place among the prompts."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote.

    text: without the end marker and what follows it, and white space at both ends; what continues
    a plain text keeps that at its beginning. tokens: how many it wrote, those of the marker and
    end-of-sequence included.
    """

    text: str
    tokens: int
    stopped_by: StoppedBy


@dataclass(frozen=True, slots=True)
class Piece:
    """What one row wrote next.

    text: safe to show, never part of an end marker; the pieces of a row put together are its
    completion's text. completion: comes with the row's last piece.
    """

    row: int
    text: str
    completion: Completion | None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Stretches],
    decoding: Decoding,
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answer whole prompts (template included, see ``build_prompt``), in their order.

    A row stops behind the end marker, at end-of-sequence, after ``max_new_tokens`` or where the
    model's positions end. Draws depend on ``seed`` and a prompt's place in ``prompts`` alone, not
    on its batch. When memory runs out, the batch is halved and the work goes on. progress: called
    with the number of prompts done. ValueError for a prompt that is empty or fills the model's
    positions, PromptTooLargeError for one that memory does not suffice for.
    """
    prompt_ids = _encode(model, tokenizer, prompts)
    leads = _leads(prompts, prompt_ids)
    ends = _ends(model, tokenizer)
    stop = _stop(tokenizer, ends)

    def attempt(rows: list[int]) -> list[list[int]] | None:
        """What each row wrote; None when memory ran out. What the attempt held is free then."""
        batch = [prompt_ids[row] for row in rows]
        try:
            stream = _start(
                model,
                *pad_left(batch, tokenizer.pad_token_id, model.device),
                decoding,
                seeds=[f"{seed}/{row}" for row in rows],
            )
            return collect(stream, limits=_limits(model, batch, decoding.max_new_tokens), stop=stop)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise PromptTooLargeError(
                    rows[0],
                    f"out of memory with one prompt of {len(batch[0])} tokens: shorten it or lower "
                    f"decoding.max_new_tokens={decoding.max_new_tokens}",
                ) from error
            return None

    # The longest first: if memory does not suffice, that shows at once.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompt_ids[row]), reverse=True)
    completions: dict[int, Completion] = {}
    with _evaluating(model):
        while waiting:
            rows = waiting[:batch_size]
            written = attempt(rows)
            if written is None:
                batch_size = len(rows) // 2
                continue
            for row, ids in zip(rows, written, strict=True):
                completions[row] = _completion(ids, tokenizer, ends, leads[row])
            waiting = waiting[len(rows) :]
            if progress is not None:
                progress(len(completions))
    return [completions[row] for row in range(len(prompts))]


def stream(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Stretches],
    decoding: Decoding,
    *,
    seed: int,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Piece]:
    """Answer whole prompts as one batch, token by token: the same answers as ``generate``'s.

    wanted: asked after each token whether a row is to go on; one that is not ends with a completion
    that its length stopped. Errors are those of ``generate``, and running out of memory is one.
    """
    prompt_ids = _encode(model, tokenizer, prompts)
    tokens = _start(
        model,
        *pad_left(prompt_ids, tokenizer.pad_token_id, model.device),
        decoding,
        seeds=[f"{seed}/{row}" for row in range(len(prompts))],
    )
    leads = _leads(prompts, prompt_ids)
    ends = _ends(model, tokenizer)
    finished = _stop(tokenizer, ends)
    running = list(range(len(prompts)))

    def stop(written: list[list[int]]) -> list[bool]:
        ended = finished(written)
        if wanted is None:
            return ended
        return [end or not wanted(row) for row, end in zip(running, ended, strict=True)]

    written: list[list[int]] = [[] for _ in prompts]
    shown = ["" for _ in prompts]
    limits = _limits(model, prompt_ids, decoding.max_new_tokens)
    with _evaluating(model):
        for step in follow(tokens, limits=limits, stop=stop, written=written):
            running = [row for row, last in step if not last]
            for row, last in step:
                ids, lead = written[row], leads[row]
                completion = _completion(ids, tokenizer, ends, lead) if last else None
                text = completion.text if completion else _showable(ids, tokenizer, lead)
                # A tokenizer may take back a character once it knows the next; so wait for it.
                if (len(text) > len(shown[row]) and text.startswith(shown[row])) or completion:
                    fresh, shown[row] = text[len(shown[row]) :], text
                    yield Piece(row, fresh, completion)


def _encode(model: Any, tokenizer: Any, prompts: Sequence[str | Stretches]) -> list[list[int]]:
    """Ids of prompts that leave room for an answer. ValueError for one that does not."""
    prompt_ids = encode_prompts(prompts, tokenizer) if prompts else []
    positions = model.config.max_position_embeddings
    for number, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"prompt {number} is empty: there is nothing to continue")
        if len(ids) >= positions:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens and the model {positions} positions: "
                "shorten it"
            )
    return prompt_ids


#: As many tokens as a character may be made of, and more.
_LEAD = 8


def _leads(prompts: Sequence[str | Stretches], prompt_ids: Sequence[list[int]]) -> list[list[int]]:
    """The ids that each text continues: the last ones of a plain text, none of a conversation."""
    return [
        ids[-_LEAD:] if isinstance(prompt, str) else []
        for prompt, ids in zip(prompts, prompt_ids, strict=True)
    ]


def _limits(model: Any, batch: Sequence[Sequence[int]], max_new_tokens: int) -> list[int]:
    """How many tokens each row may write: no more than positions are left."""
    positions = model.config.max_position_embeddings
    return [min(max_new_tokens, positions - len(ids)) for ids in batch]


def _start(
    model: Any, ids_BT: Tensor, mask_BT: Tensor, decoding: Decoding, *, seeds: Sequence[str]
) -> Stream:
    """The stream of tokens that a strategy writes. seeds: one for each row."""
    if decoding.strategy is Strategy.contrastive:
        assert decoding.alpha is not None
        assert decoding.k is not None
        return contrastive_tokens(model, ids_BT, mask_BT, fixed(decoding.alpha, decoding.k))
    if decoding.strategy is Strategy.adaptive_contrastive:
        assert decoding.q is not None
        return contrastive_tokens(model, ids_BT, mask_BT, adaptive(decoding.q))
    choose: Choose = greedy
    if decoding.strategy is not Strategy.greedy:
        assert decoding.temperature is not None
        top_p = 1.0 if decoding.top_p is None else decoding.top_p
        choose = nucleus(seeds, decoding.temperature, top_p)
    if decoding.repetition_penalty is not None:
        choose = penalised(choose, decoding.repetition_penalty, ids_BT, mask_BT)
    return next_tokens(model, ids_BT, mask_BT, choose)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def pad_left(
    batch: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT, int64, of rows that end at the same place."""
    longest = max(len(ids) for ids in batch)
    ids_BT = [[pad_token_id] * (longest - len(ids)) + list(ids) for ids in batch]
    mask_BT = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch]
    return torch.tensor(ids_BT, device=device), torch.tensor(mask_BT, device=device)


#: Logits of the running rows and their places in the batch -> their next tokens.
Choose = Callable[[Tensor, list[int]], Tensor]


@torch.no_grad()
def next_tokens(model: Any, ids_BT: Tensor, mask_BT: Tensor, choose: Choose) -> Stream:
    """Stream tokens that ``choose`` picks from the next token's logits alone (float32)."""
    cache = fresh_cache(model)
    position_BT = left_padded_positions(mask_BT)
    rows = list(range(len(ids_BT)))
    while True:
        out = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token_B = choose(out.logits[:, -1].float(), rows)
        keep = yield token_B
        position_BT = position_BT[:, -1:] + 1
        if keep is not None:
            cache.batch_select_indices(keep)
            token_B, mask_BT, position_BT = token_B[keep], mask_BT[keep], position_BT[keep]
            rows = [rows[place] for place in keep.tolist()]
        ids_BT = token_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)


def greedy(logits_BV: Tensor, rows: list[int]) -> Tensor:
    """The most probable token of each row, the smaller id of equally probable ones."""
    return logits_BV.argmax(dim=-1)


def nucleus(seeds: Sequence[str], temperature: float, top_p: float) -> Choose:
    """Draw from the smallest set of tokens whose probability reaches ``top_p``.

    Holtzman et al. 2020, arXiv:1904.09751. seeds: one for each row of the batch, which draws from a
    generator of its own.
    """
    generators = [random.Random(seed) for seed in seeds]

    def choose(logits_BV: Tensor, rows: list[int]) -> Tensor:
        scaled_BV, id_BV = (logits_BV / temperature).sort(dim=-1, descending=True, stable=True)
        reached_BV = scaled_BV.softmax(dim=-1).double().cumsum(dim=-1)
        # A token is in the nucleus when those before it do not reach top_p.
        size_B1 = (reached_BV[:, :-1] < top_p).sum(dim=-1, keepdim=True) + 1
        mass_B1 = reached_BV.gather(1, size_B1 - 1)
        draws = [[generators[row].random()] for row in rows]
        draw_B1 = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)
        place_B1 = torch.searchsorted(reached_BV, draw_B1 * mass_B1, right=True)
        return id_BV.gather(1, place_B1.clamp(max=size_B1 - 1))[:, 0]

    return choose


def penalised(choose: Choose, penalty: float, ids_BT: Tensor, mask_BT: Tensor) -> Choose:
    """Let ``choose`` see tokens that stand in the prompt or the answer as less probable.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1, as transformers does it: positive logits are
    divided by ``penalty``, negative ones multiplied. ids_BT, mask_BT: the prompts.
    """
    seen_BV: Tensor | None = None

    def choose_penalised(logits_BV: Tensor, rows: list[int]) -> Tensor:
        nonlocal seen_BV
        if seen_BV is None:
            shape = len(ids_BT), logits_BV.shape[-1]
            counts_BV = torch.zeros(shape, dtype=torch.long, device=logits_BV.device)
            seen_BV = counts_BV.scatter_add_(1, ids_BT, mask_BT.long()) > 0
        place_B = torch.tensor(rows, device=logits_BV.device)
        lowered_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
        token_B = choose(torch.where(seen_BV[place_B], lowered_BV, logits_BV), rows)
        seen_BV[place_B, token_B] = True
        return token_B

    return choose_penalised


#: The marker's characters, one token each at worst, and a character of four bytes behind it.
_TAIL = len(END_MARKER) + 4


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a sequence: the tokenizer's, and those in the model's own config."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


def _stop(tokenizer: Any, ends: frozenset[int]) -> Stop:
    """Finished: end-of-sequence, or the end marker and what shows that it is no longer word.

    The marker is looked for in text, since it may be cut into tokens in several ways. At its last
    letter nobody knows whether "### End" or "### Endpoints" is being written, so a row writes one
    token more; a model that was trained with the marker writes end-of-sequence there.
    """

    def stop(written: list[list[int]]) -> list[bool]:
        tails = _decode([ids[-_TAIL:] for ids in written], tokenizer)
        return [
            ids[-1] in ends
            # U+FFFD: the first bytes of a character that is not complete yet.
            or (not tail.endswith((END_MARKER, "\ufffd")) and strip_end_marker(tail)[1])
            for ids, tail in zip(written, tails, strict=True)
        ]

    return stop


def _text(ids: list[int], tokenizer: Any, lead: list[int]) -> str:
    """What was written behind ``lead``; without one, from its first word on.

    By themselves the first tokens lose the space before them: a SentencePiece tokenizer's own.
    """
    if not lead:
        return _decode([ids], tokenizer)[0].lstrip()
    before, whole = _decode([lead, lead + ids], tokenizer)
    return whole[len(before) :]


def _completion(
    ids: list[int], tokenizer: Any, ends: frozenset[int], lead: list[int]
) -> Completion:
    text, marked = strip_end_marker(_text(ids, tokenizer, lead))
    if marked:
        return Completion(text, len(ids), StoppedBy.end_marker)
    ended = ids[-1] in ends
    return Completion(text, len(ids), StoppedBy.eos if ended else StoppedBy.length)


def _showable(ids: list[int], tokenizer: Any, lead: list[int]) -> str:
    """The text so far, less an end that may become an end marker, or a character, or be stripped.

    ``Completion.text`` begins with it, whatever follows.
    """
    written = _text(ids, tokenizer, lead)
    text, marked = strip_end_marker(written)
    if marked and not written.endswith(END_MARKER):
        return text
    return safe_text(written.rstrip().rstrip("\ufffd"), (END_MARKER,)).rstrip()


def _decode(rows: list[list[int]], tokenizer: Any) -> list[str]:
    texts = tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return list(texts)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; torch's CPU allocator raises a plain RuntimeError."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "DefaultCPUAllocator: not enough memory" in str(error)
    )
