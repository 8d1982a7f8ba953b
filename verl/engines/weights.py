"""Checks whether an engine holds the weights it was sent, by what a weight does to one fixed vector.

Engines fuse, pad, shard and repack weights, so the tensors themselves cannot be compared. The product of a matrix and a
vector can: it is as long as the matrix has rows, and a fused or sharded matrix has the products of its parts. The
second half finds a Hugging Face weight in vLLM's model: fused with others, cut over ranks, repacked for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Relative distance that rounding explains. One step at a learning rate of 1e-6 moves a product further."""
PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "visual.": "model.visual.",
}
"""vLLM's prefixes of names, with Hugging Face's, for the Qwen-VL family."""

FUSED: dict[str, dict[str, str | int | None]] = {
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
}
"""A fused layer's parts with vLLM's names for them."""


def probe(features: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The vector, (features,) float32 of about length 1; it is the same in every process."""
    generator = torch.Generator().manual_seed(features)
    return (torch.randn(features, generator=generator) / features**0.5).to(device)


def fingerprint(tensor: Tensor) -> Tensor:
    """The products of a weight's rows and the probe, (rows,) float32, whatever the axes behind the first. A vector is
    its own fingerprint."""
    if tensor.dim() < 2:
        return tensor.detach().float()
    rows = tensor.detach().flatten(1).float()
    return rows @ probe(rows.shape[1], device=rows.device)


class Fingerprints:
    """The fingerprints of the weights of one stream, by name."""

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` is that of the engine: a weight is compared as it was rounded."""
        self._dtype = dtype
        self._sent: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sent

    def watch(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass the weights on, noting their fingerprints; those of the stream before are forgotten."""
        self._sent.clear()
        for name, tensor in weights:
            self._sent[name] = fingerprint(tensor.to(self._dtype)).cpu()
            yield name, tensor

    def differing(
        self, names: Iterable[str], compare: Callable[[str, Tensor], tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Relative distances of those of the weights `names` that differ from what was sent; infinite for a weight that
        was not sent at all.

        ``compare(name, sent)`` returns what the engine has, and what of `sent` it should have in the same form.
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


# ------------------------------------------------------------------------------------------------ vLLM's model


@dataclass(frozen=True)
class Place:
    """The position of one Hugging Face weight in the engine."""

    module: Any
    """A layer of vLLM, whose classes are known where vLLM is installed only."""
    leaf: str
    """weight or bias."""
    part: str | int | None
    """The part of a fused layer; None: the whole."""


def places(model: nn.Module) -> dict[str, Place]:
    """The place of every weight of the engine's model by its Hugging Face name, a tied head included."""
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        path, leaf = name.rsplit(".", 1)
        owner, last = path.rsplit(".", 1)
        parts = FUSED.get(last, {last: None})
        for part, code in parts.items():
            whole = f"{owner}.{part}.{leaf}"
            prefix = next((prefix for prefix in PREFIXES if whole.startswith(prefix)), "")
            theirs = PREFIXES.get(prefix, "") + whole.removeprefix(prefix)
            found[theirs] = Place(model.get_submodule(path), leaf, code)
    return found


def differing(found: Mapping[str, Place], sent: Fingerprints) -> dict[str, float]:
    """Weights that are not what was sent, with their relative distance. All ranks of a group must ask.

    Compared are the fingerprints of this rank's share of each weight.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    def compare(name: str, whole: Tensor) -> tuple[Tensor, Tensor]:
        place, module = found[name], found[name].module
        by_product = place.leaf == "weight" and isinstance(module, LinearBase | ParallelLMHead)
        has = _product_with_probe(module) if by_product else fingerprint(getattr(module, place.leaf))
        wanted = whole
        if hasattr(module, "weight_loader"):  # it takes this rank's share, laid out as the engine's, as of the weight
            share: Any = nn.Parameter(torch.full((has.shape[0],), torch.nan), requires_grad=False)
            share.output_dim = 0
            module.weight_loader(share, whole, *([] if place.part is None else [place.part]))
            wanted = share.data
        there = ~wanted.isnan()  # NaN: the other parts of a fused layer
        return has.cpu()[there], wanted[there]

    return sent.differing(found, compare)


def _product_with_probe(layer: Any) -> Tensor:
    """The fingerprint of the weight that a layer multiplies by, which on a CPU is a packed copy of its parameter."""
    from vllm.distributed import tensor_model_parallel_all_reduce
    from vllm.model_executor.layers.linear import RowParallelLinear

    by_columns = isinstance(layer, RowParallelLinear) and layer.tp_size > 1
    features = layer.embedding_dim if hasattr(layer, "embedding_dim") else layer.input_size
    given = probe(features, device=layer.weight.device)
    if by_columns:
        given = given.chunk(layer.tp_size)[layer.tp_rank]
    if layer.weight.device.type == "cpu":
        product = layer.quant_method.apply(layer, given[None], None)[0]
    else:
        product = layer.weight.float() @ given
    return tensor_model_parallel_all_reduce(product) if by_columns else product
