"""Bytes that are alive at the peak, by hand."""

import torch

from benchmarks.bench_memory import POLICIES, peak

MIB = 1 << 20


def test_the_peak_counts_what_is_alive_together_and_no_views():
    weight = torch.ones(1024, 1024)  # there before: not counted, nor is its transpose

    def work():
        first = torch.ones(256, 1024)  # 1 MiB
        second = first @ weight.t()  # another: 2 are alive
        del first
        third = second.relu_()  # in place
        return torch.cat([third, third])  # 2 MiB more: 3 are alive

    most, end, made = peak(work)
    assert (most, end) == (3 * MIB, 2 * MIB)
    assert made.shape == (512, 1024)


def test_weights_and_cache_of_the_published_sizes():
    small = POLICIES["Qwen2.5-VL-3B"]
    assert round(small.weights / 2e9, 2) == 3.75  # billions of parameters, embeddings shared
    # 36 layers x (key + value) x 2 heads x 128 x 2 bytes = 36,864 a token; 8 x 402 + 300 + 1,024 tokens
    assert small.cache == 36_864 * 4_540
