"""Attention of a decoding step without copies of the cache: the query heads of a key head are rows of one product.

Stock SDPA with a padding mask repeats keys and values for every query head of a group, and so copies the whole cache a
few times over for each token. With one query a row it is enough to see the group's heads as so many queries.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped_sdpa"
"""As `attn_implementation` of a text model."""


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`query` (B, H, Q, D), `key` and `value` (B, H_kv, L, D), `attention_mask` (B, 1, Q, L) bool or additive, None for
    all; (B, Q, H, D). Anything but one query a row is stock SDPA's."""
    batch, heads, queries, width = query.shape
    if queries != 1 or heads == key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    made = nn.functional.scaled_dot_product_attention(
        query.reshape(batch, key.shape[1], -1, width),  # (B, H_kv, heads of a group, D)
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
    )
    return made.reshape(batch, 1, heads, width), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
