"""Attention of a decoding step over groups of heads: by hand, and against the stock one."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from verl.config import RolloutConfig
from verl.engines import attention, open_engine
from verl.engines.attention import attend


def test_two_heads_share_a_key_head_and_each_finds_its_own_key():
    query = torch.tensor([[[[50.0, 0.0]], [[0.0, 50.0]]]])  # (1, 2, 1, 2): the first looks along x, the second along y
    key = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])  # (1, 1, 2, 2)
    value = torch.tensor([[[[3.0, 4.0], [5.0, 6.0]]]])
    made, _ = attend(None, query, key, value, None, scaling=1.0)
    assert made.shape == (1, 1, 2, 2)
    torch.testing.assert_close(made[0, 0], torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    padded, _ = attend(None, query, key, value, torch.tensor([[[[False, True]]]]), scaling=1.0)
    torch.testing.assert_close(padded[0, 0], torch.tensor([[5.0, 6.0], [5.0, 6.0]]))  # the first key is padding


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_it_is_the_stock_attention(queries, kv_heads, kind):
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 32) for heads, n in ((6, queries), (kv_heads, 9), (kv_heads, 9)))
    mask = torch.ones(3, 1, queries, 9, dtype=torch.bool)
    mask[1, ..., :4] = False  # padding at the left
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = SimpleNamespace(num_key_value_groups=6 // kv_heads, is_causal=True)
    found, _ = attend(module, query, key, value, mask, scaling=0.2)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
    assert found.shape == expected.shape == (3, queries, 6, 32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_engine_decodes_with_it(world):
    engine = open_engine(str(world / "tiny_policy"), config=RolloutConfig(), device="cpu", dtype=torch.float32)
    config = engine.model.config
    assert config.text_config._attn_implementation == attention.NAME
    assert config.vision_config._attn_implementation == "sdpa"
