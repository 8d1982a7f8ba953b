"""Tests against vLLM itself: `make test-vllm`. They skip where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "verl"), str(HERE.parent / "inference")]  # actor_cases, toy_task; commands

INSTALLED = importlib.util.find_spec("vllm") is not None

# Before the first test imports torch: a compiler takes a minute for models that run for a second.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("vllm")
            if not INSTALLED:
                item.add_marker(pytest.mark.skip(reason="needs vLLM: make setup-vllm"))


@pytest.fixture(scope="session")
def joined(tmp_path_factory: pytest.TempPathFactory):
    """A process group of one, which the engines of this process join."""
    from actor_cases import group

    with group(tmp_path_factory.mktemp("group")):
        yield
