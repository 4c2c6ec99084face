"""Conversations to ids and labels: where the loss counts and what truncation may cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dollyllama.config import LossOn, Overlong, PromptFormat, Role
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import Stretch, Stretches, build_conversation, text_of

#: The label that cross-entropy ignores.
IGNORED = -100

#: A stretch [start, stop) of a row's ids.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as the model sees it.

    ids: prompt, response, end marker and end-of-sequence, at most ``max_length`` of them; any
    sequence of int, also a NumPy array. spans: the stretches of ids that carry loss, ascending and
    apart. truncated: whether the end is missing.
    """

    example: Example
    ids: Sequence[int] | NDArray[np.integer[Any]]
    spans: tuple[Span, ...]
    truncated: bool

    @property
    def labels(self) -> NDArray[np.int64]:
        """The ids, with IGNORED in place of those without loss and of the first.

        Nothing predicts the first token, so it never carries loss.
        """
        labels = np.full(len(self.ids), IGNORED)
        for start, stop in self.spans:
            labels[start:stop] = self.ids[start:stop]
        labels[:1] = IGNORED
        return labels

    @property
    def supervised(self) -> int:
        """How many tokens carry loss; the first never does."""
        return _supervised(self.spans)


def _supervised(spans: Sequence[Span]) -> int:
    return sum(max(stop - max(start, 1), 0) for start, stop in spans)


# --- text to ids --------------------------------------------------------------------------------


class _Encoded(NamedTuple):
    """offsets: the characters [start, stop) of each id; empty where nobody asked for them."""

    ids: list[int]
    offsets: list[Span]


def encode_prompts(prompts: Sequence[str | Stretches], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts as training has them. A plain text is all words.

    Words get the tokenizer's beginning and not its end of sequence; a chat template writes its own
    beginning. What is said stays text also where it names a special token such as "</s>"; added
    tokens that the tokenizer does not call special are found in any text, as it always does.
    """
    laid = [(Stretch(each),) if isinstance(each, str) else each for each in prompts]
    return [encoded.ids for encoded in _encode_prompts(laid, tokenizer, offsets=False)]


def encode_responses(responses: Sequence[Stretches], tokenizer: Any) -> list[list[int]]:
    """Token ids of what the model is to write, as they continue a prompt's last line feed.

    A SentencePiece tokenizer puts a space before a text of its own; after the line feed that ends
    the prompt there is none. So each is encoded behind a line feed, whose ids are cut off again.
    """
    return [each.ids for each in _encode(responses, tokenizer, continues=True, offsets=False)]


def _encode_prompts(
    prompts: Sequence[Stretches], tokenizer: Any, *, offsets: bool
) -> list[_Encoded]:
    encoded = _encode(prompts, tokenizer, continues=False, offsets=offsets)
    end = [tokenizer.eos_token_id]
    for stretches, each in zip(prompts, encoded, strict=True):
        if each.ids[-1:] == end and not _has_control(stretches):
            del each.ids[-1:], each.offsets[-1:]
    return encoded


def _encode(
    texts: Sequence[Stretches], tokenizer: Any, *, continues: bool, offsets: bool
) -> list[_Encoded]:
    """Encode each text in one piece where that keeps words and control tokens apart.

    continues: whether a line feed stands before the texts.
    """
    special = _special_tokens(tokenizer)
    encoded: dict[int, _Encoded] = {}
    whole: dict[bool, list[int]] = {False: [], True: []}
    for number, stretches in enumerate(texts):
        control = _has_control(stretches)
        if control and _names_control(stretches, special):
            encoded[number] = _encode_runs(stretches, tokenizer, special, continues=continues)
        else:
            whole[control].append(number)
    for control, numbers in whole.items():
        batch = [text_of(texts[number]) for number in numbers]
        if continues:
            found = _encode_behind_feed(batch, tokenizer, control=control, offsets=offsets)
        else:
            found = _encode_texts(
                batch, tokenizer, beginning=not control, control=control, offsets=offsets
            )
        encoded.update(zip(numbers, found, strict=True))
    return [encoded[number] for number in range(len(texts))]


def _has_control(stretches: Stretches) -> bool:
    return any(stretch.control for stretch in stretches)


def _names_control(stretches: Stretches, special: re.Pattern[str]) -> bool:
    """Whether words hold the text of a control token."""
    return any(special.search(each.text) for each in stretches if not each.control)


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts that the tokenizer takes for control tokens unless told not to."""
    tokens = [each.content for each in tokenizer.added_tokens_decoder.values() if each.special]
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else "(?!)")


