"""Causal attention for batches without masks: right-padded rows, or packed ones.

T tokens of a batch, R of all rows that are packed in it, B rows, H query heads, K key-value heads,
D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

#: The name under which transformers knows ``attend``. It has no mask of its own there, so
#: transformers builds none.
NAME = "dollyllama"


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_lengths: Sequence[int] | None = None,
    row_starts: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    row_segments: Sequence[Sequence[int]] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally, within each row of a packed batch alone.

    row_lengths: tokens of the rows that are packed into a batch of one; None where each row of the
    batch is a row. row_starts: their cumulative lengths from 0 (int32), on the device.
    segment_lengths, row_segments: the segments that lie one behind the other in the batch, and
    those that each row is made of; None where each row is a segment. query: B, H, T, D; key and
    value: B, K, T, D. The signature is that of transformers' attention functions. Returns out_BTHD
    and no weights.
    """
    assert attention_mask is None
    if segment_lengths is None or row_segments is None:
        out_BTHD = _within_rows(query, key, value, row_lengths, row_starts, scaling, dropout)
        return out_BTHD, None
    query, key, value = (
        _rows_of(states, segment_lengths, row_segments) for states in (query, key, value)
    )
    out_BRHD = _within_rows(query, key, value, row_lengths, row_starts, scaling, dropout)
    return _segments_of(out_BRHD, segment_lengths, row_segments), None


def _rows_of(
    states_BHTD: Tensor, segment_lengths: Sequence[int], row_segments: Sequence[Sequence[int]]
) -> Tensor:
    """The rows of a batch one behind the other, each with all of its segments: B, H, R, D."""
    segments = torch.split(states_BHTD, list(segment_lengths), dim=2)
    return torch.cat([segments[number] for row in row_segments for number in row], dim=2)


def _segments_of(
    out_BRHD: Tensor, segment_lengths: Sequence[int], row_segments: Sequence[Sequence[int]]
) -> Tensor:
    """Each segment as the first row that has it holds it: B, T, H, D."""
    numbers = [number for row in row_segments for number in row]
    pieces = torch.split(out_BRHD, [segment_lengths[number] for number in numbers], dim=1)
    return torch.cat([pieces[numbers.index(each)] for each in range(len(segment_lengths))], dim=1)


def _within_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: Sequence[int] | None,
    row_starts: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """``attend`` where each row is a segment of its own."""
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        # Rotary positions in float32 leave queries and keys so; autocast would cast them anyway,
        # but not for ``varlen_attn``, which takes 16 bits alone.
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(dtype) for each in (query, key, value))
    if row_lengths is not None and query.is_cuda and query.dtype.itemsize == 2:
        assert row_starts is not None
        assert dropout == 0.0
        longest = max(row_lengths)
        out_THD = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            row_starts,
            row_starts,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out_THD, Tensor)
        return out_THD[None]
    if query.is_cuda:
        # Not cuDNN's, which is compiled anew for every length that comes.
        with sdpa_kernel(
            [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        ):
            return _row_by_row(query, key, value, row_lengths, scaling, dropout)
    # On a CPU the backward pass in half precision takes more than twice the time of float32's.
    with torch.autocast("cpu", enabled=False):
        out_BTHD = _row_by_row(
            query.float(), key.float(), value.float(), row_lengths, scaling, dropout
        )
    return out_BTHD.to(query.dtype)


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: Sequence[int] | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """One call a row: for rows of some hundred tokens four times as fast as one masked call."""
    lengths = [query.shape[2]] if row_lengths is None else list(row_lengths)
    rows = zip(
        torch.split(query, lengths, dim=2),
        torch.split(key, lengths, dim=2),
        torch.split(value, lengths, dim=2),
        strict=True,
    )
    outs = [
        scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)
        for query, key, value in rows
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def reaches(model: Any, longest: int) -> bool:
    """Whether a row of so many tokens is no longer than the model's sliding window, if any."""
    window = getattr(model.config, "sliding_window", None)
    return window is None or longest <= window


@contextmanager
def row_attention(model: Any, *, longest: int) -> Iterator[None]:
    """Let ``model`` attend with ``attend``, and as before afterwards.

    longest: tokens of the longest row. ValueError when the model's sliding window is shorter.
    """
    if not reaches(model, longest):
        window = model.config.sliding_window
        raise ValueError(
            f"data.max_length: a row has {longest} tokens, and the model's attention reaches back "
            f"{window}, which training does not support: use data.max_length={window}"
        )
    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
