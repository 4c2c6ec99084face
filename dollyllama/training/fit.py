"""Settings and rows to a trained adapter: transformers' Trainer, composed from parts.

Trainer gets the micro-batches of the whole run as one epoch, decided beforehand, and runs its loop
over them; ``loop`` does what is due after a step. A resumed run is the same loop over the
micro-batches that are left, from restored weights, optimizer and schedule. The processes of one run
share the micro-batches of each step: with more of them it is the same run, and faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from dollyllama import config, distributed
from dollyllama.data.batches import Batch, collate_packed, collate_padded
from dollyllama.data.store import lengths_of
from dollyllama.data.tokens import EncodedExample
from dollyllama.fast.attach import fast_path
from dollyllama.interrupt import interruptible
from dollyllama.model.attention import row_attention
from dollyllama.model.shard import shares
from dollyllama.training.budget import make_plan
from dollyllama.training.loop import Diverged, EndedEarly, Log, Loop, Pruned
from dollyllama.training.loss import supervision
from dollyllama.training.optimizers import build_optimizer, build_schedule
from dollyllama.training.pilot import within_seconds
from dollyllama.training.progress import peak_memory_mib

__all__ = ["Diverged", "EndedEarly", "FitResult", "Pruned", "fit"]

#: Rows that tell a checkpoint's data from others, beside the lengths of all.
_TOLD_BY = 256


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training did, what was done before a resumption included.

    tokens: the rows' own, without padding; supervised_tokens: those with loss. seconds: the
    training loop alone, without evaluations. loss: mean per token since the line logged before the
    last, null when no step was taken. peak_memory_mib: allocated on a GPU, resident on a CPU.
    """

    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_mib: float
    loss: float | None
    interrupted: bool


def fit(
    model: Any,
    tokenizer: Any,
    rows: Sequence[EncodedExample],
    *,
    trainer: config.Trainer,
    optimizer: config.Optimizer,
    schedule: config.Schedule,
    autocast: bool,
    seed: int,
    folder: Path,
    log: Log,
    resume: bool,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    prune: Callable[[], str | None] | None = None,
    saved: Callable[[], None] | None = None,
) -> FitResult:
    """Train the trainable parameters of ``model`` on ``rows``; it comes back in evaluation mode.

    The loss of an optimizer step is the mean over its supervised tokens, however they are spread
    over micro-batches. Every ``trainer.eval_steps`` steps ``evaluate`` is called, and what it
    returns is logged; it leaves no trace in training. ``prune`` is asked behind it, before the last
    step, whether to go on: what it returns is why not. With ``trainer.checkpoint_steps``, a
    checkpoint is written at that interval and after the last step, below ``folder/checkpoints``,
    and ``saved`` is called.
    resume: go on from the newest checkpoint there; from the beginning where there is none.

    SIGINT or SIGTERM ends training after the step, with a checkpoint and ``interrupted`` set.
    Raises Diverged when the loss becomes NaN or infinite, after logging it (on a GPU, which is not
    waited for at every step, with the next line that is due), Pruned for a reason to end.
    ValueError for what settings or folder make impossible, ConnectionError when another process of
    the run is gone.
    """
    if trainer.max_seconds is not None:

        def pilot(trainer: config.Trainer, folder: Path, log: Log) -> FitResult:
            return fit(
                model,
                tokenizer,
                rows,
                trainer=trainer,
                optimizer=optimizer,
                schedule=schedule,
                autocast=autocast,
                seed=seed,
                folder=folder,
                log=log,
                resume=False,
            )

        trainer = within_seconds(trainer, model, folder, pilot)
    lengths = lengths_of(rows)
    plan = make_plan(lengths, trainer, seed=seed)
    device: torch.device = model.device
    torch_optimizer = build_optimizer(model.parameters(), optimizer)
    lr_schedule = build_schedule(torch_optimizer, schedule, steps=plan.steps)
    # What a checkpoint hangs on, each under the name by which a user knows it.
    settings = {
        "the rows": [lengths, *_some_of(rows)],
        "the batches (trainer, seed)": asdict(plan),
        **{f"optimizer.{key}": value for key, value in asdict(optimizer).items()},
        **{f"schedule.{key}": value for key, value in asdict(schedule).items()},
    }
    loop = Loop(
        model=model,
        optimizer=torch_optimizer,
        schedule=lr_schedule,
        plan=plan,
        rows=rows,
        trainer=trainer,
        folder=folder,
        settings={key: config.fingerprint(value) for key, value in settings.items()},
        log=log,
        evaluate=evaluate,
        prune=prune,
        seed=seed,
        saved=saved,
    )
    loop.begin(resume=resume)
    if loop.step < plan.steps:
        collate = _collator(trainer.batching, tokenizer.pad_token_id)
        left = plan.dealt(loop.step, distributed.processes())
        arguments = _arguments(
            trainer,
            steps=plan.steps - loop.step,
            device=device,
            use_cache=model.config.use_cache,
            autocast=autocast,
            seed=seed,
            folder=folder,
        )
        with ExitStack() as during:
            loop.stop_requested = during.enter_context(interruptible())
            during.enter_context(row_attention(model, longest=max(map(_length, rows))))
            during.enter_context(fast_path(model))
            during.enter_context(loop.loss.attached(model))
            if trainer.activation_checkpointing:
                during.callback(model.activation_checkpointing_disable)
            hf_trainer = Trainer(
                model=model,
                args=arguments,
                data_collator=_only,
                train_dataset=_Batches(rows, left, collate, loop.sources),
                compute_loss_func=loop.loss,
                callbacks=[loop],
                optimizers=(torch_optimizer, lr_schedule),
            )
            hf_trainer.remove_callback(PrinterCallback)
            during.callback(_drop_autocast, model)
            if own := shares(model):
                hf_trainer.model_wrapped = _without_shares(hf_trainer, model, own)
            during.callback(loop.close)
            try:
                with distributed.told_of_the_dead():
                    hf_trainer.train()
                loop.end()
            except EndedEarly as error:
                error.result = _result(loop, device)
                raise
    model.eval()
    return _result(loop, device)


