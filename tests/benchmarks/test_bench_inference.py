"""The benchmark as small as it goes: all sides still fit the code they measure, and say the same."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_ours_replies_as_one_at_a_time_does():
    """A process of its own: other tests of this one have joined a Ray cluster."""
    words = ["-m", "benchmarks.bench_inference", "--videos", "4", "--policies", "hf"]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "ours, hf, 32 together" in run.stdout
    assert "ours, hf, --workers 2, 16 together" in run.stdout
