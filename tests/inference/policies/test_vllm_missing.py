"""Without vLLM the policy says how to get it."""

import pytest

from inference.policies.engine import EnginePolicy
from veason.errors import DataError


def test_without_vllm_the_policy_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"`make setup-vllm`.*--policy hf gives the same replies"):
        EnginePolicy("vllm", tmp_path)
