"""Where a check runs: its device and folders, its process group, and a note of memory at each edge."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from verl.config import ActorConfig, FSDPConfig, LoraConfig, ModelConfig, OptimConfig
from verl.engines import pretrained
from verl.engines.inputs import PromptInputs
from verl.gpu_check import policy
from verl.protocol import Batch
from verl.utils import device
from verl.workers.actor import Actor

ADAPTER_RANK = 8


class CheckError(RuntimeError):
    """Something ran and gave what it must not."""


def expect(holds: bool, problem: str) -> None:
    if not holds:
        raise CheckError(problem)


class Place:
    """What a check is given. The environment holds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""

    def __init__(self, *, size: str, model: Path, scratch: Path) -> None:
        """`model`: the random policy's folder; `scratch`: an empty folder that all ranks share."""
        self.size, self.model, self.scratch = size, model, scratch
        self.sizes = policy.SIZES[size]
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.device = device.rank_device()
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
        device.join(rank=self.rank, world_size=self.world_size, init_method="env://", timeout_s=120)
        try:
            yield
        finally:
            device.leave()

    def actor_config(
        self, *, adapter: bool = False, dtype: str = "bfloat16", checkpointing: bool = True, **fields: Any
    ) -> ActorConfig:
        """As training has it: groups go through together, the gradient is the policy loss's alone."""
        offloaded = fields.pop("offloaded", False)
        rows = {"micro_batch_size_per_device_for_update": policy.GROUP}
        rows["micro_batch_size_per_device_for_experience"] = policy.GROUP
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

    def inputs(self) -> list[PromptInputs]:
        return policy.read(self.sizes, pretrained.load_processor(self.model), rank=self.rank)

    def rollouts(self) -> Batch:
        """Made-up replies to this rank's prompts, see `policy.rollouts`."""
        return policy.rollouts(self.sizes, self.inputs(), rank=self.rank)
