"""Without vLLM the policy says how to get it."""

import pytest

from veason.errors import DataError
from veason.policies.vllm import VLLMPolicy


def test_without_vllm_the_policy_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"`make setup-vllm`.*--policy hf gives the same replies"):
        VLLMPolicy(tmp_path)
