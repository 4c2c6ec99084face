from __future__ import annotations

import json
import random
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dollyllama.config import SCORES, Grader, LossOn, Overlong, PromptFormat, Strategy
from dollyllama.data.example import Example
from dollyllama.data.prompt import format_prompt
from dollyllama.data.tokens import EncodedExample, encode
from dollyllama.decoding.generate import StoppedBy
from dollyllama.evaluation import suite, text
from dollyllama.evaluation.sandbox import available
from dollyllama.evaluation.suite import (
    SCORERS,
    Evaluated,
    Sample,
    average,
    evaluate,
    select,
    unscored,
)
from tests.decoding.build import Scripted, make_decoding, make_llama, make_tokenizer

SCHEMA = "CREATE TABLE head (name VARCHAR, age INTEGER)"


class Student(Scripted):
    """A model that answers by the script and is equally surprised by all of 259 tokens."""

    def forward(self, **inputs: Any) -> SimpleNamespace:
        if inputs["use_cache"]:
            return super().forward(**inputs)
        return SimpleNamespace(logits=torch.zeros(1, len(inputs["logits_to_keep"]), 259))

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name


def make(source: str, instruction: str, response: str, context: str = "") -> EncodedExample:
    example = Example(source, 7, instruction, response, context, instruction)
    outcome = encode(
        example,
        make_tokenizer(),
        max_length=1024,
        prompt=PromptFormat.alpaca,
        loss_on=LossOn.response,
        overlong=Overlong.truncate,
    )
    assert isinstance(outcome, EncodedExample)
    return outcome


ANSWERS = {
    "q1": ("SELECT name FROM head", "select name from head;\n### End"),
    "q2": ("SELECT name FROM head", "SELECT age FROM head"),
    "q3": ("SELECT name FROM head", "SELECT size FROM head\n### End"),
    "q4": ("SELECT size FROM head", "SELECT size FROM head\n### End"),  # the reference fails
}
CODE = {"c1": ("x = 1", "x = (\n### End"), "c2": ("<p>", "x = 1\n### End")}
HELD_OUT = [
    *[make("sql", question, reference, SCHEMA) for question, (reference, _) in ANSWERS.items()],
    *[make("code", question, reference) for question, (reference, _) in CODE.items()],
]
GRADERS = {"sql": Grader.sql, "code": Grader.code}


SCRIPT = {question: answer for question, (_, answer) in {**ANSWERS, **CODE}.items()}


def run(
    held_out: list[EncodedExample] = HELD_OUT, says: dict[str, str] = SCRIPT, **changes: Any
) -> Evaluated:
    tokenizer = make_tokenizer()
    script = {
        format_prompt(question): tokenizer(answer, add_special_tokens=False).input_ids
        for question, answer in says.items()
    }
    options: dict[str, Any] = {
        "graders": GRADERS,
        "prompt": PromptFormat.alpaca,
        "decoding": make_decoding(max_new_tokens=40),
        "loss_examples": 10,
        "generate_examples": 10,
        "answers": 1,
        "run_code": False,
        "batch_size": 3,
        "seed": 0,
    }
    return evaluate(Student(script, tokenizer).eval(), tokenizer, held_out, **(options | changes))


def test_every_grader_has_a_scorer() -> None:
    assert set(SCORERS) == set(Grader)


@pytest.mark.parametrize("grader", Grader)
def test_a_scorer_gives_the_reference_full_marks(grader: Grader) -> None:
    answers = {
        Grader.sql: "SELECT name FROM head",
        Grader.maths: "The answer is 2.",
        Grader.code: "x = 1",
    }
    answer = answers.get(grader, "Two words.")
    example = Example("a", 0, "q", answer, SCHEMA, "q")
    scores = SCORERS[grader](answer, example, False)
    assert scores.keys() <= set(SCORES[grader])
    assert SCORES[grader][0] in scores
    assert set(scores.values()) == {1.0}
    assert 0.0 in SCORERS[grader]("It is none of that )", example, False).values()


