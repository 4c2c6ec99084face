"""What is timed, in which order, and what the memory columns count."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from dollyllama.latency.measure import measure, time_answer, weights_mib
from tests.decoding.build import EOS

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


class Clocked(nn.Module):
    """Writes end-of-sequence for ever; a prompt takes 1 s of a false clock, other passes 0.25 s."""

    def __init__(self, clock: list[float], name: str = "") -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=1, vocab_size=259)
        self.device = torch.device("cpu")
        self.clock, self.name = clock, name
        self.prompts: list[Tensor] = []
        self.steps = 0

    def forward(self, *, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        prompt = input_ids.shape[1] > 1
        self.clock[0] += 1.0 if prompt else 0.25
        if prompt:
            self.prompts.append(input_ids)
        self.steps += 1
        logits = torch.zeros(len(input_ids), 1, 259)
        logits[:, 0, EOS] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_an_answer_is_timed_to_its_last_token_past_end_of_sequence(clock: list[float]) -> None:
    model = Clocked(clock)
    timing = time_answer(model, torch.zeros(3, 7, dtype=torch.long), tokens=5)
    assert model.steps == 5
    assert timing.first_seconds == 1.0
    assert timing.next_seconds == 0.25
    assert timing.tokens_per_second == 3 * 5 / (1.0 + 4 * 0.25)


def test_sides_alternate_on_the_same_ids_behind_a_round_of_warming_up(clock: list[float]) -> None:
    opened: list[str] = []
    models = {side: Clocked(clock, side) for side in ("base", "adapter", "merged")}

    @contextmanager
    def opening(side: str) -> Iterator[Clocked]:
        opened.append(side)
        yield models[side]

    shown: list[tuple[int, int]] = []
    cells = measure(
        {side: lambda side=side: opening(side) for side in models},
        batches=[1, 2],
        contexts=[4, 6],
        tokens=3,
        rounds=5,
        seed=0,
        progress=lambda _, done, total: shown.append((done, total)),
    )
    assert opened == ["base", "adapter", "merged"] * 6 * 4
    assert shown == [(done, 72) for done in range(72)]
    assert [(cell.batch, cell.context) for cell in cells] == [(1, 4), (1, 6), (2, 4), (2, 6)]
    assert [tuple(ids.shape) for ids in models["base"].prompts[::6]] == [
        (cell.batch, cell.context) for cell in cells
    ]
    for ids, *others in zip(*(model.prompts for model in models.values()), strict=True):
        assert all(torch.equal(ids, each) for each in others)
    for cell in cells:
        assert {side: len(timings) for side, timings in cell.sides.items()} == dict.fromkeys(
            models, 5
        )


GROWTH = """
from types import SimpleNamespace
import torch
from transformers import LlamaConfig
from dollyllama.latency.measure import time_answer

class Holding(torch.nn.Module):
    config = LlamaConfig(num_hidden_layers=1, vocab_size=259)
    device = torch.device("cpu")
    held_mib = 0

    def forward(self, *, input_ids, **_):
        held = torch.ones(self.held_mib * 2**20, dtype=torch.uint8)
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 1, 259), held=len(held))

model = Holding()
ids = torch.zeros(1, 4, dtype=torch.long)
time_answer(model, ids, tokens=2)
model.held_mib = 64
for _ in range(3):  # the second time too, when the allocator may still have the first's
    print(time_answer(model, ids, tokens=2).growth_mib)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="a peak of memory can begin anew on Linux"
)
def test_memory_beside_the_weights_is_seen_in_every_round() -> None:
    """In a process of its own: what earlier tests left running allocates too."""
    output = subprocess.run(
        [sys.executable, "-c", GROWTH], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    found = [float(line) for line in output.splitlines()]
    assert len(found) == 3
    assert all(60 <= growth <= 90 for growth in found), found


def test_running_out_of_memory_is_told_with_what_to_lower(clock: list[float]) -> None:
    class Large(Clocked):
        def forward(self, **_: Any) -> SimpleNamespace:
            raise torch.OutOfMemoryError("CUDA out of memory")

    @contextmanager
    def opening() -> Iterator[Clocked]:
        yield Large(clock)

    with pytest.raises(ValueError, match="out of memory at batch 8, context 16, merged: lower"):
        measure(
            {"merged": opening},
            batches=[8],
            contexts=[16],
            tokens=2,
            rounds=5,
            seed=0,
            progress=lambda *_: None,
        )


def test_weights_are_counted_as_stored_each_once() -> None:
    tied = nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
    model = nn.ModuleDict({"head": tied, "embedding": tied, "norm": nn.LayerNorm(64)})
    model["lora_A"] = nn.Linear(64, 8, bias=False)
    base = 64 * 32 * 2 + 2 * 64 * 4
    assert weights_mib(model, adapter=False) == base / MIB
    assert weights_mib(model, adapter=True) == (base + 64 * 8 * 4) / MIB


@pytest.mark.parametrize(
    ("double", "scales"),
    [
        (False, 512 * 256 // 64 * 4),  # a float32 for each 64 weights
        (True, 512 * 256 // 64 + 512 * 256 // 64 // 256 * 4),  # a byte, and a float32 for 256 bytes
    ],
)
def test_four_bit_weights_are_counted_with_their_scales(double: bool, scales: int) -> None:
    layer = bnb.nn.Linear4bit(512, 256, bias=False, quant_type="nf4", compress_statistics=double)
    packed = layer.to("cpu")
    assert packed.weight.quant_state is not None
    assert weights_mib(packed, adapter=False) == (512 * 256 / 2 + scales) / MIB


def test_eight_bit_weights_are_counted_with_their_scales() -> None:
    layer = bnb.nn.Linear8bitLt(512, 256, bias=False, has_fp16_weights=False).to("cpu")
    assert layer.weight.dtype == torch.int8
    assert weights_mib(layer, adapter=False) == (512 * 256 + 256 * 4) / MIB
