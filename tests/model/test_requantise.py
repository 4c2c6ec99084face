"""Weights that were quantised and dequantised are those that a loaded base computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from dollyllama.config import Dtype
from dollyllama.model import quantised
from dollyllama.model.load import find_kept_base
from dollyllama.model.requantise import dequantise, list_packed, requantise
from dollyllama.model.shards import list_tensors, read_tensor
from tests.model.build import load, quantization


def in_parts(weight: torch.Tensor, method: str, **more: bool) -> torch.Tensor:
    """Requantised seven rows at a time."""
    return torch.cat(list(requantise(lambda: weight.split(7), quantization(method, **more))))


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4_bit_weights_are_those_of_the_loaded_base_bit_for_bit(
    untied: Path, tokenizer: Any, method: str, double: bool, dtype: str
) -> None:
    model = load(untied, tokenizer, method, dtype=dtype, double=double)
    stored = {each.name: each for each in list_tensors(untied)}
    compared = 0
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "Params4bit":
            expected = dequantize_4bit(parameter.data, parameter.quant_state)
            weight = read_tensor(stored[name]).to(getattr(torch, dtype))
            assert torch.equal(in_parts(weight, method, double=double), expected)
            compared += 1
    assert compared == 14


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_4_bit_weights_are_bitsandbytes_own_with_many_on_the_bounds(
    method: str, dtype: torch.dtype
) -> None:
    # Few different numbers, so that many lie on a bound between levels; a block of zeros.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-256, 257, (300, 1024), generator=generator).to(dtype) / 256
    weight[0, :64] = 0
    for double in (True, False):
        packed, state = quantize_4bit(
            weight, blocksize=64, compress_statistics=double, quant_type=method
        )
        got = in_parts(weight, method, double=double)
        assert torch.equal(got, dequantize_4bit(packed, state))
        assert got.unique().numel() > 16


def test_blocks_that_go_on_from_row_to_row_are_bitsandbytes_own() -> None:
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    expected = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    (got,) = requantise(lambda: [weight], quantization("nf4", double=False))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_a_kept_base_are_read_as_it_computes_with_them(
    untied: Path,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    double: bool,
    dtype: str,
) -> None:
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(quantised, "MIN_BYTES", 0)
    how = quantization(method, double=double)
    assert find_kept_base(untied, Dtype(dtype), how) is None
    model = load(untied, tokenizer, method, dtype=dtype, double=double)
    folder = find_kept_base(untied, Dtype(dtype), how)
    assert folder is not None
    packed = list_packed(folder)
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if type(parameter).__name__ == "Params4bit"
    }
    assert packed.keys() == weights.keys()
    for name, parameter in weights.items():
        expected = dequantize_4bit(parameter.data, parameter.quant_state)
        parts = list(dequantise(packed[name], 7 * expected.shape[1]))
        assert {len(part) for part in parts[:-1]} <= {7}
        assert torch.equal(torch.cat(parts), expected)
    # One that is not as it was written is not taken.
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert find_kept_base(untied, Dtype(dtype), how) is None


def test_int8_weights_are_those_of_the_loaded_base(untied: Path, tokenizer: Any) -> None:
    model = load(untied, tokenizer, "int8", dtype="float32")
    weight = model.model.layers[0].mlp.up_proj.weight
    stored = {each.name: each for each in list_tensors(untied)}
    got = in_parts(read_tensor(stored["model.layers.0.mlp.up_proj.weight"]), "int8")
    torch.testing.assert_close(got, weight.CB.float() * weight.SCB[:, None] / 127)
