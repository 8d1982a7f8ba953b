"""The benchmark as small as it goes: it still fits the commands it measures, and its records are whole."""

import pytest

from benchmarks import bench_seed_cot


@pytest.mark.slow
def test_every_run_has_each_record_once(tmp_path):
    table, whole = bench_seed_cot.measure(tmp_path, 8, videos=8, delay=0.01)
    assert whole
    assert table.count("8, 8 different") == 3
