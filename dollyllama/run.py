"""A run from its config to its record: the story, told top to bottom.

A run is a folder. ``run`` fills it file by file, so that a reader may open it at any moment and
finds it complete also when the run failed; ``dollyllama.restore`` makes a model of it again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from dollyllama import config, distributed, provenance, record, remote
from dollyllama.bars import stage_bar
from dollyllama.card import base_name, config_rows, model_card
from dollyllama.data.prepare import EmptySide, PreparedData, prepare, write_record
from dollyllama.data.show import count_table
from dollyllama.data.store import lengths_of
from dollyllama.data.tokens import EncodedExample
from dollyllama.evaluation.loss import average_losses
from dollyllama.evaluation.metric import Metric
from dollyllama.evaluation.suite import Evaluated, evaluate, select, shared_losses
from dollyllama.evaluation.table import compare_table
from dollyllama.explain import one_line
from dollyllama.fast.attach import fast_inference, left_out
from dollyllama.files import (
    locked,
    read_json_lines,
    read_signed_json,
    write_json,
    write_json_lines,
    write_signed_json,
    write_text,
)
from dollyllama.model.adapter import count_parameters, load_adapter, save_adapter
from dollyllama.model.load import load_tokenizer
from dollyllama.model.precision import dtype_census, products_in
from dollyllama.record import Status
from dollyllama.redact import redact
from dollyllama.restore import (
    check_adapter,
    check_base,
    choose_device,
    load_model,
    put_adapter,
    require_adapter,
    restore_merged,
)
from dollyllama.summary import columns, cost_rows, next_commands
from dollyllama.tracking import Tracker, costs, open_tracker
from dollyllama.training.budget import make_plan
from dollyllama.training.checkpoints import list_checkpoints
from dollyllama.training.fit import EndedEarly, FitResult, Pruned, fit
from dollyllama.weights import base_place


@dataclass(slots=True)
class Result:
    """What ``result.json`` holds. Metrics are by phase: ``before`` and ``after`` training.

    parameters: how many are trainable, and of how many. expected_memory_mib: the peak of training
    as told before it. seconds: by part of the run, over all its sessions; ``total`` is everything
    between its beginnings and its ends. files: digests of the record, once the run has ended.
    """

    status: Status = Status.running
    error: str | None = None
    metrics: dict[str, list[Metric]] = field(default_factory=dict)
    train: FitResult | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    expected_memory_mib: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def run(
    run_config: config.Run,
    folder: Path,
    *,
    trained: Path | None = None,
    expect_memory: bool = True,
    prune: Callable[[Path], str | None] | None = None,
) -> Result:
    """Train, evaluate and record one run in ``folder``; go on where it stopped if it holds one.

    trained: a finished run that differs in decoding and evaluation alone, whose adapter is taken
    over in place of training. expect_memory: whether to tell the peak of training beforehand, which
    takes a second or more. prune: asked whenever the loss was measured during training whether to
    go on with the run in this folder; what it returns is why not. Raises ValueError for what the
    user can mend, Diverged when the loss stops being a number, Pruned; the record in ``folder`` is
    complete either way. An interrupted run returns with that status.
    """
    record.check(folder)
    result = _previous_result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(run_config.device)
    with (
        locked(folder, f"{folder} is being trained by another process: wait for it"),
        _mirrored(run_config, folder, result) as mirror,
        _recorded(result, folder),
        _tracked(run_config, folder, result) as tracker,
    ):
        _remove_leftovers(folder)
        begun = bool(result.metrics or result.train or list_checkpoints(folder / "checkpoints"))
        origin = provenance.collect(
            device=str(device),
            seed=run_config.seed,
            base_model=str(base_place(run_config.model.path)),
            revision=run_config.model.revision,
        )
        if begun and (folder / "provenance.json").exists():
            check_base(run_config, folder, origin["base_model"])
        config.save(run_config, folder / "config.yaml")
        if mirror is not None:
            mirror.update()  # to fail before the work, where it cannot be written to
        earlier = _trained_before(result, folder)
        origin.update(earlier)
        write_json(folder / "provenance.json", origin)
        set_seed(run_config.seed)
        tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)

        with _timed(result, "prepare"), stage_bar("data") as progress:
            try:
                data = prepare(run_config.data, tokenizer, seed=run_config.seed, progress=progress)
            except EmptySide as error:
                write_record(error.prepared, folder)
                raise
        if begun:
            _check_data(data, folder)
        write_record(data, folder)
        print(f"{count_table(data.manifest)}\n")
        distributed.meet()

        with _timed(result, "load"):
            model = load_model(run_config, tokenizer, device)
        before = run_config.evaluation.before and "before" not in result.metrics
        distributed.from_first(_Course(before=before, train=not earlier))
        if before:
            with _timed(result, "evaluate_before"):
                _evaluate(run_config, model, tokenizer, data, "before", result, folder, tracker)

        if trained is not None:
            model = _take_over(trained, model, result, folder)
        elif earlier:
            model = load_adapter(model, folder / "adapter")
        else:
            model = _train(
                run_config,
                model,
                tokenizer,
                data,
                origin,
                result,
                folder,
                tracker,
                mirror,
                expect_memory=expect_memory,
                prune=None if prune is None else partial(prune, folder),
            )
            if result.status is Status.interrupted:
                distributed.meet()
                return result
        origin["adapter"] = provenance.describe_adapter(folder / "adapter")
        write_json(folder / "provenance.json", origin)
        _write_result(result, folder)
        distributed.meet()

        with _timed(result, "evaluate_after"):
            if run_config.evaluation.merged:
                model = restore_merged(run_config, folder, tokenizer)
            _evaluate(run_config, model, tokenizer, data, "after", result, folder, tracker)
        tracker.summary(costs(asdict(result)))
        _write_card(run_config, folder, data, result, origin)
        if run_config.tracking.artifacts:
            tracker.artifact(f"adapter-{folder.name}", "adapter", folder / "adapter")
        result.status = Status.finished
    print(_closing(run_config, result, folder))
    return result


@dataclass(frozen=True, slots=True)
class _Course:
    """What is left of a run, as its first process tells the others."""

    before: bool
    train: bool


def follow(run_config: config.Run, folder: Path) -> None:
    """Take part in a run of several processes, whose first one does ``run`` and keeps the record.

    folder: the first one's, on a disk that all share; nothing is written to it.
    """
    device = choose_device(run_config.device)
    set_seed(run_config.seed)
    tokenizer = load_tokenizer(run_config.model.path, run_config.model.revision)
    distributed.meet()  # the first has prepared the data
    data = prepare(run_config.data, tokenizer, seed=run_config.seed)
    model = load_model(run_config, tokenizer, device)
    course: _Course = distributed.from_first()
    if course.before:
        _measure_all(run_config, model, tokenizer, data)
    if course.train:
        model = put_adapter(run_config, model)
        trained = _fit(run_config, model, tokenizer, data, folder, lambda *_: None)
        distributed.meet()  # the first has written what it keeps
        if trained.interrupted:
            return
    else:
        distributed.meet()
        model = load_adapter(model, folder / "adapter")
    _measure_all(run_config, model, tokenizer, data)


def measure(
    run_config: config.Run, model: Any, tokenizer: Any, held_out: Sequence[EncodedExample]
) -> Evaluated:
    """Evaluate a model on held-out examples as the config says."""
    evaluation = run_config.evaluation
    with stage_bar("evaluation") as progress, fast_inference(model):
        return evaluate(
            model,
            tokenizer,
            held_out,
            graders={name: source.grader for name, source in run_config.data.sources.items()},
            prompt=run_config.data.prompt,
            decoding=run_config.decoding,
            loss_examples=evaluation.loss_examples,
            generate_examples=evaluation.generate_examples,
            answers=evaluation.answers,
            run_code=evaluation.run_code,
            batch_size=evaluation.batch_size,
            seed=run_config.seed,
            in_step=run_config.model.sharded,
            progress=progress,
        )


# --- parts of the story -------------------------------------------------------------------------


def _train(
    run_config: config.Run,
    base: Any,
    tokenizer: Any,
    data: PreparedData,
    origin: dict[str, Any],
    result: Result,
    folder: Path,
    tracker: Tracker,
    mirror: remote.Mirror | None,
    *,
    expect_memory: bool,
    prune: Callable[[], str | None] | None,
) -> Any:
    """Put an adapter on the base, train and save it; not saved when the run is interrupted."""
    model = put_adapter(run_config, base)
    trainable, total = count_parameters(model)
    result.parameters = {"trainable": trainable, "total": total}
    origin["dtypes"] = dtype_census(model)
    if run_config.precision.autocast:
        origin["products"] = str(products_in(torch.bfloat16, model.device)).removeprefix("torch.")
    write_json(folder / "provenance.json", origin)
    if expect_memory:
        # Here, because cells do without it, and it loads much that nothing else needs.
        from dollyllama.training.memory import expected_peak_mib

        result.expected_memory_mib = expected_peak_mib(
            run_config, tokenizer, data.train, model.device
        )
    print(f"{_opening(run_config, model, data, result)}\n")
    with _timed(result, "train"):
        saved = None if mirror is None else mirror.try_update
        result.train = _fit(
            run_config, model, tokenizer, data, folder, tracker.log, saved=saved, prune=prune
        )
    if result.train.interrupted:
        result.status = Status.interrupted
    else:
        save_adapter(model, tokenizer, folder / "adapter")
    return model


def _fit(
    run_config: config.Run,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    folder: Path,
    log: Callable[[int, dict[str, float]], None],
    *,
    saved: Callable[[], None] | None = None,
    prune: Callable[[], str | None] | None = None,
) -> FitResult:
    return fit(
        model,
        tokenizer,
        data.train,
        trainer=run_config.trainer,
        optimizer=run_config.optimizer,
        schedule=run_config.schedule,
        autocast=run_config.precision.autocast,
        seed=run_config.seed,
        folder=folder,
        log=log,
        resume=(folder / "checkpoints").is_dir(),
        evaluate=_loss_by_source(run_config, model, data.held_out),
        prune=prune,
        saved=saved,
    )


def _take_over(trained: Path, base: Any, result: Result, folder: Path) -> Any:
    """Put the adapter that another run has trained on the base, and its record in this one's."""
    check_adapter(trained)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    shutil.copytree(require_adapter(trained), folder / "adapter", copy_function=os.link)
    theirs = _previous_result(trained)
    result.parameters, result.train = theirs.parameters, theirs.train
    return load_adapter(base, folder / "adapter")


