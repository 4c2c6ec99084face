"""Memory of training known beforehand: the very step of a run, on tensors without numbers.

No formula says what a layer keeps for its backward pass. The model is built on the meta device,
gets the run's adapter and becomes fake tensors (``fake``); one micro-batch then goes forwards and
backwards through the code that trains, and what is alive is counted as tensors come and go. It
takes seconds, for a model of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dollyllama import config, preflight
from dollyllama.config import LoraVariant, OptimizerName
from dollyllama.data.batches import collate_packed, collate_padded, plan_epoch
from dollyllama.data.example import Example
from dollyllama.data.store import lengths_of
from dollyllama.data.tokens import EncodedExample
from dollyllama.explain import one_line
from dollyllama.fast.attach import fast_path
from dollyllama.model.adapter import attach_adapter
from dollyllama.model.attention import row_attention
from dollyllama.model.empty import empty_base
from dollyllama.model.load import read_model_config
from dollyllama.model.precision import upcast
from dollyllama.training.fake import Alive, as_on_a_gpu, make_fake
from dollyllama.training.loss import SupervisedLoss, supervision
from dollyllama.training.progress import peak_memory_mib

_CPU = torch.device("cpu")
#: Pages of libraries that are first used in training: measured, on Linux.
_STILL_TO_LOAD = 24 * 2**20


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the moment of a step when most are in use.

    weights: the base's, scales of quantised ones included. activations: all else that is alive in
    the forward and backward pass then, gradients and weights dequantised for a product included.
    optimizer: its state, less what is in pages that can leave a GPU. held: what a CPU's allocator
    holds beyond that (``heap``); 0 on a GPU.
    """

    weights: int
    adapter: int
    optimizer: int
    activations: int
    held: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.optimizer + self.activations + self.held


class DryRun:
    """The model of a run without its numbers, to try micro-batches on.

    on_gpu: whether it is to train as on a GPU, whatever there is here. ValueError when the adapter
    does not fit the model, or the model does more than tensors without numbers can.
    """

    def __init__(self, run: config.Run, tokenizer: Any, *, on_gpu: bool) -> None:
        self._run = run
        self._on_gpu = on_gpu
        self._pad_id = tokenizer.pad_token_id
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with _known_beforehand(run):
            self._model = self._build(len(tokenizer))
            with self._fake:
                self._tensors = make_fake(self._model)

    def _build(self, rows: int) -> Any:
        """The base with its adapter on the meta device. rows: of the embeddings at least."""
        run = self._run
        path, revision = run.model.path, run.model.revision
        folder = preflight.model_folder(path, revision)
        model = empty_base(
            read_model_config(folder or path, revision),
            dtype=run.model.dtype,
            quantization=run.quantization,
            rows=rows,
        )
        upcast(model, run.precision.upcast)
        # PiSSA differs from LoRA in where its matrices start, and that needs the base's numbers.
        pissa = run.lora.variant is LoraVariant.pissa
        with torch.device("meta"):
            return attach_adapter(
                model,
                r=run.lora.r,
                alpha=run.lora.alpha,
                dropout=run.lora.dropout,
                variant=LoraVariant.lora if pissa else run.lora.variant,
                targets=run.lora.target_modules,
                seed=run.seed,
            )

    def estimate(self, rows: Sequence[EncodedExample], trainer: config.Trainer) -> Estimate:
        """What one micro-batch of ``rows`` takes, batched as ``trainer`` says."""
        trainable = [each for each in self._model.parameters() if each.requires_grad]
        adapter = sum(map(_bytes, trainable))
        alive = Alive()
        for each in self._tensors:
            alive.add(each)
        weights = alive.now - adapter
        packed = trainer.batching is config.Batching.packed
        batch = collate_packed(rows) if packed else collate_padded(rows, pad_id=self._pad_id)
        sources = sorted({row.example.source for row in rows})
        batch |= supervision(rows, batch["labels"], batch.pop("row_places", None), sources)
        with _known_beforehand(self._run), self._fake, alive:
            # With accumulation the gradients of one micro-batch are there while the next is made.
            for _ in range(min(trainer.accumulation, 2)):
                self._pass(batch, max(lengths_of(rows)), SupervisedLoss(sources, _CPU), trainer)
                alive.heap.end_pass()
        for each in trainable:
            each.grad = None
        name, momentum = self._run.optimizer.name, self._run.optimizer.momentum
        state = sum(
            state_bytes(each.shape, name, momentum=bool(momentum), on_gpu=self._on_gpu)
            for each in trainable
        )
        held = 0 if self._on_gpu else max(0, alive.heap.most - alive.most)
        return Estimate(weights, adapter, state, alive.most - weights - adapter, held)

    def _pass(
        self,
        batch: Mapping[str, Any],
        longest: int,
        loss: SupervisedLoss,
        trainer: config.Trainer,
    ) -> None:
        """Forwards and backwards, as ``fit`` has it."""
        inputs = {
            name: self._fake.from_tensor(each) if isinstance(each, Tensor) else each
            for name, each in batch.items()
        }
        labels = inputs.pop("labels")
        model = self._model.train()
        with ExitStack() as during:
            if self._on_gpu:
                during.enter_context(as_on_a_gpu(autocast=self._run.precision.autocast))
            during.enter_context(row_attention(model, longest=longest))
            during.enter_context(fast_path(model))
            during.enter_context(loss.attached(model))
            if trainer.activation_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
                during.callback(model.activation_checkpointing_disable)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._run.precision.autocast):
                outputs = model(**inputs, use_cache=False)
            loss(outputs, labels, 1).backward()  # type: ignore[no-untyped-call]


