"""Memory as expected, against what torch's allocator hands out and bitsandbytes keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._profiler import _EventType
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from dollyllama import config, launch
from dollyllama.config import CUDA_ONLY, OptimizerName
from dollyllama.data.example import Example
from dollyllama.data.tokens import EncodedExample
from dollyllama.model.empty import empty_base
from dollyllama.model.load import load_tokenizer
from dollyllama.restore import load_model, put_adapter
from dollyllama.training.fake import Alive
from dollyllama.training.fit import fit
from dollyllama.training.memory import (
    DryRun,
    Estimate,
    largest_batch,
    largest_rows,
    longest_rows,
    state_bytes,
)
from dollyllama.training.optimizers import build_optimizer
from tests.model.build import write_model
from tests.training.build import make_optimizer, make_rows, make_trainer

CPU = torch.device("cpu")
LENGTHS = (60, 100, 40, 90, 100, 70)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 64, with a head of its own and no pad token."""
    return write_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load_tokenizer(str(base), None)


@pytest.fixture
def compose(base: Path) -> Callable[..., config.Run]:
    shared = ("device=cpu", "tracking=files", "evaluation=none", "trainer=smoke")
    shared += ("trainer.max_steps=1", "model=local", f"model.path={base}", "data.max_length=128")
    return lambda *overrides: launch.compose_run([*shared, *overrides])


def rows_of(lengths: Iterable[int]) -> list[EncodedExample]:
    return [
        EncodedExample(
            Example("sql", number, "", "", "", ""), [5] * length, ((9, length),), truncated=False
        )
        for number, length in enumerate(lengths)
    ]


def peak_of_allocator(run: config.Run, tokenizer: Any, folder: Path) -> int:
    """Bytes that torch handed out at most, beyond those at the beginning, in a step of ``fit``."""
    model = put_adapter(run, load_model(run, tokenizer, CPU))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fit(
            model,
            tokenizer,
            rows_of(LENGTHS),
            trainer=run.trainer,
            optimizer=run.optimizer,
            schedule=run.schedule,
            autocast=run.precision.autocast,
            seed=0,
            folder=folder,
            log=lambda step, values: None,
            resume=False,
        )
    kineto = profiler.profiler.kineto_results  # type: ignore[union-attr]
    # What an earlier profile saw handed out and this one sees released is no one's here.
    held: dict[int, int] = {}
    now = most = 0
    for _, address, change in sorted(changes_of_memory(kineto.experimental_event_tree())):
        if change > 0:
            held[address] = change
            now += change
        else:
            now -= held.pop(address, 0)
        most = max(most, now)
    return most


