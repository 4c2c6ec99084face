from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dollyllama.config import SCORES, Grader, LossOn, Overlong, Strategy
from dollyllama.data.example import Example
from dollyllama.data.prompt import format_prompt
from dollyllama.data.tokens import EncodedExample, encode
from dollyllama.decoding.generate import StoppedBy
from dollyllama.evaluation import text
from dollyllama.evaluation.suite import SCORERS, Evaluated, Sample, evaluate, select
from tests.decoding.build import Scripted, make_llama, make_tokenizer

SCHEMA = "CREATE TABLE head (name VARCHAR, age INTEGER)"


class Student(Scripted):
    """A model that answers by the script and is equally surprised by all of 259 tokens."""

    def forward(self, **inputs: Any) -> SimpleNamespace:
        if inputs["use_cache"]:
            return super().forward(**inputs)
        rows, width = len(inputs["input_ids"]), inputs["logits_to_keep"]
        return SimpleNamespace(logits=torch.zeros(rows, width, 259))


def make(source: str, instruction: str, response: str, context: str = "") -> EncodedExample:
    example = Example(source, 7, instruction, response, context, instruction)
    outcome = encode(
        example,
        make_tokenizer(),
        max_length=1024,
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


def run(held_out: list[EncodedExample] = HELD_OUT, **changes: Any) -> Evaluated:
    tokenizer = make_tokenizer()
    script = {
        format_prompt(question): tokenizer(answer, add_special_tokens=False).input_ids
        for question, (_, answer) in {**ANSWERS, **CODE}.items()
    }
    options: dict[str, Any] = {
        "graders": GRADERS,
        "strategy": Strategy.greedy,
        "max_new_tokens": 40,
        "temperature": None,
        "top_p": None,
        "repetition_penalty": None,
        "alpha": None,
        "k": None,
        "loss_examples": 10,
        "generate_examples": 10,
        "answers": 1,
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
    scores = SCORERS[grader](answer, example)
    assert scores.keys() <= set(SCORES[grader])
    assert SCORES[grader][0] in scores
    assert set(scores.values()) == {1.0}
    assert 0.0 in SCORERS[grader]("It is none of that )", example).values()


def test_metrics_are_named_counted_and_averaged_by_source() -> None:
    metrics = {metric.name: metric for metric in run().metrics}
    fluency = list(text.fluency("a b c d e"))
    assert list(metrics) == [
        *("loss/all", "loss/code", "parses/code", "stops/code", "tokens/code"),
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


def test_nothing_is_measured_where_nothing_is_asked_for() -> None:
    assert {metric.name for metric in run(generate_examples=0).metrics} == {
        "loss/all",
        "loss/sql",
        "loss/code",
    }
    answers = run(loss_examples=0)
    assert not any(metric.name.startswith("loss") for metric in answers.metrics)
    assert len(answers.samples) == len(HELD_OUT)
    assert run(loss_examples=0, generate_examples=0) == Evaluated([], [])


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
    keys = ("temperature", "top_p", "repetition_penalty", "alpha", "k")
    options: dict[str, Any] = dict.fromkeys(keys)
    evaluated = evaluate(
        make_llama(positions=512),
        make_tokenizer(),
        HELD_OUT,
        graders=GRADERS,
        max_new_tokens=8,
        loss_examples=2,
        generate_examples=2,
        answers=1,
        batch_size=4,
        seed=0,
        **(options | decoding),
    )
    assert len(evaluated.samples) == 4
    assert {sample.stopped_by for sample in evaluated.samples} == {StoppedBy.length}
