"""The keys and values of the text so far, appended to without copying what is there.

transformers' own dynamic cache concatenates at every token, which copies the whole of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def fresh_cache(model: Any) -> DynamicCache:
    """An empty cache as ``model`` wants it; layers that hold the whole text grow in steps."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values are the first positions of buffers that have room for more."""

    keys: Tensor
    values: Tensor
    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.get_seq_length():
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self._key_room = append(self.keys, self._key_room, key_states)
        self.values, self._value_room = append(self.values, self._value_room, value_states)
        return self.keys, self.values


def append(kept: Tensor, room: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
    """``kept`` with ``new`` behind it in the last dimension but one, and the buffer of both.

    room: the buffer whose first positions ``kept`` is, from the last call, or None. It is written
    into where it has room, and else is copied to one with more.
    """
    length, end = kept.shape[-2], kept.shape[-2] + new.shape[-2]
    # Rows that were dropped leave ``kept`` in memory of its own.
    if room is None or kept.data_ptr() != room.data_ptr() or end > room.shape[-2]:
        room = kept.new_empty(*kept.shape[:-2], end + end // 8 + 16, kept.shape[-1])
        room[..., :length, :] = kept
    room[..., length:end, :] = new
    return room[..., :end, :], room
