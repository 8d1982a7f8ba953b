"""Rollout engines, by name, and how a run has them draw. `base.RolloutEngine` says what they promise."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import torch

from verl.config import Config, ConfigError, RolloutConfig
from verl.models import folder
from verl.utils import plugins
from verl.workers.rollout.base import RolloutEngine, Sampling

GROUP = "verl.engines"


def check_installed(config: RolloutConfig) -> None:
    """ConfigError where the engine needs software that is not there."""
    if config.name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "worker.rollout.name is vllm, which is not installed: `make setup-vllm` on a machine without CUDA, "
            "`pip install -e '.[vllm]'` on one with it; hf draws the same replies without it"
        )


def samplings(config: Config) -> dict[str, Sampling]:
    """How replies are drawn in ``training`` and in ``validation``, which is greedy.

    ConfigError for recommendations of the checkpoint that cannot be followed.
    """
    rollout, length = config.worker.rollout, config.data.max_response_length
    found = _decoding(config)
    common = {"max_tokens": length, "repetition_penalty": found.repetition_penalty}
    top_k = found.top_k if rollout.top_k == -1 else rollout.top_k
    return {
        "training": Sampling(temperature=rollout.temperature, top_p=rollout.top_p, top_k=top_k, **common),
        "validation": Sampling(temperature=0.0, **common),
    }


def record(config: Config, run_folder: Path) -> None:
    """Write ``decoding.json`` into a run's folder: what is in force, and what the checkpoint recommends that is not."""
    told = {
        **{name: asdict(sampling) for name, sampling in samplings(config).items()},
        "generation_defaults": config.worker.rollout.generation_defaults,
        "recommended_but_not_in_force": _decoding(config).not_taken,
    }
    (run_folder / "decoding.json").write_text(json.dumps(told, indent=2) + "\n")


def _decoding(config: Config) -> folder.Decoding:
    try:
        return folder.decoding(config.worker.actor.model.model_path, config.worker.rollout.generation_defaults)
    except ValueError as error:
        raise ConfigError(f"worker.rollout.generation_defaults: {error}") from error


def open_engine(
    model_path: str, *, config: RolloutConfig, device: torch.device | str, dtype: torch.dtype
) -> RolloutEngine:
    """The engine called `config.name`: hf, vllm, or a plug-in, which is built with these same arguments.

    ValueError for a name that stands for nothing; ConfigError for vllm where it is not installed.
    """
    if config.name == "hf":
        from verl.workers.rollout.hf import HFEngine

        return HFEngine(model_path, config=config, device=device, dtype=dtype)
    if config.name == "vllm":
        check_installed(config)
        from verl.workers.rollout.vllm import VLLMEngine

        return VLLMEngine(model_path, config=config, device=device, dtype=dtype)
    try:
        build = plugins.find(config.name, group=GROUP)
    except ValueError as error:
        raise ValueError(f"worker.rollout.name: {error} (built in: hf, vllm)") from error
    return build(model_path, config=config, device=device, dtype=dtype)
