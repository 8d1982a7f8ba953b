"""The device of this process: which it is, how processes on such devices talk, how much memory was used."""

from __future__ import annotations

import os
import resource
from datetime import timedelta

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
