"""Randomness and who owns it: seeds made from what they are for, and the state of all generators of a process."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch


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
