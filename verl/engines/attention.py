"""Attention for drawing token by token, where query heads share key and value heads: nothing is copied per query head.

With one query position, the G query heads that share a key head are as good as G query positions of that head. The
stock function repeats keys and values G times instead, at every token, as soon as there is padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

NAME = "verl_shared_heads"


def use_shared_heads(model: PreTrainedModel) -> None:
    """Let the model's text layers attend in this way, if they use torch's; the vision tower's stay."""
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
    """As every attention function of transformers: (B, queries, heads, dimensions), and no weights."""
    rows, heads, queries, dimensions = query.shape
    if queries > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.reshape(rows, key.shape[1], -1, dimensions)
    made = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attention_mask, scale=scaling)
    return made.reshape(rows, 1, heads, dimensions), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
