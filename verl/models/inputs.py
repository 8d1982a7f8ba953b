"""Prompts as a vision-language model takes them: tokens, patches, and batches of both with the replies appended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl.config import ConfigError
from verl.protocol import Prompt


@dataclass(frozen=True)
class PromptInputs:
    """One prompt after the processor; made once per prompt and worker, shared by all its rollouts."""

    input_ids: Tensor
    """(P,) int64, image tokens expanded."""
    mm_token_type_ids: Tensor
    """(P,) int64: 1 on image tokens. Without them transformers 5 gives image tokens text positions."""
    pixel_values: Tensor | None
    """(patches, patch features) float32; None for a prompt without images."""
    image_grid_thw: Tensor | None
    """(images, 3) int64."""
    bare_ids: Tensor
    """(P',) int64 with ONE image token per image: what an engine that expands images itself is given."""
    images: tuple[Any, ...] = ()
    """The pictures themselves, for such an engine."""

    def __len__(self) -> int:
        """Prompt tokens P."""
        return len(self.input_ids)


def process(prompt: Prompt, processor: Any, *, max_length: int) -> PromptInputs:
    """Run the processor over one prompt, its images at hand. ConfigError if it has more than `max_length` tokens."""
    images = [Image.fromarray(image) for image in prompt.images]
    text = processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    made = processor(text=[text], images=images or None, return_tensors="pt")
    length = made["input_ids"].shape[1]
    if length > max_length:
        raise ConfigError(
            f"{prompt.uid}: the prompt has {length} tokens, data.max_prompt_length is {max_length}; "
            "show fewer or smaller frames, or raise it"
        )
    return PromptInputs(
        input_ids=made["input_ids"][0],
        mm_token_type_ids=made["mm_token_type_ids"][0].long(),
        pixel_values=made.get("pixel_values"),
        image_grid_thw=made.get("image_grid_thw"),
        bare_ids=processor.tokenizer(text, return_tensors="pt")["input_ids"][0],
        images=tuple(images),
    )


def prompt_lengths(
    prompts: Sequence[tuple[list[dict[str, Any]], Sequence[tuple[int, int]]]], processor: Any
) -> list[int]:
    """Tokens of each prompt as `process` will make them, from its messages and the (height, width) of its images.

    No picture is needed: the tokens of an image follow from its size, and a blank one is processed once for each.
    """
    texts = [processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m, _ in prompts]
    bare = [len(ids) for ids in processor.tokenizer(texts)["input_ids"]] if texts else []  # one token per image
    alone = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    more = {}
    for size in {size for _, sizes in prompts for size in sizes}:
        whole = processor(text=[alone], images=[Image.new("RGB", size[::-1])])["input_ids"][0]
        more[size] = len(whole) - len(processor.tokenizer(alone)["input_ids"])
    return [length + sum(more[size] for size in sizes) for length, (_, sizes) in zip(bare, prompts, strict=True)]


def collate(
    prompts: Sequence[PromptInputs], responses_BR: Tensor, mask_BR: Tensor, *, pad_id: int
) -> dict[str, Tensor]:
    """Model inputs of B prompts with their replies: prompts left-padded, replies right-padded, so that the R response
    positions are the last R columns. `responses_BR` may have R = 0 (prompts alone, for generation)."""
    width = max(len(prompt) for prompt in prompts)
    ids_BP = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    types_BP, mask_BP = torch.zeros_like(ids_BP), torch.zeros_like(ids_BP)
    for row, prompt in enumerate(prompts):
        ids_BP[row, width - len(prompt) :] = prompt.input_ids
        types_BP[row, width - len(prompt) :] = prompt.mm_token_type_ids
        mask_BP[row, width - len(prompt) :] = 1
    padded_BR = torch.where(mask_BR.bool(), responses_BR, pad_id)
    inputs = {
        "input_ids": torch.cat([ids_BP, padded_BR], dim=1),
        "attention_mask": torch.cat([mask_BP, mask_BR.long()], dim=1),
        "mm_token_type_ids": torch.cat([types_BP, torch.zeros_like(padded_BR)], dim=1),
    }
    pictured = [prompt for prompt in prompts if prompt.pixel_values is not None]
    if pictured:
        inputs["pixel_values"] = torch.cat([prompt.pixel_values for prompt in pictured])
        inputs["image_grid_thw"] = torch.cat([prompt.image_grid_thw for prompt in pictured])
    return inputs
