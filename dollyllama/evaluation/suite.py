"""Held-out examples to metrics: loss, graded answers, and whether the model stops by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from dollyllama.config import Grader, Strategy
from dollyllama.data.example import Example
from dollyllama.data.prompt import format_prompt
from dollyllama.data.tokens import EncodedExample
from dollyllama.decoding.generate import Completion, StoppedBy, generate
from dollyllama.evaluation import code, maths, sql, text
from dollyllama.evaluation.loss import held_out_loss
from dollyllama.evaluation.metric import Metric, mean_metric

#: A completion's text and its example -> named scores, without those that cannot be given.
SCORERS: dict[Grader, Callable[[str, Example], dict[str, float]]] = {
    Grader.sql: lambda answer, example: sql.grade(answer, example.response, example.context),
    Grader.maths: lambda answer, example: maths.grade(answer, example.response),
    Grader.code: lambda answer, example: code.grade(answer, example.response),
    Grader.text: lambda answer, example: text.grade(answer, example.response),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded answer: what ``samples.jsonl`` holds.

    tokens: how many the model wrote, those by which it stopped included.
    """

    source: str
    row: int
    id: str
    prompt: str
    completion: str
    reference: str
    stopped_by: StoppedBy
    tokens: int
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    metrics: list[Metric]
    samples: list[Sample]


def evaluate(
    model: Any,
    tokenizer: Any,
    held_out: Sequence[EncodedExample],
    *,
    graders: dict[str, Grader],
    strategy: Strategy,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    repetition_penalty: float | None,
    alpha: float | None,
    k: int | None,
    loss_examples: int,
    generate_examples: int,
    answers: int,
    batch_size: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluated:
    """Measure a model on held-out examples, source by source in the order of their names.

    graders: one for each source. loss_examples, generate_examples: how many of each source, 0 for
    none; see ``select``. answers: how many are drawn to one question. progress: called with "loss",
    "answers" or "grading", the number done and the total.
    """

    def report(what: str, total: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(what, done, total)

    measured = select(held_out, loss_examples)
    losses = held_out_loss(
        model,
        measured,
        batch_size=batch_size,
        pad_token_id=tokenizer.pad_token_id,
        progress=report("loss", len(measured)),
    )
    examples = [
        encoded.example for encoded in select(held_out, generate_examples) for _ in range(answers)
    ]
    prompts = [format_prompt(example.instruction) for example in examples]
    completions = generate(
        model,
        tokenizer,
        prompts,
        strategy=strategy,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        alpha=alpha,
        k=k,
        batch_size=batch_size,
        seed=seed,
        progress=report("answers", len(prompts)),
    )
    grading = report("grading", len(prompts))
    samples = []
    for example, prompt, completion in zip(examples, prompts, completions, strict=True):
        samples.append(grade(example, prompt, completion, graders[example.source]))
        if grading is not None:
            grading(len(samples))
    metrics = [*losses, *average(samples)]
    # A stable sort: within a source the loss first, then the scores in the grader's order.
    return Evaluated(sorted(metrics, key=lambda metric: metric.name.partition("/")[2]), samples)


def select(held_out: Sequence[EncodedExample], count: int) -> list[EncodedExample]:
    """The first ``count`` examples of each source in order of their ids.

    Ids depend on content alone, so the choice is the same before and after training and in every
    run on the same data, whatever its seed, and fewer are a part of more.
    """
    chosen: dict[str, list[EncodedExample]] = {}
    for encoded in sorted(held_out, key=lambda each: (each.example.source, each.example.id)):
        own = chosen.setdefault(encoded.example.source, [])
        if len(own) < count:
            own.append(encoded)
    return [encoded for own in chosen.values() for encoded in own]


def grade(example: Example, prompt: str, completion: Completion, grader: Grader) -> Sample:
    """Score one answer: by its source's grader, and by what can be said without a reference."""
    return Sample(
        source=example.source,
        row=example.row,
        id=example.id,
        prompt=prompt,
        completion=completion.text,
        reference=example.response,
        stopped_by=completion.stopped_by,
        tokens=completion.tokens,
        scores={
            **SCORERS[grader](completion.text, example),
            "stops": float(completion.stopped_by is StoppedBy.end_marker),
            "tokens": float(completion.tokens),
            **text.fluency(completion.text),
        },
    )


def average(samples: Sequence[Sample]) -> list[Metric]:
    """Mean scores by source; ``stops`` is the share that wrote the end marker.

    A score's n counts the questions that have it: several answers to one question are not
    independent, so their mean is one observation.
    """
    collected: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        for name, score in sample.scores.items():
            questions = collected.setdefault(f"{name}/{sample.source}", {})
            questions.setdefault(sample.id, []).append(score)
    return [
        mean_metric(name, [fsum(each) / len(each) for each in questions.values()])
        for name, questions in collected.items()
    ]
