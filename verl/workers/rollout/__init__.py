"""Rollout engines, by name. `base.RolloutEngine` says what they promise."""

from __future__ import annotations

import torch

from verl.config import RolloutConfig
from verl.utils import plugins
from verl.workers.rollout.base import RolloutEngine

GROUP = "verl.engines"


def open_engine(
    model_path: str, *, config: RolloutConfig, device: torch.device | str, dtype: torch.dtype
) -> RolloutEngine:
    """The engine called `config.name`: hf, or a plug-in, which is built with these same arguments.

    ValueError for a name that stands for nothing.
    """
    if config.name == "hf":
        from verl.workers.rollout.hf import HFEngine

        return HFEngine(model_path, config=config, device=device, dtype=dtype)
    if config.name == "vllm":
        raise ValueError(
            "worker.rollout.name is vllm, which is still to come; hf draws the same replies without it. "
            "An engine of your own is named package.module:attribute"
        )
    try:
        build = plugins.find(config.name, group=GROUP)
    except ValueError as error:
        raise ValueError(f"worker.rollout.name: {error} (built in: hf)") from error
    return build(model_path, config=config, device=device, dtype=dtype)
