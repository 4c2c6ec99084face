"""Held-out examples to metrics: loss, graded answers, and whether the model stops by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum, hypot
from typing import Any

from dollyllama.config import PASS_AT, SCORES, Decoding, Grader, PromptFormat
from dollyllama.data.example import Example
from dollyllama.data.prompt import build_prompt, text_of
from dollyllama.data.tokens import EncodedExample
from dollyllama.decoding.generate import Completion, StoppedBy, generate
from dollyllama.distributed import shared_out
from dollyllama.evaluation import code, maths, sql, text
from dollyllama.evaluation.loss import ExampleLoss, average_losses, held_out_loss
from dollyllama.evaluation.metric import Metric, mean_metric

#: A completion's text, its example and whether code is run -> named scores, without those that
#: cannot be given.
SCORERS: dict[Grader, Callable[[str, Example, bool], dict[str, float]]] = {
    Grader.sql: lambda answer, example, _: sql.grade(answer, example.response, example.context),
    Grader.maths: lambda answer, example, _: maths.grade(answer, example.response),
    Grader.code: lambda answer, example, run_code: code.grade(
        answer, example.response, example.context, execute=run_code
    ),
    Grader.text: lambda answer, example, _: text.grade(answer, example.response),
}

#: Why an answer is not held to the score that decides.
_UNSCORED = {
    Grader.sql: "the reference does not run on its schema",
    Grader.maths: "the reference has no number",
    Grader.code: "the reference is no Python",
}
_RETURNS_NOTHING = "the reference returns nothing, or nothing certain, on every database"

#: So many programs run at once: each takes a core, and time is one of its limits.
_PROGRAMS = min(4, os.cpu_count() or 1)


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
    """``losses`` and ``samples`` are what the metrics are means of."""

    metrics: list[Metric]
    losses: list[ExampleLoss]
    samples: list[Sample]


def evaluate(
    model: Any,
    tokenizer: Any,
    held_out: Sequence[EncodedExample],
    *,
    graders: dict[str, Grader],
    prompt: PromptFormat,
    decoding: Decoding,
    loss_examples: int,
    generate_examples: int,
    answers: int,
    run_code: bool,
    batch_size: int,
    seed: int,
    in_step: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluated:
    """Measure a model on held-out examples, source by source in the order of their names.

    graders: one for each source. prompt: the format trained on. loss_examples, generate_examples:
    how many of each source, 0 for none; see ``select``. answers: how many are drawn to one
    question. run_code: run answers in Python against the tests of their examples (``code.grade``).
    progress: called with "loss", "answers" or "grading", the number done and the total. Processes
    of one run share the work, and all return the whole; ``in_step`` each does all of it, which a
    base in shares needs. ValueError and OSError where the sandbox cannot be had.
    """
    losses = shared_losses(
        model,
        select(held_out, loss_examples),
        batch_size=batch_size,
        in_step=in_step,
        progress=progress,
    )

    def graded(example: Example, asked: str, completion: Completion) -> Sample:
        return grade(example, asked, completion, graders[example.source], run_code=run_code)

    def samples_of(examples: Sequence[Example]) -> list[Sample]:
        prompts = [build_prompt(example, prompt, tokenizer) for example in examples]
        completions = generate(
            model,
            tokenizer,
            prompts,
            decoding,
            batch_size=batch_size,
            seed=seed,
            progress=_counted(progress, "answers", len(prompts)),
        )
        grading = _counted(progress, "grading", len(prompts))
        made: list[Sample] = []
        with ThreadPoolExecutor(_PROGRAMS) as threads:
            # The other graders are Python's own work, which threads would not hasten.
            in_order = threads.map if run_code else map
            for sample in in_order(graded, examples, map(text_of, prompts), completions):
                made.append(sample)
                if grading is not None:
                    grading(len(made))
        return made

    asked = [each.example for each in select(held_out, generate_examples) for _ in range(answers)]
    samples = shared_out(asked, samples_of, in_step=in_step)
    scores = average(samples)
    metrics = [*average_losses(losses), *overall_score(scores, graders), *scores]
    # A stable sort: within a source the loss first, then the scores in the grader's order.
    metrics.sort(key=lambda metric: metric.name.partition("/")[2])
    return Evaluated(metrics, losses, samples)


def shared_losses(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    batch_size: int,
    in_step: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[ExampleLoss]:
    """The losses of ``examples`` that have one; the other arguments are those of ``evaluate``."""

    def own(share: Sequence[EncodedExample]) -> list[ExampleLoss]:
        counted = _counted(progress, "loss", len(share))
        return held_out_loss(model, share, batch_size=batch_size, progress=counted)

    # One without a supervised token has no loss, which would put what is shared out of order.
    measured = [each for each in examples if each.supervised]
    return shared_out(measured, own, in_step=in_step)


def _counted(
    progress: Callable[[str, int, int], None] | None, what: str, total: int
) -> Callable[[int], None] | None:
    """What one part of the work calls with the number done; None where nobody asks."""
    return None if progress is None else lambda done: progress(what, done, total)


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


def grade(
    example: Example, prompt: str, completion: Completion, grader: Grader, *, run_code: bool
) -> Sample:
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
            **SCORERS[grader](completion.text, example, run_code),
            "stops": float(completion.stopped_by is StoppedBy.end_marker),
            "tokens": float(completion.tokens),
            **text.fluency(completion.text),
        },
    )


def average(samples: Sequence[Sample]) -> list[Metric]:
    """Mean scores by source; ``stops`` is the share that wrote the end marker.

    A score's n counts the questions that have it: several answers to one question are not
    independent, so their mean is one observation. Beside ``passes`` stands ``pass@k``, the chance
    that one of k answers to a question passes, for each k up to the number of answers.
    """
    collected: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        for name, score in sample.scores.items():
            questions = collected.setdefault(f"{name}/{sample.source}", {})
            questions.setdefault(sample.id, []).append(score)
    metrics = []
    for name, questions in collected.items():
        metrics.append(mean_metric(name, [fsum(each) / len(each) for each in questions.values()]))
        what, _, source = name.partition("/")
        if what == "passes":
            metrics += pass_at(source, list(questions.values()))
    return metrics


def unscored(samples: Sequence[Sample], graders: dict[str, Grader]) -> dict[str, dict[str, int]]:
    """How many questions the score that decides could not be given to, by source and why."""
    found: dict[str, dict[str, set[str]]] = {}
    scored = {
        (each.source, each.id) for each in samples if SCORES[graders[each.source]][0] in each.scores
    }
    for sample in samples:
        if (sample.source, sample.id) in scored:
            continue
        why = _UNSCORED[graders[sample.source]]
        if "executes" in sample.scores:
            why = _RETURNS_NOTHING
        found.setdefault(sample.source, {}).setdefault(why, set()).add(sample.id)
    return {
        source: {why: len(ids) for why, ids in reasons.items()} for source, reasons in found.items()
    }


def overall_score(scores: Sequence[Metric], graders: dict[str, Grader]) -> list[Metric]:
    """``score/all``: the mean of the sources' head scores, the first that their graders give.

    Sources weigh the same, however many questions of them were asked. Empty without scores, as is
    the standard error where one of them has none.
    """
    head = {f"{SCORES[grader][0]}/{source}" for source, grader in graders.items()}
    chosen = [metric for metric in scores if metric.name in head]
    if not chosen:
        return []
    errors = [metric.standard_error for metric in chosen if metric.standard_error is not None]
    return [
        Metric(
            "score/all",
            fsum(metric.value for metric in chosen) / len(chosen),
            hypot(*errors) / len(chosen) if len(errors) == len(chosen) else None,
            sum(metric.n for metric in chosen),
        )
    ]


def pass_at(source: str, questions: Sequence[Sequence[float]]) -> list[Metric]:
    """The metrics ``pass@k``, from which answers to each question passed (1) or did not (0).

    Chen et al. 2021, arXiv:2107.03374, eq. 1, for each k of ``PASS_AT`` up to the answers there
    are; the error is over questions.
    """
    fewest = min(map(len, questions))
    return [
        mean_metric(
            f"pass@{k}/{source}",
            [code.pass_at_k(len(each), round(fsum(each)), k) for each in questions],
        )
        for k in PASS_AT
        if k <= fewest
    ]
