"""Contrastive search writes what transformers 4.46.3 wrote: see ``oracle/make.py``."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dollyllama import embedded
from dollyllama.decoding.contrastive import contrastive_search
from dollyllama.decoding.generate import pad_left

ORACLE = json.loads(
    gzip.decompress((Path(__file__).parent / "oracle/contrastive.json.gz").read_bytes())
)
CASES: list[dict[str, Any]] = ORACLE["cases"]
ALPHAS = sorted({case["alpha"] for case in CASES})
KS = sorted({case["k"] for case in CASES})


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(embedded.MODEL, dtype=torch.float32).eval()


def test_the_oracle_covers_what_it_should() -> None:
    assert ORACLE["transformers"] == "4.46.3"
    assert len(CASES) >= 300
    assert {0, 0.2, 0.5, 0.6, 0.9, 1} == set(ALPHAS)
    assert {1, 2, 4, 8} == set(KS)
    lengths = {len(case["prompt"]) for case in CASES}
    assert (min(lengths), max(lengths)) == (1, 400)
    assert sum(case["eos"] is not None for case in CASES) >= 100
    # A search that always wrote the same would prove nothing.
    assert len({tuple(case["written"]) for case in CASES}) > 150


@pytest.mark.parametrize(("alpha", "k"), [*itertools.product(ALPHAS, KS)])
def test_a_batch_writes_the_oracles_tokens(model: LlamaForCausalLM, alpha: float, k: int) -> None:
    cases = [case for case in CASES if (case["alpha"], case["k"]) == (alpha, k)]
    cases.sort(key=lambda case: len(case["prompt"]))
    middle = len(cases) // 2
    for batch in (cases[:middle], cases[middle:]):  # most of the time is that of padding
        ids_BT, mask_BT = pad_left([case["prompt"] for case in batch], 3, model.device)
        longest = max(len(case["written"]) for case in batch)
        written = contrastive_search(
            model, ids_BT, mask_BT, alpha=alpha, k=k, max_new_tokens=longest
        )
        for ours, case in zip(written[:, ids_BT.shape[1] :].tolist(), batch, strict=True):
            assert ours[: len(case["written"])] == case["written"]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_it_ends_where_the_oracle_ended(model: LlamaForCausalLM, alpha: float) -> None:
    for case in CASES:
        if case["alpha"] == alpha and case["eos"] is not None:
            ids_BT = torch.tensor([case["prompt"]])
            out = contrastive_search(
                model, ids_BT, alpha=alpha, k=case["k"], max_new_tokens=16, eos_token_id=case["eos"]
            )
            assert out[0, ids_BT.shape[1] :].tolist() == case["written"]