def _encode_texts(
    texts: Sequence[str], tokenizer: Any, *, beginning: bool, control: bool, offsets: bool
) -> list[_Encoded]:
    """Ids of whole texts. control: special tokens count as such; beginning: it puts its own too.

    The tokenizers library is asked itself: for the wrapper's masks and types nobody has a use.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not control
    if not offsets:
        found = backend.encode_batch_fast(list(texts), add_special_tokens=beginning)
        return [_Encoded(each.ids, []) for each in found]
    found = backend.encode_batch(list(texts), add_special_tokens=beginning)
    return [_Encoded(each.ids, each.offsets) for each in found]


def _encode_behind_feed(
    texts: Sequence[str], tokenizer: Any, *, control: bool, offsets: bool
) -> list[_Encoded]:
    def plain(texts: Sequence[str]) -> list[_Encoded]:
        return _encode_texts(texts, tokenizer, beginning=False, control=control, offsets=offsets)

    feed = plain(["\n"])[0].ids
    encoded = []
    for text, behind in zip(texts, plain([f"\n{text}" for text in texts]), strict=True):
        if behind.ids[: len(feed)] == feed:
            places = [(start - 1, stop - 1) for start, stop in behind.offsets[len(feed) :]]
            encoded.append(_Encoded(behind.ids[len(feed) :], places))
        else:  # a piece joins the line feed and what follows
            encoded += plain([text])
    return encoded


def _encode_runs(
    stretches: Stretches, tokenizer: Any, special: re.Pattern[str], *, continues: bool
) -> _Encoded:
    """Encode control tokens and the words between them apart, for words that name such tokens."""
    parts: list[tuple[bool, str]] = []  # whether it is a control token, and its text
    for stretch in stretches:
        found = (
            re.split(f"({special.pattern})", stretch.text) if stretch.control else [stretch.text]
        )
        for place, text in enumerate(found):
            if place % 2 or not parts or parts[-1][0]:
                parts.append((place % 2 == 1, text))
            else:
                parts[-1] = (False, parts[-1][1] + text)

    def plain(text: str, *, control: bool = False) -> _Encoded:
        return _encode_texts([text], tokenizer, beginning=False, control=control, offsets=True)[0]

    # Some tokenizers begin anew behind a control token, with a space say, and some go on.
    tokens = [text for is_control, text in parts if is_control]
    anew = bool(tokens) and plain(f"{tokens[0]}a", control=True).ids[1:] == plain("a").ids
    encoded = _Encoded([], [])
    at = 0
    for number, (is_control, text) in enumerate(parts):
        first = number == 0
        if is_control or (not continues if first else anew):
            own = plain(text, control=is_control)
        else:
            (own,) = _encode_behind_feed([text], tokenizer, control=False, offsets=True)
        encoded.ids.extend(own.ids)
        encoded.offsets.extend((at + start, at + stop) for start, stop in own.offsets)
        at += len(text)
    return encoded


# --- examples to rows of ids --------------------------------------------------------------------


def encode_all(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    prompt: PromptFormat,
    max_length: int,
    loss_on: LossOn,
    overlong: Overlong,
    loss_roles: Sequence[Role] | None = None,
    progress: Callable[[int], None] | None = None,
    chunk: int = 1024,
) -> tuple[list[EncodedExample], list[Rejected]]:
    """Encode examples in order; the second list holds those that cannot be trained on.

    Each ends with end-of-sequence, unless a chat template has written it already. Loss is on what
    the assistant writes, up to the mark that ends its turn; on what system and user say, without
    the template's words around it; a token that lies across an end of such a stretch belongs to it.

    ``Overlong.truncate`` cuts the end of the response, or of a conversation behind an earlier
    response, which then is the example's; it rejects an example whose prompt leaves no room for a
    token of a response. Rejected too is what the chat template refuses, and what has no token with
    loss. loss_roles: with ``LossOn.roles``, whose words. progress: called with the number done.
    """
    learnt = _learnt(loss_on, loss_roles)
    end = tokenizer.eos_token_id
    encoded: list[EncodedExample] = []
    rejected: list[Rejected] = []
    for start in range(0, len(examples), chunk):
        part: list[Example] = []
        asked: list[Stretches] = []
        answered: list[Stretches] = []
        for example in examples[start : start + chunk]:
            try:
                question, response = build_conversation(example, prompt, tokenizer)
            except ValueError as error:
                rejected.append(_reject(example, "chat_template", str(error)))
                continue
            part.append(example)
            asked.append(question)
            answered.append(response)
        # Responses are ids of their own; only what stands within a prompt has to be looked for.
        within = {Role.system, Role.user} & learnt or any(example.history for example in part)
        prompts = _encode_prompts(asked, tokenizer, offsets=bool(within))
        responses = encode_responses(answered, tokenizer)
        for example, stretches, before, ids in zip(part, asked, prompts, responses, strict=True):
            if end not in ids:
                ids.append(end)
            turns = _find_turns(stretches, before.offsets)
            outcome = _fit(
                example,
                before.ids + ids,
                [*turns, (Role.assistant, (len(before.ids), len(before.ids) + len(ids)))],
                learnt,
                max_length=max_length,
                overlong=overlong,
            )
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
            else:
                encoded.append(outcome)
        if progress is not None:
            progress(min(start + chunk, len(examples)))
    return encoded, rejected


#: Who says the tokens that carry loss; None are the template's own words.
_Learnt = frozenset[Role | None]


def _learnt(loss_on: LossOn, loss_roles: Sequence[Role] | None) -> _Learnt:
    if loss_on is LossOn.full_text:
        return frozenset([None, *Role])
    if loss_on is LossOn.response:
        return frozenset([Role.assistant])
    assert loss_roles is not None
    return frozenset(loss_roles)


def _find_turns(stretches: Stretches, offsets: Sequence[Span]) -> list[tuple[Role, Span]]:
    """The ids of a prompt that each role says, by the characters that ids stand for."""
    if not offsets:
        return []
    first, last = np.array(offsets).T
    ends = list(accumulate(len(stretch.text) for stretch in stretches))
    return [
        (
            stretch.role,
            (
                int(np.searchsorted(last, end - len(stretch.text), side="right")),
                int(np.searchsorted(first, end, side="left")),
            ),
        )
        for stretch, end in zip(stretches, ends, strict=True)
        if stretch.role is not None
    ]


def _fit(
    example: Example,
    ids: list[int],
    turns: Sequence[tuple[Role, Span]],
    learnt: _Learnt,
    *,
    max_length: int,
    overlong: Overlong,
) -> EncodedExample | Rejected:
    """Cut what is too long and mark what carries loss. turns: the last is the response's."""
    prompt_tokens = turns[-1][1][0]
    fits = len(ids) <= max_length
    detail = f"{len(ids)} tokens, {prompt_tokens} of them the prompt; max_length={max_length}"
    if prompt_tokens >= max_length:
        shorter = _shorten(example, turns, max_length)
        if shorter is None or overlong is Overlong.reject:
            return _reject(example, "prompt_too_long", detail)
        example = shorter
    elif not fits and overlong is Overlong.reject:
        return _reject(example, "too_long", detail)
    kept = min(len(ids), max_length)
    spans = [(0, kept)] if None in learnt else _join(turns, learnt, kept)
    if not _supervised(spans):
        roles = ", ".join(sorted(role for role in learnt if role))
        return _reject(example, "nothing_to_learn", f"no token of {roles} is left; {detail}")
    return EncodedExample(example, ids[:max_length], tuple(spans), not fits)