def _trained_before(result: Result, folder: Path) -> dict[str, Any]:
    """What an earlier session recorded of the adapter, if it trained it to the end; else nothing.

    Nothing too when its files are no longer those that were trained: then they are made again.
    """
    if result.train is None or result.train.interrupted:
        return {}
    try:
        origin = record.read(folder, "provenance.json", "base_model")
    except ValueError:
        return {}
    names = ("adapter", "dtypes", "products")
    kept: dict[str, Any] = {name: origin[name] for name in names if name in origin}
    here = provenance.describe_adapter(folder / "adapter")
    return kept if here and kept.get("adapter") == here else {}


def _check_data(data: PreparedData, folder: Path) -> None:
    """ValueError when a run that began with other data is to go on with these."""
    if not (folder / "data.json").exists():
        return
    before = record.read(folder, "data.json", "fingerprint")
    if before["fingerprint"] != data.manifest["fingerprint"]:
        raise ValueError(
            f"{folder} began with other data (or another version of what prepares it) than "
            f"{', '.join(sorted(data.manifest['sources']))} are now: put the files back as they "
            f"were, or start a new run"
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had half written: nobody else writes to a locked folder."""
    patterns = (".*.tmp", ".*.old", ".merged-*", ".pilot-*", "checkpoints/.checkpoint-*")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _evaluate(
    run_config: config.Run,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    phase: str,
    result: Result,
    folder: Path,
    tracker: Tracker,
) -> None:
    """Measure the model, and put metrics and samples where they belong."""
    measured = _measure_all(run_config, model, tokenizer, data)
    if measured is None:
        return
    result.metrics[phase] = measured.metrics
    step = result.train.steps if result.train else 0
    values = {each.name: each.value for each in measured.metrics if each.value is not None}
    tracker.log(step, values)
    _write_phase(folder / "losses.jsonl", phase, measured.losses)
    samples = _write_phase(folder / "samples.jsonl", phase, measured.samples)
    tracker.table(step, f"samples/{phase}", samples)
    if phase == "after":
        tracker.summary(values)
    _write_result(result, folder)


def _measure_all(
    run_config: config.Run, model: Any, tokenizer: Any, data: PreparedData
) -> Evaluated | None:
    """What all processes measure together; None where nothing is to be measured."""
    if not run_config.evaluation.loss_examples and not run_config.evaluation.generate_examples:
        return None
    return measure(run_config, model, tokenizer, data.held_out)


def _write_phase(path: Path, phase: str, measured: Sequence[Any]) -> list[dict[str, Any]]:
    """Put what was measured in a phase in place of what the file has of it; return its rows."""
    rows = [{"phase": phase, **asdict(each)} for each in measured]
    earlier = read_json_lines(path) if path.exists() else []
    if not all(isinstance(row, dict) and "phase" in row for row in earlier):
        raise ValueError(f"{path} is damaged: a row has no phase")
    if rows or earlier:
        write_json_lines(path, [*(row for row in earlier if row["phase"] != phase), *rows])
    return rows


def _loss_by_source(
    run_config: config.Run, model: Any, held_out: Sequence[EncodedExample]
) -> Callable[[int], dict[str, float]] | None:
    """What is measured every ``trainer.eval_steps``; None when nothing is."""
    if run_config.trainer.eval_steps is None:
        return None
    evaluation = run_config.evaluation
    examples = select(held_out, evaluation.loss_examples)

    def evaluate_loss(step: int) -> dict[str, float]:
        with fast_inference(model):
            losses = shared_losses(
                model,
                examples,
                batch_size=evaluation.batch_size,
                in_step=run_config.model.sharded,
            )
        return {each.name: each.value for each in average_losses(losses)}

    return evaluate_loss


def _opening(run_config: config.Run, model: Any, data: PreparedData, result: Result) -> str:
    """What is about to happen, before it takes its time."""
    total = data.manifest["total"]["tokens"]["train"]
    steps = []
    if run_config.trainer.max_seconds is None:  # only a pilot can tell otherwise
        plan = make_plan(lengths_of(data.train), run_config.trainer, seed=run_config.seed)
        steps = [("steps", f"{plan.steps:,}")]
    trainable, parameters = result.parameters["trainable"], result.parameters["total"]
    return columns(
        [
            *config_rows(asdict(run_config)),
            (
                "examples",
                (
                    f"{total['examples']:,} with {total['tokens']:,} tokens, "
                    f"{total['masked'] / total['tokens']:.0%} of them without loss, "
                    f"{total['truncated'] / total['examples']:.1%} cut short"
                ),
            ),
            ("trainable", f"{trainable:,} of {parameters:,} ({trainable / parameters:.2%})"),
            *(
                [("peak memory", f"about {expected:,.0f} MiB")]
                if (expected := result.expected_memory_mib)
                else []
            ),
            *([("slower path", ", ".join(slow))] if (slow := left_out(model)) else []),
            *steps,
        ]
    )


def _closing(run_config: config.Run, result: Result, folder: Path) -> str:
    parts = [columns(cost_rows(asdict(result)))]
    if "after" in result.metrics:
        parts.append(
            compare_table(
                result.metrics.get("before"),
                result.metrics["after"],
                primary=run_config.evaluation.primary,
            )
        )
    parts.append("\n".join(next_commands(folder, result.status, run_config.tracking.mirror)))
    return "\n" + "\n\n".join(parts)


def _write_card(
    run_config: config.Run,
    folder: Path,
    data: PreparedData,
    result: Result,
    origin: dict[str, Any],
) -> None:
    card = model_card(
        asdict(run_config), data=data.manifest, result=asdict(result), provenance=origin
    )
    write_text(folder / "adapter" / "README.md", card)


# --- the record ---------------------------------------------------------------------------------


def _previous_result(folder: Path) -> Result:
    """What an earlier session of this run measured."""
    path = folder / "result.json"
    if not path.exists():
        return Result()
    values = read_signed_json(path)
    try:
        metrics = {
            phase: [Metric(**metric) for metric in metrics]
            for phase, metrics in values["metrics"].items()
        }
        train = None if values["train"] is None else FitResult(**values["train"])
        return Result(
            metrics=metrics,
            train=train,
            parameters=values["parameters"],
            expected_memory_mib=values["expected_memory_mib"],
            seconds=values["seconds"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))}") from None


def _write_result(result: Result, folder: Path) -> None:
    write_signed_json(folder / "result.json", asdict(result))


@contextmanager
def _recorded(result: Result, folder: Path) -> Iterator[None]:
    """Keep ``result.json`` true, however the run ends."""
    result.status, result.error = Status.running, None
    _write_result(result, folder)
    try:
        with _timed(result, "total"):
            yield
    except BaseException as error:
        result.error = str(redact(f"{type(error).__name__}: {error}"))
        result.status = Status.failed
        if isinstance(error, EndedEarly):
            result.status, result.train = Status.diverged, error.result
            if isinstance(error, Pruned):
                result.status, result.error = Status.pruned, str(error)
        elif isinstance(error, KeyboardInterrupt):
            result.status, result.error = Status.interrupted, None
        raise
    finally:
        result.files = record.describe(folder)
        _write_result(result, folder)


@contextmanager
def _mirrored(
    run_config: config.Run, folder: Path, result: Result
) -> Iterator[remote.Mirror | None]:
    """The run's mirror, if it has one, as the folder is at the end, however the run ends.

    ValueError when a finished run could not be copied whole.
    """
    mirror = remote.mirror_of(folder, run_config.tracking.mirror)
    try:
        yield mirror
    finally:
        # One that could not be written to at the beginning is not tried again.
        if mirror is not None and mirror.sent and result.status is not Status.finished:
            mirror.try_update()
    if mirror is not None and result.status is Status.finished:
        try:
            mirror.update()
        except ValueError as error:
            again = f"{record.resume_command(folder, run_config.tracking.mirror)} copies it again"
            raise ValueError(f"{folder} is finished, but {error}; {again}") from error


@contextmanager
def _tracked(run_config: config.Run, folder: Path, result: Result) -> Iterator[Tracker]:
    """The run's log; W&B shows the run as finished only when it is."""
    tracking = run_config.tracking
    values = asdict(run_config)
    tracker = open_tracker(
        folder,
        mode=tracking.wandb,
        project=tracking.project,
        entity=tracking.entity,
        group=tracking.group,
        tags=tracking.tags,
        job_type="train",
        name=f"{base_name(run_config.model.path).rpartition('/')[2]} {folder.name}",
        # Tracking may be given anew when a run is resumed, and is the same run all the same.
        run_id=config.fingerprint([{**values, "tracking": None}, str(folder.resolve())]),
        config=values,
    )
    failed, interrupted = True, False
    try:
        yield tracker
        failed = result.status is not Status.finished
        interrupted = result.status is Status.interrupted
    except KeyboardInterrupt:
        interrupted = True
        raise
    except Pruned:
        failed = False
        raise
    finally:
        tracker.finish(failed, interrupted=interrupted)


@contextmanager
def _timed(result: Result, part: str) -> Iterator[None]:
    """Add the seconds that a part takes to those of earlier sessions."""
    started = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - started
        result.seconds[part] = round(result.seconds.get(part, 0.0) + spent, 3)
