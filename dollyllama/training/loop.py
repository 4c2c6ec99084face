"""What goes with each step of training: logging, evaluation, checkpoints, stopping.

Trainer's own logging knows no sources and its checkpoints may be half written; so a callback does
these here, at points of Trainer's loop where the state is whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from dollyllama import config, distributed
from dollyllama.data.store import lengths_of, sources_of
from dollyllama.data.tokens import EncodedExample
from dollyllama.training.budget import Plan
from dollyllama.training.checkpoints import (
    list_checkpoints,
    load_newest,
    save_checkpoint,
)
from dollyllama.training.loss import SupervisedLoss
from dollyllama.training.profile import StepProfiler
from dollyllama.training.progress import Stopwatch, open_bar, peak_memory_mib

#: Called with a step and named values to log.
Log = Callable[[int, dict[str, float]], None]


class EndedEarly(Exception):  # noqa: N818
    """Training is over before its last step.

    result: what was done before, a FitResult, once ``fit`` raises it.
    """

    result: Any = None


class Diverged(EndedEarly):
    """The training loss is no finite number any more."""


class Pruned(EndedEarly):
    """There is no use in going on, by what was measured on the way."""


class Loop(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Follows Trainer's loop and does what is due after each step.

    step: how many steps are done, those before a resumption included. seconds: how long they took,
    without evaluations. last_loss: as last logged. interrupted: whether it was asked to
    stop, after the last step too.
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Optimizer,
        schedule: LambdaLR,
        plan: Plan,
        rows: Sequence[EncodedExample],
        trainer: config.Trainer,
        folder: Path,
        settings: dict[str, str],
        log: Log,
        evaluate: Callable[[int], dict[str, float]] | None,
        prune: Callable[[], str | None] | None,
        seed: int,
        saved: Callable[[], None] | None,
    ) -> None:
        self.sources = sorted(set(sources_of(rows)))
        self.loss = SupervisedLoss(self.sources, model.device)
        self.step = 0
        self.seconds = 0.0
        self.last_loss: float | None = None
        self.interrupted = False
        self.stop_requested: Callable[[], bool] = lambda: False
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._plan = plan
        self._rows = rows
        self._lengths = lengths_of(rows)
        self._trainer = trainer
        self._folder = folder
        self._settings = settings
        self._log = log
        self._evaluate = evaluate
        self._prune = prune
        self._seed = seed
        self._batch = 0  # of this process's in the step
        self._saved = saved
        self._since = 0  # the step of the line logged last
        self._logged_seconds = 0.0
        self._watch = Stopwatch()
        self._attention = model.config._attn_implementation
        self._profiler: StepProfiler | None = None
        self._bar: Any = None

    def begin(self, *, resume: bool) -> None:
        """Restore the newest checkpoint, or see that there is none to be overwritten."""
        folder = self._folder / "checkpoints"
        found = None
        if distributed.is_first():
            if resume:
                found = load_newest(folder)
            elif list_checkpoints(folder):
                raise ValueError(
                    f"{folder} holds checkpoints of an earlier run: resume it with "
                    f"resume={self._folder}, or remove them to start anew"
                )
        found = distributed.from_first(found)
        if found is not None:
            self._restore(*found)

    @property
    def tokens(self) -> int:
        """Tokens of the steps done, padding not counted."""
        return self._tokens(1, self.step)

    @property
    def supervised_tokens(self) -> int:
        """Tokens with loss of the steps done."""
        return sum(self._supervised(1, self.step).values())

    def end(self) -> None:
        """Serve a request to stop that came after the last step: what follows training is long."""
        if any(distributed.from_all(self.stop_requested())) and not self.interrupted:
            self.interrupted = True
            self._save()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    # What Trainer calls, in the order of its loop.

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self._trainer.profile and distributed.is_first():
            self._profiler = StepProfiler(
                self._folder,
                steps=self._plan.steps,
                done=self.step,
                device=self._model.device,
            )
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._model.device)
        self._bar = open_bar(steps=self._plan.steps, done=self.step)
        self._watch = Stopwatch(self.seconds)
        self._logged_seconds = self.seconds

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._batch = 0
        self._begin_batch()
        if self._profiler is not None:
            self._profiler.before(self.step + 1)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._batch += 1
        self._begin_batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step += 1
        self._bar.update()
        last = self.step == self._plan.steps
        # On a GPU a look at the loss waits for it, so there it is taken only with a line to log.
        finite = self._model.device.type == "cuda" or self._loss_is_finite()
        told = distributed.from_all((self.stop_requested(), finite))
        self.interrupted = any(stop for stop, _ in told)
        finite = all(fine for _, fine in told)
        if self._profiler is not None:
            self._profiler.after(self.step, stopping=last or self.interrupted)
        if last or self.interrupted or not finite or self.step % self._trainer.logging_steps == 0:
            control.should_log = True  # Trainer then calls on_log, with the gradient's norm
        else:
            self._after(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "grad_norm" not in logs:  # Trainer's own line at the end of training
            return
        values = self._line(logs)
        self._log(self.step, values)
        self.seconds = self._watch.seconds
        for name in ("train/loss", "train/grad_norm"):
            self._require_finite(name, values[name])
        self.last_loss = values["train/loss"]
        self._bar.set_postfix_str(
            f"loss {self.last_loss:.3f}, {values['train/tokens_per_second']:,.0f} tokens/s, "
            f"{values['memory/peak_mib']:,.0f} MiB"
        )
        self._after(control)

    def _after(self, control: Any) -> None:
        """Evaluate and save where this step is one for it, and stop when asked to."""
        trainer = self._trainer
        if (
            self._evaluate is not None
            and trainer.eval_steps is not None
            and self.step % trainer.eval_steps == 0
        ):
            with self._watch.paused(), self._outside_training():
                self._log(self.step, self._evaluate(self.step))
            self.seconds = self._watch.seconds
            last = self.step == self._plan.steps
            if self._prune is not None and not last and (reason := self._prune()) is not None:
                raise Pruned(reason)
        self.seconds = self._watch.seconds
        interval = trainer.checkpoint_steps
        at_interval = interval is not None and (
            self.step % interval == 0 or self.step == self._plan.steps
        )
        if at_interval or self.interrupted:
            self._save()
        if self.interrupted:
            control.should_training_stop = True
        self.seconds = self._watch.seconds

    def _line(self, logs: dict[str, Any]) -> dict[str, float]:
        sums = self._of_all(self.loss.drain())
        counts = self._supervised(self._since + 1, self.step)
        seconds = self._watch.seconds
        values = {
            "train/loss": sum(sums) / sum(counts.values()),
            "train/lr": float(logs["learning_rate"]),
            "train/grad_norm": float(logs["grad_norm"]),
            "train/epoch": self._plan.epochs_after(self.step),
            "train/tokens_per_second": self._tokens(self._since + 1, self.step)
            / (seconds - self._logged_seconds),
            "memory/peak_mib": peak_memory_mib(self._model.device),
        }
        for source, total in zip(self.sources, sums, strict=True):
            if counts[source]:
                values[f"train/loss/{source}"] = total / counts[source]
        self._since, self._logged_seconds = self.step, seconds
        return values

    def _begin_batch(self) -> None:
        """Draw what a micro-batch drops out from its number in the run alone.

        So it is the same whoever computes it, in a run that goes on and between processes.
        """
        number = self.step * self._plan.accumulation + distributed.number()
        number += self._batch * distributed.processes()
        state = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    @staticmethod
    def _of_all(sums: Sequence[float]) -> list[float]:
        """Losses by source, over the micro-batches of all processes."""
        return [math.fsum(each) for each in zip(*distributed.from_all(sums), strict=True)]

    def _loss_is_finite(self) -> bool:
        return bool(self.loss.sums.isfinite().all())

    def _require_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        raise Diverged(
            f"{name} is {value} at step {self.step} of {self._plan.steps}: lower optimizer.lr "
            f"(now {self._schedule.base_lrs[0]:g}), set trainer.max_grad_norm (now "
            f"{self._trainer.max_grad_norm}) or raise schedule.warmup_ratio"
        )

    def _tokens(self, first: int, last: int) -> int:
        """Tokens of the steps from ``first`` to ``last``, padding not counted."""
        return sum(self._lengths[row] for row in self._plan.rows_of(first, last))

    def _supervised(self, first: int, last: int) -> Counter[str]:
        """Tokens with loss of these steps, by source."""
        counts: Counter[str] = Counter()
        for row in map(self._rows.__getitem__, self._plan.rows_of(first, last)):
            counts[row.example.source] += row.supervised
        return counts

    @contextmanager
    def _outside_training(self) -> Iterator[None]:
        """The model as it is outside of ``fit``."""
        autocast_forward = self._model.__dict__.pop("forward", None)
        attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(self._attention)
        try:
            yield
        finally:
            self._model.set_attn_implementation(attention)
            if autocast_forward is not None:
                self._model.forward = autocast_forward

    def _save(self) -> None:
        sums = torch.tensor(self._of_all(self.loss.sums.tolist()))
        self._require_finite("train/loss", float(sums.sum()))
        if not distributed.is_first():
            return
        trainable = {
            name: parameter.detach()
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        state = {
            "settings": self._settings,
            "step": self.step,
            "since": self._since,
            "sums": sums,
            "loss": self.last_loss,
            "seconds": self.seconds,
            "trainable": trainable,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        keep = self._trainer.keep_checkpoints or 1
        save_checkpoint(self._folder / "checkpoints", self.step, state, keep=keep)
        if self._saved is not None:
            with self._watch.paused():
                self._saved()

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        here = {
            name: list(parameter.shape)
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        there = {name: list(tensor.shape) for name, tensor in state["trainable"].items()}
        changed = sorted(
            key for key, value in self._settings.items() if state["settings"].get(key) != value
        )
        if here != there:
            changed.append("the adapter's parameters (lora)")
        if changed:
            raise ValueError(
                f"{path} was written under another config: {', '.join(changed)} differ; resume "
                f"with the run's own config.yaml, or start a new run"
            )
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state["trainable"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if distributed.is_first():
            self.loss.sums.copy_(state["sums"])
        self.step = state["step"]
        self._since = state["since"]
        self.last_loss = state["loss"]
        self.seconds = state["seconds"]