def changes_of_memory(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Of all events, and those within: when (ns), at which address, and how many bytes."""
    for event in events:
        if event.tag == _EventType.Allocation:
            change = event.extra_fields
            yield event.start_time_ns, change.ptr, change.alloc_size
        yield from changes_of_memory(event.children)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.batching=packed"],
        ["trainer.batching=padded", "trainer.activation_checkpointing=true"],
        ["trainer.batching=padded", "lora=dora"],
        ["trainer.accumulation=2", "quantization=int8"],
        ["quantization=none", "precision.autocast=false", "lora.dropout=0"],
    ],
    ids=" ".join,
)
def test_activations_are_those_that_the_allocator_hands_out(
    overrides: list[str], compose: Callable[..., config.Run], tokenizer: Any, tmp_path: Path
) -> None:
    run = compose("trainer.batch_size=3", *overrides)
    rows = largest_rows(rows_of(LENGTHS), run.trainer, seed=0)
    expected = DryRun(run, tokenizer, on_gpu=False).estimate(rows, run.trainer).activations
    assert expected == pytest.approx(peak_of_allocator(run, tokenizer, tmp_path), rel=0.04)


@pytest.mark.parametrize("quantization", ["nf4_double", "nf4", "fp4", "int8", "none"])
def test_weights_are_as_large_as_loaded_ones(
    quantization: str, compose: Callable[..., config.Run], tokenizer: Any
) -> None:
    run = compose(f"quantization={quantization}", "precision=as_loaded")
    about = AutoConfig.from_pretrained(run.model.path)
    empty = empty_base(
        about, dtype=run.model.dtype, quantization=run.quantization, rows=len(tokenizer)
    )
    assert weight_bytes(empty) == weight_bytes(load_model(run, tokenizer, CPU))


def weight_bytes(model: torch.nn.Module) -> int:
    kept: list[Any] = [*model.parameters(), *model.buffers()]
    for each in model.parameters():
        state = getattr(each, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            # The table of 16 numbers or 256 is shared by loaded weights.
            tensors = vars(part or SimpleNamespace()).items()
            kept += [t for name, t in tensors if isinstance(t, torch.Tensor) and name != "code"]
        if (scales := getattr(each, "SCB", None)) is not None:
            kept.append(scales)
    return sum(each.numel() * each.element_size() for each in kept)


@pytest.mark.parametrize("name", sorted(set(OptimizerName) - CUDA_ONLY))
@pytest.mark.parametrize("shape", [(16, 256), (16, 255), (96, 129), (5000,)])
def test_an_optimizers_state_is_counted(name: OptimizerName, shape: tuple[int, ...]) -> None:
    parameter = Parameter(torch.ones(shape))
    optimizer = build_optimizer([parameter], make_optimizer(name))
    parameter.grad = torch.ones(shape)
    optimizer.step()
    state = optimizer.state[parameter]
    tensors = {key: each for key, each in state.items() if isinstance(each, torch.Tensor)}
    actual = sum(
        each.numel() * each.element_size()
        for key, each in tensors.items()
        if key != "step" and not key.startswith("qmap")
    )
    momentum = name is OptimizerName.sgd
    assert state_bytes(shape, name, momentum=momentum, on_gpu=False) == actual


def test_paged_state_is_not_on_the_gpu_where_it_is_in_pages() -> None:
    paged = OptimizerName.paged_adamw_32bit
    assert state_bytes((100_000,), paged, momentum=False, on_gpu=True) == 0
    assert state_bytes((99_999,), paged, momentum=False, on_gpu=True) == 8 * 99_999


def test_shared_memory_counts_once_and_freed_memory_no_more() -> None:
    with Alive() as alive:
        x = torch.ones(100, 10)
        view = x.t()[3:]
        assert alive.now == 4000
        del x
        assert alive.now == 4000
        y = view * 2
        assert alive.now == 4000 + 2800
        del y, view
        assert (alive.now, alive.most) == (0, 6800)


def test_a_gpu_keeps_halves_where_a_cpu_keeps_float32(
    compose: Callable[..., config.Run], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # it keeps halves too
    run = compose("lora.dropout=0")
    rows = longest_rows(8, 128)
    on_cpu, on_gpu = (
        DryRun(run, tokenizer, on_gpu=gpu).estimate(rows, run.trainer) for gpu in (False, True)
    )
    assert on_gpu.held == 0
    assert on_gpu.weights == on_cpu.weights
    assert 0.4 * on_cpu.activations < on_gpu.activations < 0.8 * on_cpu.activations


def test_a_dry_run_leaves_no_trace(compose: Callable[..., config.Run], tokenizer: Any) -> None:
    """Neither in random numbers nor in what a real run computes by."""
    from dollyllama.fast import projections
    from dollyllama.model import attention

    run = compose("trainer.activation_checkpointing=true")
    state = torch.get_rng_state()
    before = (projections.draw_dropped, attention.attend, torch.nn.functional.dropout)
    DryRun(run, tokenizer, on_gpu=True).estimate(longest_rows(2, 32), run.trainer)
    DryRun(run, tokenizer, on_gpu=False).estimate(longest_rows(2, 32), run.trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert (projections.draw_dropped, attention.attend, torch.nn.functional.dropout) == before
    assert not torch.is_autocast_enabled("cuda")


def test_an_estimate_does_not_depend_on_earlier_ones(
    compose: Callable[..., config.Run], tokenizer: Any
) -> None:
    run = compose("trainer.accumulation=2")
    dry_run = DryRun(run, tokenizer, on_gpu=False)
    first = dry_run.estimate(longest_rows(2, 32), run.trainer)
    larger = dry_run.estimate(longest_rows(4, 32), run.trainer)
    assert larger.activations > first.activations
    assert dry_run.estimate(longest_rows(2, 32), run.trainer) == first


def test_gradients_wait_where_they_accumulate(
    compose: Callable[..., config.Run], tokenizer: Any
) -> None:
    run = compose("lora.r=64")
    dry_run = DryRun(run, tokenizer, on_gpu=False)
    one, two, four = (
        dry_run.estimate(longest_rows(2, 32), replace(run.trainer, accumulation=number))
        for number in (1, 2, 4)
    )
    assert one.activations < two.activations == four.activations <= one.activations + one.adapter


class Line:
    """Stands for a DryRun: 100 bytes and 10 a row, and a little more for many."""

    def __init__(self) -> None:
        self.tried = 0

    def estimate(self, rows: list[Any], trainer: config.Trainer) -> Estimate:
        self.tried += 1
        assert len(rows) == trainer.batch_size
        return Estimate(60, 40, 0, 10 * len(rows) + len(rows) ** 2 // 500, 0)


@pytest.mark.parametrize("start", [1, 4, 500])
@pytest.mark.parametrize(
    ("room", "limit", "low", "high"),
    [
        (109, 999, 0, 0),
        (110, 999, 1, 1),
        (159, 999, 5, 5),
        (2000, 999, 177, 183),
        (1e9, 64, 64, 64),
    ],
)
def test_the_largest_batch_that_fits_is_found_in_a_few_tries(
    start: int, room: float, limit: int, low: int, high: int
) -> None:
    line = Line()
    trainer = make_trainer(batch_size=start)
    rows = make_rows([3] * 1000)
    dry_run: Any = line
    found = largest_batch(
        dry_run, trainer, lambda trainer: rows[: trainer.batch_size], room=room, limit=limit
    )
    assert line.tried <= 8
    if not low:
        assert found is None
        return
    assert found is not None
    size, estimate = found
    assert low <= size <= high
    assert estimate == Line().estimate(rows[:size], replace(trainer, batch_size=size))
    assert estimate.total <= room
