"""Does an engine hold the weights it was sent? Told by what a weight does to one fixed vector.

Engines fuse, pad, shard and repack weights, so that the tensors themselves cannot be compared. What a matrix makes of a
vector can: the product is as long as the matrix has rows, and a fused or sharded matrix has the products of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Relative distance that rounding explains. One step at a learning rate of 1e-6 moves a product further."""


def probe(features: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The vector (features,) float32 of about length 1; the same in every process."""
    generator = torch.Generator().manual_seed(features)
    return (torch.randn(features, generator=generator) / features**0.5).to(device)


def fingerprint(tensor: Tensor) -> Tensor:
    """(rows,) float32: rows · probe, whatever the axes behind the first; a vector stands for itself."""
    if tensor.dim() < 2:
        return tensor.detach().float()
    rows = tensor.detach().flatten(1).float()
    return rows @ probe(rows.shape[1], device=rows.device)


class Fingerprints:
    """Of the weights of one stream, by name."""

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is the engine's: a weight is compared as it was rounded."""
        self._dtype = dtype
        self._sent: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sent

    def watch(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, seen on their way. Forgets those of the stream before."""
        self._sent.clear()
        for name, tensor in weights:
            self._sent[name] = fingerprint(tensor.to(self._dtype)).cpu()
            yield name, tensor

    def differing(
        self, names: Iterable[str], compare: Callable[[str, Tensor], tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Relative distances by name: of the weights `names` those that differ from what was sent, infinite for one
        that was not sent at all.

        ``compare(name, sent)`` gives what the engine has and what of `sent` it should have, in the same form.
        """
        found = {}
        for name in names:
            if name not in self._sent:
                found[name] = float("inf")
                continue
            has, wanted = (values.float().cpu() for values in compare(name, self._sent[name]))
            distance = float((has - wanted).norm() / wanted.norm().clamp(min=1e-12))
            if not distance <= TOLERANCE:
                found[name] = distance
        return found
