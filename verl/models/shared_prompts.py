"""Runs the prompt that several replies share through the model once: its tokens, by packing, and its images.

Packing makes one sequence of a micro-batch. Group after group stands the prompt without its last token, then a stretch
for each reply: the prompt's last token and the reply without its last. Every token of a stretch predicts the next one
of its reply; the logits of all stretches are those of all reply tokens, one after another, and no others are made.
Positions are those of a row of its own: each stretch goes on right after the prompt. With a prompt ``p q r`` and
replies ``a b`` and ``c d e``::

    tokens     p q | r a | r c d
    positions  0 1 | 2 3 | 2 3 4
    predicted      | a b | c d e

A stretch attends to its prompt and to itself, so a layer attends stretch by stretch. No token is padding, however much
lengths differ. What a whole square of attention would cost, T² for T tokens, is paid for each prompt and each stretch's
rectangle alone; keys and values of the prompt are laid beside each stretch's own, which takes as much memory as in rows
of their own.

Rows that are not packed can still share their images: the vision tower is shown each prompt's once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from verl.engines.inputs import PromptInputs

NAME = "verl_packed"


@dataclass(frozen=True)
class Layout:
    """The places of prompts and stretches in a packed sequence, for attention."""

    groups: tuple[tuple[int, ...], ...]
    """For each prompt its tokens but the last, then the tokens of each stretch; 0 is possible."""
    seen: Tensor
    """(R, P + R) bool: the tokens of the longest prompt and of the longest stretch that each token of the stretch sees.
    That of a shorter stretch after a shorter prompt is a part of it."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]]) -> Layout:
        longest, reply = max(prompt for prompt, *_ in groups), max(size for _, *sizes in groups for size in sizes)
        seen = torch.ones(reply, longest + reply, dtype=torch.bool).tril(longest)
        return cls(tuple(map(tuple, groups)), seen)

    def seen_by(self, reply: int, prompt: int) -> Tensor:
        """(reply, prompt + reply) bool: the tokens that each token of a stretch sees."""
        start = self.seen.shape[1] - self.seen.shape[0] - prompt
        return self.seen[:reply, start : start + prompt + reply]

    def to(self, device: torch.device) -> Layout:
        return replace(self, seen=self.seen.to(device))


def use_packing(model: PreTrainedModel) -> bool:
    """Let the model's text layers take packed sequences beside ordinary rows; False, and nothing done, if they do not
    use torch's attention: flash_attention_2 and its kin know no such layout."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation({"text_config": NAME})
    return model.config.get_text_config()._attn_implementation == NAME


def collate(
    prompts: Sequence[PromptInputs], responses_BR: Tensor, mask_BR: Tensor, *, model: PreTrainedModel
) -> dict[str, Any]:
    """Inputs of one pass over B rows, for a model after `use_packing`; neighbours with the same prompt share it.

    The logits are (1, N, V) for the N tokens of the mask, row after row.
    """
    ids, positions, stretches, patches = list[Tensor](), list[Tensor](), list[Tensor](), list[tuple[Tensor, Tensor]]()
    groups: list[tuple[int, ...]] = []
    for _, members in groupby(range(len(prompts)), key=lambda row: id(prompts[row])):
        rows = list(members)
        prompt, sizes = prompts[rows[0]], mask_BR[rows].sum(dim=1).tolist()
        assert not prompt.mm_token_type_ids[-1], "a prompt ends with text: its last token stands once for each reply"
        position_3P = model.model.get_rope_index(
            prompt.input_ids[None], prompt.mm_token_type_ids[None], image_grid_thw=prompt.image_grid_thw
        )[0][:, 0]
        ids.append(prompt.input_ids[:-1])
        positions.append(position_3P[:, :-1])
        for row, size in zip(rows, sizes, strict=True):
            ids.append(torch.cat([prompt.input_ids[-1:], responses_BR[row]])[:size])
            positions.append(position_3P[:, -1:] + torch.arange(size))
        stretches += [torch.zeros(len(prompt) - 1), torch.ones(sum(sizes))]
        groups.append((len(prompt) - 1, *sizes))
        patches += [prompt.patches] if prompt.patches is not None else []
    inputs = {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat(positions, dim=1)[:, None],
        "logits_to_keep": torch.cat(stretches).nonzero()[:, 0],
        "packed": Layout.of(groups),
    }
    if patches:
        inputs["pixel_values"] = torch.cat([pixels for pixels, _ in patches])
        inputs["image_grid_thw"] = torch.cat([grids for _, grids in patches])
    return inputs


def _attend(
    module: nn.Module,
    query: Tensor,  # (1, heads, T, dimensions)
    key: Tensor,  # (1, shared heads, T, dimensions), as value
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers wants it: returns (1, T, heads, dimensions), and no weights. Rows that are not packed
    have torch's attention, whatever their number."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # split, not slices: the gradient of a slice is as large as the whole
    sizes = [size for group in packed.groups for size in group]
    pieces = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    made = []
    for prompt, *replies in packed.groups:
        prompt_q, prompt_k, prompt_v = next(pieces)
        if prompt:
            made.append(sdpa_attention_forward(module, prompt_q, prompt_k, prompt_v, None, **kwargs)[0])
        for size in replies:
            q, k, v = next(pieces)
            if size:
                k, v = torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)
                made.append(sdpa_attention_forward(module, q, k, v, packed.seen_by(size, prompt), **kwargs)[0])
    return torch.cat(made, dim=1), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


# ------------------------------------------------------------------------------------------------ images


def without_repeats(prompts: Sequence[PromptInputs]) -> list[PromptInputs]:
    """The same prompts, patches only where a prompt stands for the first time; for use within `images_once`."""
    seen: set[int] = set()
    found = []
    for prompt in prompts:
        again = id(prompt) in seen
        seen.add(id(prompt))
        if again and prompt.pixel_values is not None:
            prompt = replace(prompt, pixel_values=prompt.pixel_values[:0])
        found.append(prompt)
    return found


@contextmanager
def images_once(tower: Any, prompts: Sequence[PromptInputs]) -> Iterator[None]:
    """Within, the model may be given the patches of these prompts `without_repeats`, but the image grids of all.

    The vision tower (a module of the model's own class) is shown the grids that it has patches for; its output is
    repeated for the model.
    """
    pictured = [(id(prompt), prompt.patches[1]) for prompt in prompts if prompt.patches is not None]
    distinct = dict(pictured)
    if len(distinct) == len(pictured):
        yield
        return
    shown = torch.cat(list(distinct.values()))
    spans, end = {}, 0
    for key, grids in distinct.items():
        start, end = end, end + int(grids.prod(dim=1).sum()) // tower.spatial_merge_size**2
        spans[key] = torch.arange(start, end)
    index = torch.cat([spans[key] for key, _ in pictured])

    def show(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "grid_thw": shown.to(kwargs["grid_thw"].device)}

    def spread(module: nn.Module, args: tuple, output: Any) -> Any:
        output.pooler_output = output.pooler_output[index.to(output.pooler_output.device)]
        return output

    hooks = tower.register_forward_pre_hook(show, with_kwargs=True), tower.register_forward_hook(spread)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
