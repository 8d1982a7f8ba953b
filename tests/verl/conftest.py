"""A Ray cluster of this test process alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
"""The folder in which the workers find the modules beside the tests."""


@pytest.fixture(scope="session")
def cluster():
    """Four logical CPUs; ends with the session."""
    import ray

    from verl.ray.placement import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])]))
        connect(address=None, cpus=4, quiet=True, store_bytes=200 * 1024**2)
    yield
    ray.shutdown()
