"""Implements Muon in float32: momentum whose matrix updates are made orthogonal by five Newton-Schulz steps.

Source: Keller Jordan's optimiser of 2024. PyTorch's own iterates in bfloat16, which is some 50 times slower than
float32 on a CPU without that type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Updates matrices; other parameters need another optimiser."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            wrong = [tuple(p.shape) for p in group["params"] if p.dim() != 2]
            if wrong:
                raise ValueError(f"Muon takes matrices, found shapes {wrong}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure is not supported
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append((p, p.grad))
            for (rows, columns), matrices in by_shape.items():
                directions = []
                for p, gradient in matrices:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(average, group["momentum"]))  # Nesterov's look ahead
                scale = 0.2 * max(rows, columns) ** 0.5  # the size of an AdamW step
                for (p, _), update in zip(matrices, orthogonal(torch.stack(directions)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Returns near-orthogonal matrices (B, n, m): the same singular vectors, singular values from 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