def largest_batch(
    dry_run: DryRun,
    trainer: config.Trainer,
    rows_of: Callable[[config.Trainer], Sequence[EncodedExample]],
    *,
    room: float,
    limit: int,
) -> tuple[int, Estimate] | None:
    """The largest ``trainer.batch_size`` up to ``limit`` that fits into ``room`` bytes.

    rows_of: the largest micro-batch of a trainer. Returns the size, found to a thirtieth, and its
    estimate, or None when not even 1 fits. Memory grows with the batch almost in a line, so few
    sizes need to be tried.
    """

    def tried(size: int) -> Estimate:
        trial = replace(trainer, batch_size=size)
        return dry_run.estimate(rows_of(trial), trial)

    smallest = best = tried(1)
    if smallest.total > room:
        return None
    low, high = 1, limit + 1
    size = trainer.batch_size
    while (step := max(1, low // 30)) < high - low:
        size = min(max(size, low + step), high - 1)
        estimate = tried(size)
        if estimate.total <= room:
            low, best = size, estimate
        else:
            high = size
        slope = max(1.0, (estimate.total - smallest.total) / (size - 1))
        size = int(1 + (room - smallest.total) / slope)
    return low, best


def largest_rows(
    rows: Sequence[EncodedExample], trainer: config.Trainer, *, seed: int
) -> list[EncodedExample]:
    """The rows of the first epoch's largest micro-batch."""
    first = plan_epoch(
        lengths_of(rows), trainer.batching, batch_size=trainer.batch_size, seed=seed, epoch=0
    )[0]
    return [rows[row] for row in first]


def longest_rows(count: int, tokens: int) -> list[EncodedExample]:
    """The worst that can come: ``count`` rows of ``tokens`` tokens, all with loss, none alike."""
    example = Example("any", 0, "", "", "", "")
    return [
        EncodedExample(example, [number] * tokens, ((0, tokens),), truncated=False)
        for number in range(count)
    ]


def expected_peak_mib(
    run: config.Run, tokenizer: Any, rows: Sequence[EncodedExample], device: torch.device
) -> float | None:
    """What ``peak_memory_mib`` will be after training, told when model and adapter are loaded.

    None for a run without a step, and where the model cannot be gone through beforehand.
    """
    if run.trainer.max_steps == 0:
        return None
    try:
        dry_run = DryRun(run, tokenizer, on_gpu=device.type == "cuda")
        estimate = dry_run.estimate(largest_rows(rows, run.trainer, seed=run.seed), run.trainer)
    except ValueError:
        return None
    if device.type == "cuda":
        return estimate.total / 2**20
    others = process_memory() - estimate.weights - estimate.adapter
    return max((others + estimate.total) / 2**20, peak_memory_mib(device))


def process_memory() -> int:
    """Resident bytes of this process, and of what Trainer and a first step load into it."""
    return int(psutil.Process().memory_info().rss) + _STILL_TO_LOAD


#: bitsandbytes: tensors below it keep their state in 32 bits; a block of numbers shares a scale;
#: state of tensors below ``_UNPAGED`` is never in pages.
_SMALL, _STATE_BLOCK, _UNPAGED = 4096, 256, 100_000


def state_bytes(shape: Sequence[int], name: OptimizerName, *, momentum: bool, on_gpu: bool) -> int:
    """Bytes of an optimizer's state for a parameter; on a GPU less what is in pages.

    Counters of steps and tables that all parameters share are left out.
    """
    numbers = torch.Size(shape).numel()
    if on_gpu and name.startswith("paged") and numbers >= _UNPAGED:
        return 0
    match name:
        case OptimizerName.adamw | OptimizerName.paged_adamw_32bit:
            return 8 * numbers
        case OptimizerName.adamw_8bit | OptimizerName.paged_adamw_8bit:
            return 2 * _state_8bit(numbers)
        case OptimizerName.lion_8bit:
            return _state_8bit(numbers)
        case OptimizerName.adafactor:
            rows, columns = (shape[-2], shape[-1]) if len(shape) > 1 else (numbers, 0)
            return 4 * (numbers // max(columns, 1) + numbers // rows if columns else numbers)
        case OptimizerName.sgd:
            return 4 * numbers if momentum else 0


def _state_8bit(numbers: int) -> int:
    if numbers < _SMALL:
        return 4 * numbers
    return numbers + 4 * -(-numbers // _STATE_BLOCK)


@contextmanager
def _known_beforehand(run: config.Run) -> Iterator[None]:
    """ValueError where a model's code wants numbers, or operations that have no such form."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # whatever other people's models do
        raise ValueError(
            f"the memory of model.path={run.model.path} cannot be told beforehand "
            f"({one_line(str(error))[:200]}): measure it by debug=one_batch"
        ) from error


def _bytes(tensors: Tensor) -> int:
    return tensors.numel() * tensors.element_size()
