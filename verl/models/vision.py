"""Look at a prompt's images once, however many of its replies are in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from verl.engines.inputs import PromptInputs


def without_repeats(prompts: Sequence[PromptInputs]) -> list[PromptInputs]:
    """The same prompts, patches only where a prompt stands for the first time; for use within `images_once`."""
    seen: set[int] = set()
    found = []
    for prompt in prompts:
        again = prompt.pixel_values is not None and id(prompt) in seen
        found.append(replace(prompt, pixel_values=prompt.pixel_values[:0]) if again else prompt)
        seen.add(id(prompt))
    return found


@contextmanager
def images_once(tower: nn.Module, prompts: Sequence[PromptInputs]) -> Iterator[None]:
    """Within: the model may be given the patches of these prompts `without_repeats`, but the image grids of all.

    The vision tower is shown the grids that it has patches for; what it sees is repeated for the model.
    """
    pictured = [prompt for prompt in prompts if prompt.pixel_values is not None]
    distinct = {id(prompt): prompt for prompt in pictured}
    if len(distinct) == len(pictured):
        yield
        return
    grids = torch.cat([prompt.image_grid_thw for prompt in distinct.values()])
    spans, end = {}, 0
    for key, prompt in distinct.items():
        start, end = end, end + int(prompt.image_grid_thw.prod(dim=1).sum()) // tower.spatial_merge_size**2
        spans[key] = torch.arange(start, end)
    index = torch.cat([spans[id(prompt)] for prompt in pictured])

    def show(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "grid_thw": grids.to(kwargs["grid_thw"].device)}

    def spread(module: nn.Module, args: tuple, output: Any) -> Any:
        output.pooler_output = output.pooler_output[index.to(output.pooler_output.device)]
        return output

    hooks = tower.register_forward_pre_hook(show, with_kwargs=True), tower.register_forward_hook(spread)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
