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
        length = self.get_seq_length()
        self._key_room = _make_room(self.keys, self._key_room, key_states, length)
        self._value_room = _make_room(self.values, self._value_room, value_states, length)
        end = length + key_states.shape[-2]
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        self.keys[:, :, length:], self.values[:, :, length:] = key_states, value_states
        return self.keys, self.values


def _make_room(kept: Tensor, room: Tensor | None, new: Tensor, length: int) -> Tensor:
    """A buffer that begins with ``kept``, which is ``length`` long, and has room for ``new``."""
    end = length + new.shape[-2]
    # Rows that were dropped leave ``kept`` in memory of its own.
    if room is not None and kept.data_ptr() == room.data_ptr() and end <= room.shape[-2]:
        return room
    grown = new.new_empty(*new.shape[:2], end + end // 8 + 16, new.shape[-1])
    if length:
        grown[:, :, :length] = kept
    return grown
