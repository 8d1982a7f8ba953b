"""Turn a checkpoint into a folder that transformers and vLLM load: ``python -m verl.export CKPT OUT``.

A LoRA adapter is merged into its base model unless ``--no-merge`` asks for the adapter itself, in PEFT's format. The
folder's ``veason.json`` holds the prompt settings of the policy: the run's task gave them, else its base model does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig

from verl.config import LoraConfig, ModelConfig
from verl.engines import pretrained
from verl.models import loading
from verl.utils import logs
from verl.workers import checkpoint

ASKED = "veason.json"
"""Name of the file beside the weights that holds a policy's prompt settings; what they mean is the task's affair."""


def export(folder: str | Path, out: str | Path, *, merge: bool = True, base: str | Path | None = None) -> None:
    """Write the policy of a checkpoint, on the CPU, in the number type of its base model.

    `base` says where the base model is now, if not where the run found it. Raises ValueError, before anything is
    written, for a damaged checkpoint, a base model that is not whole, and weights that do not fit it.
    """
    facts = checkpoint.read(folder)
    config = ModelConfig(**{**facts["model"], "lora": LoraConfig(**facts["model"]["lora"])})
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
    try:
        if not isinstance(policy, PeftModel):
            policy.to(dtype)  # type: ignore[arg-type]  # transformers types `to` as if it were not bound
            policy.save_pretrained(partial)
        elif merge:  # in float32, and rounded after it
            policy.merge_and_unload().to(dtype).save_pretrained(partial)
        else:
            policy.save_pretrained(str(partial))
        pretrained.load_processor(source).save_pretrained(partial)
        of_base = Path(source) / ASKED
        asked = json.loads(of_base.read_text(encoding="utf-8")) if of_base.is_file() else {}
        asked |= facts.get("asked", {})
        if asked:
            (partial / ASKED).write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fill(policy: nn.Module, weights: dict[str, Tensor]) -> str | None:
    """Put trained weights in their places, which must be those of all trained parameters and no others.

    Returns None, or why they do not fit; then nothing was done.
    """
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
        sys.stderr.write(f"error: {logs.printable(str(error))}\n")
        return 2
    return 0


def command() -> int:
    """`main` as a command. SIGTERM (exit status 143) and Ctrl-C (130) leave no unfinished folder behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logs.configure()
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(command())