def test_metrics_are_named_counted_and_averaged_by_source() -> None:
    metrics = {metric.name: metric for metric in run().metrics}
    fluency = list(text.fluency("a b c d e"))
    assert list(metrics) == [
        *("loss/all", "score/all", "loss/code", "parses/code", "stops/code", "tokens/code"),
        *(f"{name}/code" for name in fluency if f"{name}/code" in metrics),
        *("loss/sql", "exact/sql", "executes/sql", "execution/sql", "stops/sql", "tokens/sql"),
        *(f"{name}/sql" for name in fluency),
    ]
    values = {name: (round(metric.value, 6), metric.n) for name, metric in metrics.items()}
    assert values["exact/sql"] == (0.5, 4)  # q1, q4
    assert values["executes/sql"] == (round(2 / 3, 6), 3)  # q1 and q2 of q1, q2, q3
    assert values["stops/sql"] == (0.75, 4)  # all but q2
    assert values["parses/code"] == (0.0, 1)
    assert values["stops/code"] == (1.0, 2)
    assert values["loss/sql"] == (round(float(torch.tensor(259.0).log()), 6), 4)
    assert metrics["exact/sql"].standard_error == pytest.approx((0.25 / 3) ** 0.5)
    assert metrics["parses/code"].standard_error is None
    # Sources weigh the same: execution/sql and parses/code, whatever their n.
    assert metrics["score/all"].value == pytest.approx(metrics["execution/sql"].value / 2)
    assert metrics["score/all"].n == metrics["execution/sql"].n + 1
    assert metrics["score/all"].standard_error is None


def test_samples_hold_what_was_asked_answered_and_scored() -> None:
    (sample,) = (each for each in run().samples if "q2" in each.prompt)
    assert sample == Sample(
        source="sql",
        row=7,
        id=HELD_OUT[1].example.id,
        prompt=format_prompt("q2"),
        completion="SELECT age FROM head",
        reference="SELECT name FROM head",
        stopped_by=StoppedBy.eos,
        tokens=len("SELECT age FROM head") + 1,
        scores={
            "exact": 0.0,
            "executes": 1.0,
            "execution": 0.0,
            "stops": 0.0,
            "tokens": 21.0,
            **text.fluency("SELECT age FROM head"),
        },
    )


def test_several_answers_to_one_question_are_one_observation() -> None:
    once, thrice = run(), run(answers=3)
    assert len(thrice.samples) == 3 * len(once.samples)
    # The script answers the same each time.
    assert thrice.metrics == once.metrics


HALF = {
    "prompt": "def half(x):\n",
    "test": "def check(half):\n    assert half(4) == 2\n",
    "entry_point": "half",
}


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_answers_in_python_are_run_against_their_tests_where_asked_for() -> None:
    reference = "def half(x):\n    return x // 2"
    untested = json.dumps(HALF | {"test": " "})
    held_out = [
        make("code", "right", reference, json.dumps(HALF)),
        make("code", "wrong", reference, json.dumps(HALF)),
        make("code", "untested", reference, untested),
        make("code", "plain", reference),
    ]
    answers = {
        "right": "return x // 2\n### End",
        "wrong": "return x\n### End",
        "untested": "return x // 2\n### End",
        "plain": "return x // 2\n### End",  # a line outside of any function
    }
    measured = run(held_out, answers, run_code=True)
    passes = {sample.prompt: sample.scores.get("passes") for sample in measured.samples}
    wanted: dict[str, float | None] = {"right": 1, "wrong": 0, "untested": None, "plain": None}
    assert passes == {format_prompt(name): score for name, score in wanted.items()}
    metrics = {metric.name: (metric.value, metric.n) for metric in measured.metrics}
    assert metrics["passes/code"] == metrics["pass@1/code"] == (0.5, 2)
    assert metrics["parses/code"] == (1.0, 4)
    unrun = run(held_out, answers, run_code=False)
    assert not any("pass" in name for sample in unrun.samples for name in sample.scores)
    assert not any(metric.name.startswith("pass") for metric in unrun.metrics)


