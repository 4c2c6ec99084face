"""RMSNorm beside float64 and beside transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dollyllama.fast.norm import rms_norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_values_and_gradients_are_those_in_float64(scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(5, 3, 48) * scale).requires_grad_()
    weight, upstream = torch.randn(48), torch.randn(5, 3, 48)
    out = rms_norm(x, weight, 1e-6)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    wide = x.detach().double().requires_grad_()
    expected = weight * wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6 * float(expected_gradient.max())
    )


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_those_of_transformers(x_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(32).to(weight_dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(32))
    x = torch.randn(4, 32).to(x_dtype).requires_grad_()
    upstream = torch.randn(4, 32)
    results = [
        (out, *torch.autograd.grad(out, x, upstream.to(out.dtype)))
        for out in (norm(x), rms_norm(x, norm.weight, norm.variance_epsilon))
    ]
    tolerance = 1e-5 if x_dtype is weight_dtype is torch.float32 else 0.02
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
