"""The GPU check as its user runs it, tiny: every path that only a GPU runs, in processes of their own."""

import json
import subprocess
import sys

import pytest
import torch

from verl.gpu_check.plan import CHECKS, OK

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OPTIONAL = {"vllm", "worker", "sam2"}
"""Checks that are left out where vllm, ray or sam2 is not installed."""


def test_every_check_passes(tmp_path):
    command = [sys.executable, "-m", "verl.gpu_check", "--size", "tiny", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    states = {outcome["check"]: outcome["state"] for outcome in json.loads((tmp_path / "found.json").read_text())}
    assert states.keys() == {check.name for check in CHECKS}
    assert {name for name, state in states.items() if state != OK} <= OPTIONAL
