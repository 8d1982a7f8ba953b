"""How a run draws its replies: what its configuration and its checkpoint say, for training and for validation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from verl.config import Config, ConfigError
from verl.engines import folder
from verl.engines.base import Sampling


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
