"""The environment of a check: its device, folders and process group, a random Qwen2.5-VL and its prompts."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from demo.policy import PolicySize, build_config, build_processor
from demo.tokenizer import SPECIAL, build_tokenizer
from verl.config import ActorConfig, FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.engines import pretrained
from verl.engines.inputs import PromptInputs, process
from verl.protocol import Batch, Prompt
from verl.utils import runtime
from verl.workers.actor import Actor

GROUP = 4
"""Replies to a prompt."""
PROMPT = 8192
"""Tokens of a prompt, at most."""
ADAPTER_RANK = 8


class CheckError(RuntimeError):
    """Something ran and gave what it must not."""


def expect(holds: bool, problem: str) -> None:
    if not holds:
        raise CheckError(problem)


@dataclass(frozen=True)
class Size:
    """The size of the policy and of its prompts."""

    policy: PolicySize
    vocabulary: int
    """Rows of the embeddings: more than the tokenizer has tokens, as in the released models."""
    pictures: int
    side: int
    """Pixels of a picture, a multiple of 28."""
    reply: int
    """Tokens of the longest reply."""
    shard_bytes: int
    """Largest file of the checkpoint, which is meant to have several."""
    lr: float
    """Learning rate of all weights: large enough for a second step to be better than the first."""
    adapter_lr: float
    """Large enough for one step to move log-probabilities by more than bfloat16 rounds them."""
    tied: bool = False
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration in which this size is not like the demo's policy."""


SIZES = {
    "tiny": Size(
        PolicySize(vision_layers=2),
        vocabulary=2048,
        pictures=2,
        side=84,
        reply=12,
        shard_bytes=200_000,
        lr=1e-3,
        adapter_lr=0.05,
        vision={"fullatt_block_indexes": [1]},
    ),
    # The widths of the 3B model in fewer layers, 1.05e9 parameters: with gradients, both moments and what AdamW needs
    # beside them 19.5 GiB in float32, which a card of 24 GiB holds.
    "mid": Size(
        PolicySize(hidden=2048, layers=7, mlp=11008, vision_hidden=1280, vision_layers=8, vision_mlp=3420),
        vocabulary=151_936,
        pictures=4,
        side=336,
        reply=96,
        shard_bytes=500_000_000,
        lr=2e-5,
        adapter_lr=0.02,
        tied=True,
        text={
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "initializer_range": 0.02,
        },
        vision={"num_heads": 16, "fullatt_block_indexes": [3, 7], "initializer_range": 0.02},
    ),
}


class Place:
    """The arguments of a check. The environment holds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""

    def __init__(self, *, size: str, model: Path, scratch: Path) -> None:
        """`model`: the random policy's folder; `scratch`: an empty folder that all ranks share."""
        self.size, self.model, self.scratch = size, model, scratch
        self.sizes = SIZES[size]
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.device = runtime.rank_device()
        self.edges: list[dict[str, Any]] = []

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def edge(self, label: str) -> float:
        """Note, and return, the GiB that torch's tensors hold now; beside it all that the device has given away, to
        whomever. On a CPU both are the memory of this process."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            held, given = torch.cuda.memory_allocated(self.device), total - free
        else:
            held = given = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.edges.append({"at": label, "tensors_gib": held / 2**30, "device_gib": given / 2**30})
        return held / 2**30

    @contextmanager
    def group(self) -> Iterator[None]:
        """The process group of all ranks of the check, as a training worker enters it."""
        runtime.join(rank=self.rank, world_size=self.world_size, init_method="env://", timeout_s=120)
        try:
            yield
        finally:
            runtime.leave()

    def write_policy(self) -> PreTrainedModel:
        """Write the random policy to its folder; the model in bfloat16, its weights drawn on the device."""
        tokenizer = build_tokenizer()
        config = build_config(tokenizer, self.sizes.policy)
        config.text_config.update({"vocab_size": self.sizes.vocabulary, **self.sizes.text})
        config.vision_config.update(self.sizes.vision)
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = self.sizes.tied
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(**ends)
        model.save_pretrained(self.model, max_shard_size=self.sizes.shard_bytes)
        build_processor(tokenizer).save_pretrained(self.model)
        return model

    def actor_config(
        self, *, adapter: bool = False, dtype: str = "bfloat16", checkpointing: bool = True, **fields: Any
    ) -> ActorConfig:
        """As training has it: groups go through together, the gradient is the policy loss's alone."""
        offloaded = fields.pop("offloaded", False)
        rows = {"micro_batch_size_per_device_for_update": GROUP, "micro_batch_size_per_device_for_experience": GROUP}
        lora = LoraConfig(rank=ADAPTER_RANK if adapter else 0)
        return ActorConfig(
            model=ModelConfig(str(self.model), enable_gradient_checkpointing=checkpointing, lora=lora),
            optim=OptimConfig(lr=self.sizes.adapter_lr if adapter else self.sizes.lr),
            fsdp=FSDPConfig(torch_dtype=dtype, param_offload=offloaded, optimizer_offload=offloaded),
            **{"use_kl_loss": False, "entropy_coeff": 0.0, **rows, **fields},
        )

    def actor(self, **how: Any) -> Actor:
        """See `actor_config`."""
        return Actor(self.actor_config(**how), temperature=1.0)

    def prompts(self) -> list[Prompt]:
        """This rank's two prompts, of different lengths."""
        rng, sizes = np.random.default_rng(self.rank), self.sizes
        prompts = []
        for number in range(2):
            text = {"type": "text", "text": "what moves? " * (number + 1)}
            content = [*({"type": "image"} for _ in range(sizes.pictures)), text]
            images = [rng.integers(0, 256, (sizes.side, sizes.side, 3), dtype=np.uint8) for _ in range(sizes.pictures)]
            prompts.append(Prompt(f"{self.rank}/{number}", [{"role": "user", "content": content}], images, None))
        return prompts

    def inputs(self) -> list[PromptInputs]:
        processor = pretrained.load_processor(self.model)
        return [process(prompt, processor, max_length=PROMPT) for prompt in self.prompts()]

    def rollouts(self) -> Batch:
        """Replies as if someone had drawn them: `GROUP` to each prompt, of lengths down to 1, every second one
        praised."""
        inputs, reply = self.inputs(), self.sizes.reply
        generator = torch.Generator().manual_seed(self.rank)
        count = len(inputs) * GROUP
        lengths = torch.linspace(reply, 1, count).long()
        responses = torch.randint(0, self.sizes.vocabulary - len(SPECIAL), (count, reply), generator=generator)
        special = len(build_tokenizer()) - len(SPECIAL)  # the first of them; they end the tokenizer
        tensors = {
            "responses": responses + len(SPECIAL) * (responses >= special),
            "response_mask": (torch.arange(reply) < lengths[:, None]).long(),
            "advantages": torch.tensor([1.0, -1.0]).repeat(count // 2),
        }
        return Batch(tensors, {"inputs": [item for item in inputs for _ in range(GROUP)]})
