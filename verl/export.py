"""Turn a checkpoint into a folder that transformers and vLLM load: ``python -m verl.export CKPT OUT``.

A LoRA adapter is merged into its base model unless ``--no-merge`` asks for the adapter itself, in PEFT's format.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from verl.config import LoraConfig, ModelConfig
from verl.models import loading
from verl.workers import checkpoint


def export(folder: str | Path, out: str | Path, *, merge: bool = True, base: str | Path | None = None) -> None:
    """Write the policy of a checkpoint, on the CPU, in the number type of its base model.

    `base` says where the base model is now, if not where the run found it.
    """
    config = _model_config(checkpoint.read(folder)["model"])
    out, source = Path(out), str(base or config.model_path)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    if config.lora.rank == 0 and not merge:
        raise ValueError(f"{folder} holds a fully trained model, no adapter that could be left unmerged")
    model = loading.load_base(source)
    dtype = AutoConfig.from_pretrained(source).dtype or torch.float32
    policy = loading.add_lora(model, config.lora) if config.lora.rank > 0 else model
    fill(policy, checkpoint.read_weights(folder))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _finished(policy, merge=merge, dtype=dtype).save_pretrained(partial)
    loading.load_processor(source).save_pretrained(partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)


def fill(policy: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put trained weights in their places."""
    parameters = dict(policy.named_parameters())
    for name, tensor in weights.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            here = tuple(parameters[name].shape) if name in parameters else "missing"
            raise ValueError(f"{name} is {tuple(tensor.shape)} in the checkpoint and {here} in the base model")
        parameters[name].data.copy_(tensor)


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
