"""Prompts for both engines, and what a plain forward pass says of their replies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verl.config import RolloutConfig
from verl.engines import open_engine, pretrained
from verl.engines.base import RolloutEngine
from verl.engines.inputs import PromptInputs, collate, process
from verl.protocol import Batch, Prompt

WORDS = "the red circle which moves to left and does not blue square target small large behind".split(" ")  # noqa: SIM905


def engine_of(folder: Path, name: str = "vllm", **changes) -> RolloutEngine:
    config = RolloutConfig(name=name, **{"max_model_len": 512, **changes})
    return open_engine(str(folder), config=config, device="cpu", dtype=torch.float32)


def some_prompts(folder: Path, count: int) -> list[PromptInputs]:
    """Prompts of all kinds: none to three pictures of several sizes, one word to twelve."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        sizes = [(28 * int(rng.integers(1, 5)), 28 * int(rng.integers(1, 5))) for _ in range(number % 4)]
        made.append(one_prompt(folder, sizes, " ".join(rng.choice(WORDS, int(rng.integers(1, 13)))), rng=rng))
    return made


def one_prompt(folder: Path, sizes: list[tuple[int, int]], text: str, *, rng: np.random.Generator) -> PromptInputs:
    """Noise of these sizes, and a text."""
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    prompt = Prompt("p", [{"role": "user", "content": content}], images, None)
    return process(prompt, pretrained.load_processor(folder), max_length=400)


def words(replies: Batch) -> list[list[int]]:
    """Each reply's tokens."""
    return [row[mask.bool()].tolist() for row, mask in zip(replies["responses"], replies["response_mask"], strict=True)]


@torch.no_grad()
def plain_logprobs(
    model: nn.Module, prompts: list[PromptInputs], replies: Batch, *, n: int, temperature: float
) -> Tensor:
    """(B, R) log-probabilities of the replies by one forward pass over prompts and replies together."""
    tokens_BR, mask_BR = replies["responses"], replies["response_mask"]
    repeated = [prompt for prompt in prompts for _ in range(n)]
    logits = model(**collate(repeated, tokens_BR, mask_BR, pad_id=0)).logits[:, -tokens_BR.shape[1] - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(2, tokens_BR[..., None])[..., 0] * mask_BR
