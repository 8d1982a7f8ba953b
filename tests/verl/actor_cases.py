"""A tiny policy with six replies to three prompts, and a process group to train it in: for the tests of the actor."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from demo.policy import PolicySize, build_config, build_processor, write_tiny_policy
from demo.tokenizer import build_tokenizer
from verl.config import ActorConfig, FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.engines import pretrained
from verl.engines.inputs import PromptInputs, process
from verl.protocol import Batch, Prompt
from verl.utils import runtime
from verl.workers.actor import Actor

LENGTHS = (7, 3, 5, 1, 4, 6)
"""Tokens of the six replies."""


def write_policy(folder: Path, *, tied: bool = False) -> Path:
    """A tiny Qwen2.5-VL of two vision and two text layers."""
    size = PolicySize(hidden=64, mlp=64, vision_layers=2)
    if not tied:
        write_tiny_policy(folder, seed=3, size=size)
        return folder
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    config = build_config(tokenizer, size)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


def actor_config(policy: Path, *, rank: int = 0, checkpointing: bool = False, frozen: bool = False, **fields: Any):
    model = ModelConfig(
        model_path=str(policy),
        enable_gradient_checkpointing=checkpointing,
        freeze_vision_tower=frozen,
        lora=LoraConfig(rank=rank),
    )
    return ActorConfig(model=model, optim=OptimConfig(lr=1e-3), fsdp=FSDPConfig(), **fields)


def open_actor(policy: Path, *, rank: int = 0, total_steps: int = 0, **fields: Any) -> Actor:
    actor = Actor(actor_config(policy, rank=rank, **fields), temperature=0.9, total_steps=total_steps)
    # Adam divides by a gradient's size, be it rounding noise: with this, weights after a step can be compared.
    actor.optimizer.param_groups[0]["eps"] = 1e-6
    if rank:  # a new adapter does nothing yet: give its other half some weight, the same on all ranks
        generator = torch.Generator().manual_seed(5)
        for name, parameter in actor.trained.items():
            if "lora_B" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.05
                shards = values.chunk(actor.mesh.size())
                parameter.detach().to_local().copy_(shards[actor.mesh.get_local_rank()])
    return actor


def prompts(policy: Path) -> list[PromptInputs]:
    """Two images, one image of another size, and none."""
    processor = pretrained.load_processor(policy)
    made = []
    for images, words, side in ((2, 3, 56), (1, 5, 84), (0, 2, 0)):
        rng = np.random.default_rng(words)
        content = [*[{"type": "image"}] * images, {"type": "text", "text": "circle " * words}]
        pixels = [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(images)]
        prompt = Prompt(f"p{images}", [{"role": "user", "content": content}], pixels, None)
        made.append(process(prompt, processor, max_length=1000))
    return made


def six_rollouts(policy: Path, *, seed: int = 0, groups: tuple[int, int, int] = (2, 2, 2)) -> Batch:
    """Two replies (or as many as `groups` says) to each prompt, with log-probabilities as if drawn a while ago."""
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randint(0, 1500, (6, max(LENGTHS)), generator=generator)
    mask = torch.tensor([[1] * length + [0] * (max(LENGTHS) - length) for length in LENGTHS])
    tensors = {
        "responses": responses,
        "response_mask": mask,
        "advantages": torch.randn(6, generator=generator),
        "old_logprobs": -7.3 + 0.2 * torch.randn(responses.shape, generator=generator),
        "ref_logprobs": -7.3 + 0.2 * torch.randn(responses.shape, generator=generator),
    }
    made = zip(prompts(policy), groups, strict=True)
    return Batch(tensors, {"inputs": [prompt for prompt, count in made for _ in range(count)]})


def weights(actor: Actor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in actor.weights()}


def largest_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@contextmanager
def group(folder: Path, *, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """A gloo group that meets at a file."""
    threads, interface = torch.get_num_threads(), os.environ.get("GLOO_SOCKET_IFNAME")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = folder / f"meeting_{world_size}"
    runtime.join(rank=rank, world_size=world_size, init_method=f"file://{meeting}", timeout_s=600)
    try:
        yield
    finally:
        runtime.leave()
        torch.set_num_threads(threads)
        os.environ.pop("GLOO_SOCKET_IFNAME")
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def on_two_ranks(
    scenario: Callable[[int, Path], dict[str, Any]], folder: Path, *, timeout_s: float = 600
) -> list[dict[str, Any]]:
    """Run `scenario(rank, folder)` in two processes of one group; what each returned."""
    # Both are forked from a server that imported everything once, which takes longer than most scenarios.
    multiprocessing.set_forkserver_preload(["verl.workers.checkpoint", "demo.policy"])
    running = start_processes(_one_of_two, (scenario, folder), nprocs=2, join=False, start_method="forkserver")
    end = time.monotonic() + timeout_s
    try:
        while not running.join(timeout=1):
            assert time.monotonic() < end, f"two ranks took longer than {timeout_s} s"
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{scenario.__name__}_{rank}.pt", weights_only=False) for rank in range(2)]


def _one_of_two(rank: int, scenario: Callable[[int, Path], dict[str, Any]], folder: Path) -> None:
    with group(folder, rank=rank, world_size=2):
        torch.save(scenario(rank, folder), folder / f"{scenario.__name__}_{rank}.pt")
