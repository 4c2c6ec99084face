"""The engine: batches of what goes together, rows that leave, and troubles that end one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dollyllama.config import Decoding
from dollyllama.decoding.generate import generate
from dollyllama.serving.engine import (
    Answer,
    ClosedError,
    Engine,
    Failure,
    Finish,
    QueueFullError,
    Trouble,
)
from tests.decoding.build import Scripted
from tests.serving.build import CONTRASTIVE, GREEDY, NUCLEUS, Asker, Stepped, ask, until

PROMPTS = ["SELECT name FROM", "def __init__(self,", "How many apples are", "The bird\n\n"]


def spell(text: str, tokenizer: Any) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False).input_ids]


def make_engine(model: Any, tokenizer: Any, *, max_batch: int = 8, max_queue: int = 64) -> Engine:
    return Engine(model, tokenizer, max_batch=max_batch, max_queue=max_queue)


def rows_of(model: Scripted) -> list[int]:
    """How many rows each pass had."""
    return [rows for rows, _ in model.calls]


@pytest.mark.parametrize("decoding", [GREEDY, CONTRASTIVE, replace(GREEDY, repetition_penalty=1.3)])
def test_a_batch_answers_as_generate_does_one_by_one(
    decoding: Decoding, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    run = Engine._run
    monkeypatch.setattr(
        Engine, "_run", lambda self, jobs: (batches.append(len(jobs)), run(self, jobs))
    )
    answers = ask(make_engine(model, tokenizer), PROMPTS, decoding)
    assert batches == [4]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        (alone,) = generate(model, tokenizer, [prompt], decoding, batch_size=1, seed=0)
        assert (answer.text, answer.tokens) == (alone.text, alone.tokens)


def test_a_seed_draws_as_generate_does_whatever_else_waits(model: Any, tokenizer: Any) -> None:
    answers = ask(make_engine(model, tokenizer), PROMPTS, NUCLEUS, seed=7)
    alone = [
        generate(model, tokenizer, [prompt], NUCLEUS, batch_size=1, seed=7)[0].text
        for prompt in PROMPTS
    ]
    assert [answer.text for answer in answers] == alone


def test_draws_without_a_seed_are_a_batch_and_differ(bytes_tokenizer: Any) -> None:
    model = Scripted({"a": [50, 51]}, bytes_tokenizer)
    ask(make_engine(model, bytes_tokenizer), ["a", "a", "a"], NUCLEUS)
    assert rows_of(model)[0] == 3


def test_unequal_decodings_are_batches_of_their_own_the_oldest_first(bytes_tokenizer: Any) -> None:
    model = Scripted({name: [50, 51] for name in "abc"}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    other = replace(GREEDY, repetition_penalty=1.5)
    engine.submit([asker.job("a"), asker.job("b", other), asker.job("c")])
    engine.start()
    asker.ends()
    engine.close(0.0)
    # a and c write two tokens and end-of-sequence in three passes, then b alone.
    assert rows_of(model) == [2, 2, 2, 1, 1, 1]


def test_no_batch_is_larger_than_allowed(bytes_tokenizer: Any) -> None:
    model = Scripted({"a": []}, bytes_tokenizer)
    ask(make_engine(model, bytes_tokenizer, max_batch=2), ["a"] * 5, GREEDY)
    assert rows_of(model) == [2, 2, 1]


def test_each_row_has_its_own_limit_of_tokens(bytes_tokenizer: Any) -> None:
    model = Scripted({name: [50] * 9 for name in "abc"}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    limits = [1, 3, 16]
    engine.submit(
        [
            asker.job(name, replace(GREEDY, max_new_tokens=limit))
            for name, limit in zip("abc", limits, strict=True)
        ]
    )
    engine.start()
    ends = asker.ends()
    engine.close(0.0)
    assert [(end.tokens, end.finish) for end in ends if isinstance(end, Answer)] == [
        (1, Finish.length),
        (3, Finish.length),
        (10, Finish.stop),
    ]
    assert rows_of(model) == [3, 2, 2, *[1] * 7]


def test_a_stop_string_ends_the_answer_and_no_part_of_it_is_shown(bytes_tokenizer: Any) -> None:
    text = "one; two;; three"
    model = Scripted({"a": spell(text, bytes_tokenizer)}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job("a", stops=(";; ", "never"), streamed=True)])
    engine.start()
    (end,) = asker.ends()
    engine.close(0.0)
    assert isinstance(end, Answer)
    assert (end.text, end.finish) == ("one; two", Finish.stop)
    assert asker.shown(0) == end.text
    assert len(model.calls) < len(text)


def test_streamed_text_is_the_whole_text_without_the_end_marker(bytes_tokenizer: Any) -> None:
    ids = spell("A ### Endpoint é.\n### End", bytes_tokenizer)
    model = Scripted({"a": ids}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job("a", replace(GREEDY, max_new_tokens=64), streamed=True)])
    engine.start()
    (end,) = asker.ends()
    engine.close(0.0)
    assert end == Answer("A ### Endpoint é.", len(ids) + 1, Finish.stop)
    assert asker.shown(0) == "A ### Endpoint é."
    assert len(asker.events[0]) > 5


def test_a_cancelled_row_leaves_the_running_batch(bytes_tokenizer: Any) -> None:
    model = Stepped({name: [50] * 9 for name in "ab"}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job("a"), asker.job("b")])
    engine.start()
    model.steps.release(2)
    until(lambda: len(model.calls) == 2)
    asker.jobs[0].cancel()
    model.steps.release(20)
    until(lambda: len(asker.events[1]) == 1)
    engine.close(0.0)
    # The third pass had begun or not when a was cancelled.
    assert rows_of(model)[:2] == [2, 2]
    assert rows_of(model)[3:] == [1] * 7
    assert asker.events[0] == []


class Small(Scripted):
    """Memory for two rows, until ``fails_at`` passes were made for one or two more."""

    def __init__(self, *arguments: Any, fails_at: int) -> None:
        super().__init__(*arguments)
        self.fails_at = fails_at

    def forward(self, **inputs: Any) -> Any:
        made = sum(rows > 2 for rows, _ in self.calls)
        if len(inputs["input_ids"]) > 2 and made >= self.fails_at:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(**inputs)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_out_of_memory_halves_the_batch_and_repeats_no_text(
    fails_at: int, bytes_tokenizer: Any
) -> None:
    words = {name: f"{name} sings" for name in "abcde"}
    script = {name: spell(word, bytes_tokenizer) for name, word in words.items()}
    model = Small(script, bytes_tokenizer, fails_at=fails_at)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job(name, streamed=True) for name in words])
    engine.start()
    ends = asker.ends()
    engine.close(0.0)
    assert [end.text for end in ends if isinstance(end, Answer)] == list(words.values())
    assert [asker.shown(number) for number in range(5)] == list(words.values())
    assert max(rows_of(model)[fails_at:]) <= 2


class Fickle(Small):
    """Writes other words after memory ran out."""

    def forward(self, **inputs: Any) -> Any:
        try:
            return super().forward(**inputs)
        except torch.OutOfMemoryError:
            self.script = {prompt: ids[::-1] for prompt, ids in self.script.items()}
            raise


def test_text_that_was_shown_is_never_taken_back(bytes_tokenizer: Any) -> None:
    script = {name: spell("abcdef", bytes_tokenizer) for name in "abc"}
    model = Fickle(script, bytes_tokenizer, fails_at=3)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job("a", streamed=True), asker.job("b"), asker.job("c", streamed=True)])
    engine.start()
    ends = asker.ends()
    engine.close(0.0)
    assert ends[0] == ends[2] == Failure(Trouble.out_of_memory)
    assert isinstance(ends[1], Answer)
    assert (ends[1].text, asker.shown(0)) == ("fedcba", "abc")


def test_one_prompt_that_does_not_fit_memory_is_told_so(bytes_tokenizer: Any) -> None:
    class Full(Scripted):
        def forward(self, **inputs: Any) -> Any:
            raise MemoryError

    ends = ask(make_engine(Full({}, bytes_tokenizer), bytes_tokenizer), ["a", "b"], GREEDY)
    assert ends == [Failure(Trouble.out_of_memory)] * 2


def test_an_error_ends_its_batch_and_the_next_is_answered(bytes_tokenizer: Any) -> None:
    class Once(Scripted):
        def forward(self, **inputs: Any) -> Any:
            if not self.calls:
                self.calls.append((0, 0))
                raise RuntimeError("a kernel failed")
            return super().forward(**inputs)

    model = Once({"a": [50], "b": [50]}, bytes_tokenizer)
    ends = ask(make_engine(model, bytes_tokenizer, max_batch=1), ["a", "b"], GREEDY)
    assert ends[0] == Failure(Trouble.internal_error)
    assert isinstance(ends[1], Answer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_leaves_nobody_waiting(bytes_tokenizer: Any) -> None:
    class StrangeError(Exception):
        pass

    class Dying(Scripted):
        def forward(self, **inputs: Any) -> Any:
            raise StrangeError

    engine = make_engine(Dying({}, bytes_tokenizer), bytes_tokenizer, max_batch=1)
    asker = Asker()
    engine.submit([asker.job("a"), asker.job("b")])
    engine.start()
    ends = {end.trouble for end in asker.ends() if isinstance(end, Failure)}
    engine.join(20)
    assert ends == {Trouble.internal_error, Trouble.shutting_down}
    assert not engine.ready
    with pytest.raises(ClosedError):
        engine.submit([asker.job("c")])


def test_no_more_wait_than_the_queue_holds_and_none_of_a_group_that_does_not_fit(
    bytes_tokenizer: Any,
) -> None:
    engine = make_engine(Scripted({}, bytes_tokenizer), bytes_tokenizer, max_queue=3)
    asker = Asker()
    engine.submit([asker.job("a"), asker.job("b")])
    with pytest.raises(QueueFullError):
        engine.submit([asker.job("c"), asker.job("d")])
    engine.submit([asker.job("e")])
    with pytest.raises(QueueFullError):
        engine.submit([asker.job("f")])
    asker.jobs[0].cancel()
    engine.submit([asker.job("g")])


def test_closing_fails_what_waits_and_ends_what_runs_after_its_grace(bytes_tokenizer: Any) -> None:
    model = Stepped({"a": [50] * 9, "b": []}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer, max_batch=1)
    asker = Asker()
    engine.submit([asker.job("a", streamed=True), asker.job("b")])
    engine.start()
    model.steps.release(1)
    until(lambda: len(asker.events[0]) == 1)
    engine.close(0.0)
    assert asker.events[1] == [Failure(Trouble.shutting_down)]
    model.steps.release(1)
    assert asker.ends()[0] == Failure(Trouble.shutting_down)
    engine.join(20)
    assert not engine.ready


def test_what_runs_when_the_engine_closes_may_end_within_its_grace(bytes_tokenizer: Any) -> None:
    model = Stepped({"a": [50] * 3}, bytes_tokenizer)
    engine = make_engine(model, bytes_tokenizer)
    asker = Asker()
    engine.submit([asker.job("a")])
    engine.start()
    model.steps.release(1)
    until(lambda: len(model.calls) == 1)
    engine.close(1000.0)
    model.steps.release(9)
    (end,) = asker.ends()
    assert isinstance(end, Answer)
    assert end.finish is Finish.stop
    assert end.tokens == 4
