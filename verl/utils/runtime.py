"""The runtime of one process: its device, its place in the process group, its memory, its random generators."""

from __future__ import annotations

import os
import random
import resource
import zlib
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def rank_device() -> torch.device:
    """This process's own device. A Ray worker sees one GPU; under torchrun LOCAL_RANK picks it."""
    if device_type() == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def join(*, rank: int, world_size: int, init_method: str, timeout_s: float = 1800.0) -> None:
    """Enter the process group of the run; a group of one works too. `init_method`: ``tcp://host:port`` or ``file://…``.

    On GPUs tensors go over nccl and what lives on the CPU, such as checkpoint plans, over gloo.
    """
    backend = "gloo" if device_type() == "cpu" else "cpu:gloo,cuda:nccl"
    rank_device()
    dist.init_process_group(
        backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def leave() -> None:
    """Leave the process group, if in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_cache() -> None:
    """Give memory that torch holds but does not use back to the device."""
    if device_type() == "cuda":
        torch.cuda.empty_cache()


def peak_memory_gib(device: torch.device) -> float:
    """Most memory in use so far: of the GPU by torch, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


# ------------------------------------------------------------------------------------------------ randomness


def derive(*parts: int | str) -> int:
    """A seed (32 bits) for one purpose, such as ``derive(seed, epoch, index)``; the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global state)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """State of every generator of this process, in types that ``torch.load(weights_only=True)`` reads."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
