from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dollyllama.config import LossOn, Overlong, PromptFormat, Role
from dollyllama.data.example import Example, Rejected
from dollyllama.data.prompt import build_prompt, format_prompt, format_response
from dollyllama.data.tokens import IGNORED, EncodedExample, encode, encode_all, encode_prompts
from tests.data.build import CHATML, LLAMA_2, make_example, with_template

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
    prompt: PromptFormat = PromptFormat.alpaca,
    loss_roles: list[Role] | None = None,
) -> EncodedExample | Rejected:
    return encode(
        example,
        tokenizer,
        prompt=prompt,
        max_length=max_length,
        loss_on=loss_on,
        loss_roles=loss_roles,
        overlong=overlong,
    )


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
    labels = example.labels.tolist()
    assert labels[: 1 + PROMPT_BYTES] == [IGNORED] * (1 + PROMPT_BYTES)
    assert labels[1 + PROMPT_BYTES :] == example.ids[1 + PROMPT_BYTES :]
    assert example.supervised == len(labels) - (1 + PROMPT_BYTES)


def test_the_end_of_sequence_is_learnt(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert encoded(byte_tokenizer).labels[-1] == byte_tokenizer.eos_token_id


def test_full_text_learns_every_token_but_the_first(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = encoded(byte_tokenizer, loss_on=LossOn.full_text)
    assert example.labels.tolist() == [IGNORED, *example.ids[1:]]
    assert example.supervised == WHOLE - 1


def test_labels_of_a_mapped_array_are_those_of_a_list() -> None:
    spans = ((0, 2), (3, 4), (5, 9))
    ids = np.arange(10, 20, dtype=np.int32)
    ids.flags.writeable = False
    example = EncodedExample(EXAMPLE, ids, spans, False)
    assert example.labels.tolist() == [IGNORED, 11, IGNORED, 13, IGNORED, 15, 16, 17, 18, IGNORED]
    assert example.labels.tolist() == EncodedExample(EXAMPLE, [*ids], spans, False).labels.tolist()
    assert example.supervised == 6


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
    assert example.supervised == RESPONSE_BYTES + 1 - missing


@pytest.mark.parametrize("loss_on", [LossOn.response, LossOn.full_text])
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
        "prompt": PromptFormat.alpaca,
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


# --- conversations and roles --------------------------------------------------------------------

TALK = make_example(
    "Bye 😀",
    "So\nlong",
    history=(("system", "Be brief."), ("user", "Hi é!"), ("assistant", "Ho.")),
)


def learnt(tokenizer: Any, example: Example, *roles: Role, **changes: Any) -> list[str]:
    """The text of each stretch that carries loss on ``roles``."""
    row = encoded(tokenizer, example=example, loss_on=LossOn.roles, loss_roles=[*roles], **changes)
    return [tokenizer.decode(row.ids[start:stop]) for start, stop in row.spans]


def test_loss_is_on_the_words_of_the_chosen_roles(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert learnt(byte_tokenizer, TALK, Role.system) == ["Be brief."]
    assert learnt(byte_tokenizer, TALK, Role.user) == ["Hi é!", "Bye 😀"]
    answers = ["Ho.\n### End", "So\nlong\n### End</s>"]
    assert learnt(byte_tokenizer, TALK, Role.assistant) == answers
    both = [answers[0], "Bye 😀", answers[1]]
    assert learnt(byte_tokenizer, TALK, Role.assistant, Role.user) == ["Hi é!", *both]


def test_loss_on_responses_is_loss_on_the_assistant(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    roles = {"loss_on": LossOn.roles, "loss_roles": [Role.assistant]}
    for example in (TALK, EXAMPLE):
        assert encoded(byte_tokenizer, example=example) == encoded(
            byte_tokenizer, example=example, **roles
        )


def test_an_input_in_its_block_is_the_users(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    example = make_example("Sort.", "1 2", input="2 1")
    prompt = PromptFormat.alpaca_input
    assert learnt(byte_tokenizer, example, Role.user, prompt=prompt) == ["Sort.", "2 1"]
    assert learnt(byte_tokenizer, example, Role.user) == ["Sort.\n2 1"]


def test_a_row_without_a_token_to_learn_is_rejected(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    outcome = run(byte_tokenizer, loss_on=LossOn.roles, loss_roles=[Role.system])
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.raw) == ("nothing_to_learn", {})
    assert "no token of system is left" in outcome.detail


PROMPTS = list(PromptFormat)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_do_not_depend_on_where_the_loss_is(
    byte_tokenizer: PreTrainedTokenizerFast, prompt: PromptFormat
) -> None:
    tokenizer = with_template(byte_tokenizer, CHATML)
    losses: list[dict[str, Any]] = [
        {"loss_on": LossOn.response},
        {"loss_on": LossOn.full_text},
        {"loss_on": LossOn.roles, "loss_roles": [Role.user]},
    ]
    rows = [encoded(tokenizer, example=TALK, prompt=prompt, **loss) for loss in losses]
    assert rows[0].ids == rows[1].ids == rows[2].ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_generation_is_asked_with_the_ids_of_training(
    byte_tokenizer: PreTrainedTokenizerFast, prompt: PromptFormat
) -> None:
    tokenizer = with_template(byte_tokenizer, CHATML)
    row = encoded(tokenizer, example=TALK, prompt=prompt)
    (ids,) = encode_prompts([build_prompt(TALK, prompt, tokenizer)], tokenizer)
    assert row.ids[: len(ids)] == ids
    assert row.spans[-1] == (len(ids), len(row.ids))


def test_a_conversation_too_long_ends_with_an_earlier_response(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = encoded(byte_tokenizer, example=TALK)
    (first, first_end), (last, _) = whole.spans
    for max_length in (last, first_end + 3, first + 1):
        row = encoded(byte_tokenizer, example=TALK, max_length=max_length)
        assert (row.ids, row.truncated) == (whole.ids[:max_length], True)
        assert row.spans == ((first, min(first_end, max_length)),)
        assert (row.example.instruction, row.example.response) == ("Hi é!", "Ho.")
        assert row.example.history == TALK.history[:1]
    outcome = run(byte_tokenizer, TALK, max_length=first)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "prompt_too_long"


# --- the tokenizer's chat template --------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
@pytest.mark.parametrize("real", [False, True])
def test_a_chat_has_the_ids_of_the_tokenizers_own_rendering(
    byte_tokenizer: PreTrainedTokenizerFast, request: Any, template: str, real: bool
) -> None:
    tokenizer = byte_tokenizer
    if real:
        folder = request.getfixturevalue("shared") / "tokenizers" / "open_llama_v2"
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer = with_template(tokenizer, template)
    turns = [*TALK.history, ("user", TALK.instruction), ("assistant", TALK.response)]
    messages = [{"role": role, "content": content} for role, content in turns]
    own = tokenizer.apply_chat_template(messages, return_dict=False)
    row = encoded(tokenizer, example=TALK, prompt=PromptFormat.chat)
    # Llama 2's template writes the end of sequence itself, ChatML's does not.
    assert row.ids == (own if template is LLAMA_2 else [*own, tokenizer.eos_token_id])


def test_roles_of_a_chat_are_learnt_without_the_templates_words(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    chatml = with_template(byte_tokenizer, CHATML)
    chat = {"prompt": PromptFormat.chat}
    assert learnt(chatml, TALK, Role.system, **chat) == ["Be brief."]
    assert learnt(chatml, TALK, Role.user, **chat) == ["Hi é!", "Bye 😀"]
    assert learnt(chatml, TALK, Role.assistant, **chat) == [
        "Ho.<|im_end|>\n",
        "So\nlong<|im_end|>\n</s>",
    ]
    llama_2 = with_template(byte_tokenizer, LLAMA_2)
    assert learnt(llama_2, TALK, Role.assistant, **chat) == [" Ho. </s>", " So\nlong </s>"]


@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
def test_a_control_token_that_is_said_stays_text(
    byte_tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer = with_template(byte_tokenizer, template)
    said = "a</s><|im_end|>b"
    plain = make_example("x" * len(said), "y" * len(said), history=TALK.history)
    named = make_example(said, said, history=TALK.history)
    control = set(tokenizer.all_special_ids)
    rows = [encoded(tokenizer, example=each, prompt=PromptFormat.chat) for each in (plain, named)]
    assert rows[0].spans == rows[1].spans
    for one, other in zip(rows[0].ids, rows[1].ids, strict=True):
        assert (one in control) == (other in control)
    assert tokenizer.decode(rows[1].ids).count(said) == 2


def test_a_template_without_control_tokens_lets_none_be_said(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    example = make_example("a</s>b", "c<s>d")
    tokenizer = with_template(byte_tokenizer, template)
    row = encoded(tokenizer, example=example, prompt=PromptFormat.chat)
    text = "user: a</s>b\nassistant: c<s>d\n"
    assert len(row.ids) == len(text) + 1
    assert tokenizer.decode(row.ids) == f"{text}</s>"


def test_what_the_chat_template_refuses_is_rejected_and_the_rest_kept(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    kept, rejected = encode_all(
        [TALK, EXAMPLE],
        with_template(byte_tokenizer, template + CHATML),
        prompt=PromptFormat.chat,
        max_length=512,
        loss_on=LossOn.response,
        overlong=Overlong.truncate,
    )
    assert [each.example for each in kept] == [EXAMPLE]
    assert [(each.reason, each.row) for each in rejected] == [("chat_template", 0)]
    assert "no system" in rejected[0].detail


# --- the rows that the project has always made --------------------------------------------------


def test_the_default_prompts_ids_are_those_of_the_wrapped_tokenizer(shared: Path) -> None:
    """As they were before there were other formats: instruction, line feed, input; one template."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "open_llama_v2")
    with gzip.open(shared / "data" / "code_alpaca_20k.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 300)]
    for row in rows:
        example = make_example(row["instruction"], row["output"], input=row["input"])
        joined = "\n".join(filter(None, [row["instruction"], row["input"]]))
        text = format_prompt(joined) + format_response(row["output"])
        ids = tokenizer(text, split_special_tokens=True).input_ids
        assert encoded(tokenizer, example=example).ids == [*ids, tokenizer.eos_token_id][:1024]
        assert example.id == make_example(joined, row["output"]).id