def _shorten(
    example: Example, turns: Sequence[tuple[Role, Span]], max_length: int
) -> Example | None:
    """The conversation up to the last response that begins before ``max_length``, or None."""
    responses = [place for place, (role, _) in enumerate(example.history) if role == Role.assistant]
    begins = [start for role, (start, _) in turns if role is Role.assistant]
    fitting = [place for place, start in zip(responses, begins, strict=False) if start < max_length]
    if not fitting:
        return None
    *before, (_, instruction), (_, response) = example.history[: fitting[-1] + 1]
    return replace(
        example, history=tuple(before), instruction=instruction, input="", response=response
    )


def _join(turns: Sequence[tuple[Role, Span]], learnt: _Learnt, kept: int) -> list[Span]:
    """The stretches that carry loss within the first ``kept`` ids, none empty, none touching."""
    spans: list[Span] = []
    for role, (start, end) in turns:
        stop = min(end, kept)
        if role not in learnt or start >= stop:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _reject(example: Example, reason: str, detail: str) -> Rejected:
    return Rejected(example.source, example.row, reason, detail, {})


def encode(
    example: Example,
    tokenizer: Any,
    *,
    prompt: PromptFormat,
    max_length: int,
    loss_on: LossOn,
    overlong: Overlong,
    loss_roles: Sequence[Role] | None = None,
) -> EncodedExample | Rejected:
    """Encode one example, or say why it does not fit."""
    encoded, rejected = encode_all(
        [example],
        tokenizer,
        prompt=prompt,
        max_length=max_length,
        loss_on=loss_on,
        loss_roles=loss_roles,
        overlong=overlong,
    )
    return encoded[0] if encoded else rejected[0]
