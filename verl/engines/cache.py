"""Keys and values of the tokens so far, kept with room for more: a token's are written in place.

The stock layer copies all keys and values at every token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens by which a layer grows at a time."""


def open_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a text model; layers with a sliding window are the stock ones."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """`keys` and `values` are the written part of two larger tensors, (B, heads, tokens + room, dimensions)."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: tuple[Tensor, Tensor] | None = None
        """None: there is no room, as at first and after rows were selected."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, more = self.get_seq_length(), key_states.shape[2]
        if self._whole is None or start + more > self._whole[0].shape[2]:
            self._whole = self._grown(self.keys, key_states), self._grown(self.values, value_states)
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start : start + more] = states
        self.keys, self.values = (whole[:, :, : start + more] for whole in self._whole)
        return self.keys, self.values

    def _grown(self, so_far: Tensor, states: Tensor) -> Tensor:
        """What there is, followed by room for `states` and some more."""
        rows, heads, more, dimensions = states.shape
        start = self.get_seq_length()
        whole = states.new_empty(rows, heads, start + more + ROOM, dimensions)
        if start:
            whole[:, :, :start] = so_far
        return whole

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._whole = None
