"""Checks whether an engine holds the weights it was sent, by what a weight does to one fixed vector.

Engines fuse, pad, shard and repack weights, so the tensors themselves cannot be compared. The product of a matrix and a
vector can: it is as long as the matrix has rows, and a fused or sharded matrix has the products of its parts. The
second half finds a Hugging Face weight in vLLM's model: fused with others, cut over ranks, repacked for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5
"""Relative distance that rounding explains. One step at a learning rate of 1e-6 moves a product further."""
PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "visual.": "model.visual.",
}
"""vLLM's and Hugging Face's, for the Qwen-VL family."""

FUSED = {"qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"}, "gate_up_proj": {"gate_proj": 0, "up_proj": 1}}
"""A fused layer's parts with vLLM's names for them."""


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


# ------------------------------------------------------------------------------------------------ vLLM's model


@dataclass(frozen=True)
class Place:
    """One Hugging Face weight in the engine."""

    module: nn.Module
    leaf: str
    """weight or bias."""
    part: str | int | None
    """Of a fused layer; None: the whole."""


def places(model: nn.Module) -> dict[str, Place]:
    """By Hugging Face name, every weight of the engine's model, a tied head included."""
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        path, leaf = name.rsplit(".", 1)
        owner, last = path.rsplit(".", 1)
        for part, code in FUSED.get(last, {last: None}).items():
            found[_theirs(f"{owner}.{part}.{leaf}")] = Place(model.get_submodule(path), leaf, code)
    return found


def _theirs(name: str) -> str:
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def tie(model: nn.Module) -> None:
    """Make the head the embeddings again, and what is packed of it anew."""
    head, embeddings = model.language_model.lm_head, model.language_model.model.embed_tokens
    head.tie_weights(embeddings)
    head.quant_method.process_weights_after_loading(head)


def differing(found: dict[str, Place], sent: Fingerprints) -> dict[str, float]:
    """Weights that are not what was sent, with their relative distance. All ranks of a group must ask."""
    return sent.differing(found, lambda name, values: _compare(found[name], values))


def _compare(place: Place, sent: Tensor) -> tuple[Tensor, Tensor]:
    """What the engine has of a weight and what it should have, as fingerprints of this rank's share."""
    module, parameter = place.module, getattr(place.module, place.leaf)
    has = _made_of_probe(module) if place.leaf == "weight" and _is_linear(module) else fingerprint(parameter)
    wanted = _share(module, has.shape[0], sent, place.part)
    there = ~wanted.isnan()  # the other parts of a fused layer
    return has.cpu()[there], wanted[there]


def _is_linear(module: nn.Module) -> bool:
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return isinstance(module, LinearBase | ParallelLMHead)


def _made_of_probe(layer: nn.Module) -> Tensor:
    """The fingerprint of the weight that a layer multiplies by, which on a CPU is a packed copy of its parameter."""
    from vllm.distributed import tensor_model_parallel_all_reduce
    from vllm.model_executor.layers.linear import RowParallelLinear

    by_columns = isinstance(layer, RowParallelLinear) and layer.tp_size > 1
    features = layer.embedding_dim if hasattr(layer, "embedding_dim") else layer.input_size
    given = probe(features, device=layer.weight.device)
    if by_columns:
        given = given.chunk(layer.tp_size)[layer.tp_rank]
    if layer.weight.device.type == "cpu":
        made = layer.quant_method.apply(layer, given[None], None)[0]
    else:
        made = layer.weight.float() @ given
    return tensor_model_parallel_all_reduce(made) if by_columns else made


def _share(module: nn.Module, rows: int, sent: Tensor, part: str | int | None) -> Tensor:
    """What of a whole weight's fingerprint belongs to this rank, laid out as the engine's: (rows,), NaN elsewhere.

    The layer's own loader does it, as it does with the weight.
    """
    loader = getattr(module, "weight_loader", None)
    if loader is None:
        return sent
    share = nn.Parameter(torch.full((rows,), torch.nan), requires_grad=False)
    share.output_dim = 0
    loader(share, sent, *([] if part is None else [part]))
    return share.data
