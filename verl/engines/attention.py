"""Attention for drawing token by token: no keys and values are copied, neither per query head nor per token.

With one query position, the G query heads that share a key head are as good as G query positions of that head. The
stock function repeats keys and values G times instead, at every token, as soon as there is padding. The stock cache
copies all keys and values at every token; the one here keeps room for more and writes a token's in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

NAME = "verl_shared_heads"
ROOM = 64
"""Tokens by which a layer of the cache grows at a time."""


def use_shared_heads(model: PreTrainedModel) -> None:
    """Let the model's text layers attend in this way, if they use torch's attention; the vision tower keeps its own."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation({"text_config": NAME})


def attend(
    module: torch.nn.Module,
    query: Tensor,  # (B, heads, 1 or more, dimensions)
    key: Tensor,  # (B, shared heads, S, dimensions), as value
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, queries, S)
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers wants it: returns (B, queries, heads, dimensions), and no weights."""
    rows, heads, queries, dimensions = query.shape
    if queries > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.reshape(rows, key.shape[1], -1, dimensions)
    made = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
    return made.reshape(rows, 1, heads, dimensions), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


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
        """None where there is no room: at first, and after rows were selected."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, more = self.get_seq_length(), key_states.shape[2]
        if self._whole is None or start + more > self._whole[0].shape[2]:
            self._whole = self._grown(key_states, self.keys), self._grown(value_states, self.values)
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start : start + more] = states
        self.keys, self.values = (whole[:, :, : start + more] for whole in self._whole)
        return self.keys, self.values

    def _grown(self, states: Tensor, so_far: Tensor | None) -> Tensor:
        """A tensor that begins with `so_far` and has room for `states` and some more."""
        rows, heads, more, dimensions = states.shape
        start = self.get_seq_length()
        whole = states.new_empty(rows, heads, start + more + ROOM, dimensions)
        if so_far is not None and start:
            whole[:, :, :start] = so_far
        return whole

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._whole = None
