"""The benchmark as small as it goes: both sides still fit the code they measure, and say the same."""

import pytest
import torch

from benchmarks import bench_inference


@pytest.mark.slow
def test_ours_replies_as_one_at_a_time_does():
    with torch.inference_mode():
        table, equal = bench_inference.measure(4, ["hf"])
    assert equal
    assert "ours, hf, 32 together" in table