def test_programs_run_side_by_side_and_their_scores_stay_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first waits for the last, so that one after the other would never end."""
    first, last = sorted(
        [make("code", "one", "a"), make("code", "two", "b")], key=lambda each: each.example.id
    )
    last_is_graded = threading.Event()

    def grade(answer: str, reference: str, context: str, *, execute: bool) -> dict[str, float]:
        assert execute
        if reference == last.example.response:
            last_is_graded.set()
            return {"passes": 0.0}
        assert last_is_graded.wait(60)
        return {"passes": 1.0}

    monkeypatch.setattr(suite, "_PROGRAMS", 2)
    monkeypatch.setattr(suite.code, "grade", grade)
    answers = {"one": "x", "two": "x"}
    samples = run([last, first], answers, run_code=True).samples
    assert [sample.scores["passes"] for sample in samples] == [1.0, 0.0]


def test_what_could_not_be_scored_is_counted_with_its_reason() -> None:
    empty = make("sql", "q5", "SELECT name FROM head WHERE age = 1 AND age = 2", SCHEMA)
    samples = run([*HELD_OUT, empty], {**SCRIPT, "q5": "SELECT name FROM head"}, answers=2).samples
    assert unscored(samples, GRADERS) == {
        "code": {"the reference is no Python": 1},
        "sql": {
            "the reference does not run on its schema": 1,
            "the reference returns nothing, or nothing certain, on every database": 1,
        },
    }
    assert unscored([], GRADERS) == {}


def answered(question: str, *passes: float) -> list[Sample]:
    return [
        Sample("code", 0, question, "", "", "", StoppedBy.eos, 1, {"passes": each})
        for each in passes
    ]


def test_pass_at_k_is_by_hand_and_only_for_as_many_answers_as_there_are() -> None:
    samples = [*answered("a", *[1, 0, 1, 0, 0, 0, 0, 0, 0, 0]), *answered("b", *[0] * 10)]
    metrics = {metric.name: metric for metric in average(samples)}
    assert list(metrics) == ["passes/code", "pass@1/code", "pass@5/code", "pass@10/code"]
    values = {name: (metric.value, metric.n) for name, metric in metrics.items()}
    assert values["passes/code"] == values["pass@1/code"] == (0.1, 2)
    # 2 of a's 10 pass: of 252 draws of 5, C(8, 5) = 56 hold neither.
    assert values["pass@5/code"] == (pytest.approx((1 - 56 / 252 + 0) / 2), 2)
    assert values["pass@10/code"] == (0.5, 2)
    assert metrics["pass@10/code"].standard_error == pytest.approx(0.5)
    few = [metric.name for metric in average([*samples, *answered("c", 1, 1, 1, 1)])]
    assert few == ["passes/code", "pass@1/code"]


def test_nothing_is_measured_where_nothing_is_asked_for() -> None:
    assert {metric.name for metric in run(generate_examples=0).metrics} == {
        "loss/all",
        "loss/sql",
        "loss/code",
    }
    answers = run(loss_examples=0)
    assert not any(metric.name.startswith("loss") for metric in answers.metrics)
    assert len(answers.samples) == len(HELD_OUT)
    assert run(loss_examples=0, generate_examples=0) == Evaluated([], [], [])


def test_the_choice_of_examples_depends_on_their_content_alone() -> None:
    shuffled = HELD_OUT[:]
    random.Random(1).shuffle(shuffled)
    chosen = select(shuffled, 2)
    assert [each.example.id for each in chosen] == [each.example.id for each in select(HELD_OUT, 2)]
    assert [each.example.source for each in chosen] == ["code", "code", "sql", "sql"]
    ids = [each.example.id for each in chosen if each.example.source == "sql"]
    assert ids == sorted(each.example.id for each in HELD_OUT if each.example.source == "sql")[:2]
    more = [each.example.id for each in select(HELD_OUT, 3)]
    assert set(ids) <= set(more)


def test_the_order_of_held_out_examples_changes_nothing() -> None:
    assert run(HELD_OUT[::-1]) == run()


def test_progress_says_what_is_done_of_how_many() -> None:
    seen: list[tuple[str, int, int]] = []
    run(progress=lambda what, done, total: seen.append((what, done, total)))
    assert seen == [
        *(("loss", 3, 6), ("loss", 6, 6), ("answers", 3, 6), ("answers", 6, 6)),
        *(("grading", done, 6) for done in range(1, 7)),
    ]


@pytest.mark.parametrize(
    "decoding",
    [
        {"strategy": Strategy.nucleus, "temperature": 1.0, "top_p": 0.9},
        {"strategy": Strategy.contrastive, "alpha": 0.5, "k": 4},
    ],
)
def test_every_strategy_serves(decoding: dict[str, Any]) -> None:
    evaluated = evaluate(
        make_llama(positions=512),
        make_tokenizer(),
        HELD_OUT,
        graders=GRADERS,
        prompt=PromptFormat.alpaca,
        decoding=make_decoding(max_new_tokens=8, **decoding),
        loss_examples=2,
        generate_examples=2,
        answers=1,
        run_code=False,
        batch_size=4,
        seed=0,
    )
    assert len(evaluated.samples) == 4
    assert {sample.stopped_by for sample in evaluated.samples} == {StoppedBy.length}