def _result(loop: Loop, device: torch.device) -> FitResult:
    tokens = loop.tokens
    return FitResult(
        steps=loop.step,
        tokens=tokens,
        supervised_tokens=loop.supervised_tokens,
        seconds=loop.seconds,
        tokens_per_second=tokens / loop.seconds if loop.seconds else 0.0,
        peak_memory_mib=peak_memory_mib(device),
        loss=loop.last_loss,
        interrupted=loop.interrupted,
    )


def _some_of(rows: Sequence[EncodedExample]) -> list[Any]:
    """Tokens and places of loss of rows from all over: what other data would not have alike."""
    every = max(1, len(rows) // _TOLD_BY)
    return [[list(map(int, row.ids)), row.spans] for row in rows[::every]]


def _length(row: EncodedExample) -> int:
    return len(row.ids)


def _arguments(
    trainer: config.Trainer,
    *,
    steps: int,
    device: torch.device,
    use_cache: bool,
    autocast: bool,
    seed: int,
    folder: Path,
) -> TrainingArguments:
    """Trainer's loop and nothing else of it: no printing, logging, saving, reporting, sampling."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the data set is a batch already
        gradient_accumulation_steps=trainer.accumulation // distributed.processes(),
        train_sampling_strategy="sequential",
        max_grad_norm=trainer.max_grad_norm or 0.0,
        activation_checkpointing=trainer.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=autocast,
        use_cpu=device.type == "cpu",
        seed=seed,
        use_cache=use_cache,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
    )
    # With several GPUs in sight Trainer would split batches over them; the model is on one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _collator(
    batching: config.Batching, pad_id: int | None
) -> Callable[[Sequence[EncodedExample]], dict[str, Any]]:
    if batching is config.Batching.packed:
        return collate_packed
    if pad_id is None:
        raise ValueError(
            f"trainer.batching={batching} pads, and the tokenizer has no pad token: give it one, "
            "or use trainer.batching=packed"
        )
    return partial(collate_padded, pad_id=pad_id)


class _Batches(Dataset[dict[str, Any]]):
    """Micro-batches as items, collated when they are asked for."""

    def __init__(
        self,
        rows: Sequence[EncodedExample],
        batches: Sequence[Batch],
        collate: Callable[[Sequence[EncodedExample]], dict[str, Any]],
        sources: Sequence[str],
    ) -> None:
        self._rows = rows
        self._batches = batches
        self._collate = collate
        self._sources = sources

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> dict[str, Any]:
        rows = [self._rows[row] for row in self._batches[number]]
        if not rows:  # one for a process that would else be missed where all add up gradients
            rows = [replace(self._rows[0], spans=())]
        batch = self._collate(rows)
        places = supervision(rows, batch["labels"], batch.pop("row_places", None), self._sources)
        return {**batch, **places, "use_cache": False}


def _without_shares(trainer: Trainer, model: Any, shares: Sequence[str]) -> Any:
    """The model in torch's data parallelism, which is to leave shares of the base alone.

    accelerate refuses a model with shares, so what it would do is done here.
    """
    parallel = torch.nn.parallel.DistributedDataParallel
    parallel._set_params_and_buffers_to_ignore_for_model(model, shares)  # type: ignore[no-untyped-call]
    prepared = trainer.accelerator.prepare_model(
        model, device_placement=False, evaluation_mode=True
    )
    return parallel(prepared)


def _drop_autocast(model: Any) -> None:
    """Undo what accelerate did to ``model``: it shadows ``forward`` by one under autocast."""
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(name, None)


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return item
