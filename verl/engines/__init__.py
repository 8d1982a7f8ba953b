"""Engines turn prompts into tokens: for rollouts, validation and inference alike. Found by name; `base.RolloutEngine`
says what they promise. They need neither Ray nor a process group."""

from __future__ import annotations

import importlib.util

import torch

from verl.config import ConfigError, RolloutConfig
from verl.engines.base import EngineOptions, RolloutEngine
from verl.utils import plugins

GROUP = "verl.engines"


def check_installed(config: EngineOptions | RolloutConfig) -> None:
    """ConfigError where the engine needs software that is not there."""
    if config.name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "worker.rollout.name is vllm, which is not installed: `make setup-vllm` on a machine without CUDA, "
            "`pip install -e '.[vllm]'` on one with it; hf draws the same replies without it"
        )


def open_engine(
    model_path: str, *, config: EngineOptions | RolloutConfig, device: torch.device | str, dtype: torch.dtype
) -> RolloutEngine:
    """The engine called `config.name`: hf, vllm, or a plug-in, which is built with these same arguments.

    ValueError for a name that stands for nothing; ConfigError for vllm where it is not installed.
    """
    if config.name == "hf":
        from verl.engines.hf import HFEngine

        return HFEngine(model_path, config=config, device=device, dtype=dtype)
    if config.name == "vllm":
        check_installed(config)
        from verl.engines.vllm import VLLMEngine

        return VLLMEngine(model_path, config=config, device=device, dtype=dtype)
    try:
        build = plugins.find(config.name, group=GROUP)
    except ValueError as error:
        raise ValueError(f"worker.rollout.name: {error} (built in: hf, vllm)") from error
    return build(model_path, config=config, device=device, dtype=dtype)
