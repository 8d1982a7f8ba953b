"""Turn a checkpoint into a folder that transformers and vLLM load: ``python -m verl.export CKPT OUT``.

A LoRA adapter is merged into its base model unless ``--no-merge`` asks for the adapter itself, in PEFT's format. The
folder says in ``veason.json`` how the policy wants to be asked: as the run's task said it, else as its base model does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from verl.config import LoraConfig, ModelConfig
from verl.engines import pretrained
from verl.models import loading
from verl.workers import checkpoint

ASKED = "veason.json"
"""The record beside the weights of how a policy wants to be asked; what it holds is the task's affair."""


def export(folder: str | Path, out: str | Path, *, merge: bool = True, base: str | Path | None = None) -> None:
    """Write the policy of a checkpoint, on the CPU, in the number type of its base model.

    `base` says where the base model is now, if not where the run found it. ValueError, before anything is written, for
    a damaged checkpoint, a base model that is not whole, and weights that do not fit it.
    """
    facts = checkpoint.read(folder)
    config = _model_config(facts["model"])
    out, source = Path(out), str(base or config.model_path)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    if config.lora.rank == 0 and not merge:
        raise ValueError(f"{folder} holds a fully trained model, no adapter that could be left unmerged")
    weights = checkpoint.read_weights(folder)
    policy = loading.load_policy(replace(config, model_path=source, enable_gradient_checkpointing=False))
    dtype = AutoConfig.from_pretrained(source).dtype or torch.float32
    problem = fill(policy, weights)
    if problem:
        raise ValueError(f"{folder} does not fit {source}: of {len(weights)} trained weights, {problem}")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _finished(policy, merge=merge, dtype=dtype).save_pretrained(partial)
    pretrained.load_processor(source).save_pretrained(partial)
    asked = _asked(facts, source)
    if asked:
        (partial / ASKED).write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)


def fill(policy: nn.Module, weights: dict[str, Tensor]) -> str | None:
    """Put trained weights in their places; None, or why not all of them fit and nothing was done: each parameter that
    is trained must be there, and no other."""
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    both = sorted(weights.keys() & parameters.keys())
    problem = pretrained.misfits(
        sorted(parameters.keys() - weights.keys()),
        sorted(weights.keys() - parameters.keys()),
        [
            f"{name} is {tuple(weights[name].shape)}, not {tuple(parameters[name].shape)}"
            for name in both
            if weights[name].shape != parameters[name].shape
        ],
    )
    if problem is None:
        for name in both:
            parameters[name].data.copy_(weights[name])
    return problem


def _asked(facts: dict[str, Any], source: str) -> dict[str, Any]:
    """How the policy wants to be asked: what the run's task said, on top of what the base model says."""
    path = Path(source) / ASKED
    base = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {**base, **facts.get("asked", {})}


def _finished(policy: PreTrainedModel | PeftModel, *, merge: bool, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Adapter merged in float32, or left alone in float32; a model in the base's type."""
    if not isinstance(policy, PeftModel):
        return policy.to(dtype)
    return policy.merge_and_unload().to(dtype) if merge else policy


def _model_config(fields: dict) -> ModelConfig:
    return ModelConfig(**{**fields, "lora": LoraConfig(**fields["lora"])})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m verl.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a folder such as checkpoints/step_000050")
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument(
        "--merge", action=argparse.BooleanOptionalAction, default=True, help="merge a LoRA adapter into its base model"
    )
    parser.add_argument("--base", type=Path, help="the base model, if it has moved since the run")
    arguments = parser.parse_args(argv)
    try:
        export(arguments.checkpoint, arguments.out, merge=arguments.merge, base=arguments.base)
    except (ValueError, OSError) as error:
        print(f"verl.export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
