"""Turns prompts into the inputs of a vision-language model: tokens, patches, and batches of both with replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils import process_vision_info, smart_resize
from torch import Tensor

from verl.config import ConfigError
from verl.engines.base import EngineError
from verl.protocol import Prompt


@dataclass(frozen=True)
class PromptInputs:
    """One prompt after the processor. It is made once per prompt and worker, and shared by all its rollouts."""

    input_ids: Tensor
    """(P,) int64, image tokens expanded."""
    mm_token_type_ids: Tensor
    """(P,) int64: 1 on image tokens. Without them transformers 5 gives image tokens text positions."""
    pixel_values: Tensor | None
    """(patches, patch features) float32; None for a prompt without images."""
    image_grid_thw: Tensor | None
    """(images, 3) int64."""
    bare_ids: Tensor
    """(P',) int64 with ONE image token per image, for an engine that expands images itself."""
    images: tuple[Any, ...] = ()
    """The pictures themselves, for such an engine."""

    def __len__(self) -> int:
        """The number of prompt tokens P."""
        return len(self.input_ids)

    @property
    def patches(self) -> tuple[Tensor, Tensor] | None:
        """`pixel_values` and `image_grid_thw`; None for a prompt without images."""
        if self.pixel_values is None or self.image_grid_thw is None:
            return None
        return self.pixel_values, self.image_grid_thw


def process(prompt: Prompt, processor: Any, *, max_length: int) -> PromptInputs:
    """Run the processor over one prompt, its images at hand. ConfigError if it has more than `max_length` tokens."""
    try:
        inputs = read_chat(prompt.messages, prompt.images, processor)
    except EngineError as error:
        raise ConfigError(f"{prompt.uid}: {error}") from error
    if len(inputs) > max_length:
        raise ConfigError(
            f"{prompt.uid}: the prompt has {len(inputs)} tokens, data.max_prompt_length is {max_length}; "
            "show fewer or smaller images, or raise it"
        )
    return inputs


def read_chat(messages: Sequence[dict[str, Any]], images: Sequence[Any], processor: Any) -> PromptInputs:
    """The inputs of a chat that awaits a reply. Each image entry of `messages` takes the next of `images`, which are
    (H, W, 3) uint8 RGB arrays; the model sees every one of them at its own size.

    EngineError if the processor would resize a picture: replies speak of the pixels of the picture that was shown.
    """
    check_sizes([image.shape[:2] for image in images], processor)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    remaining, limits = iter(images), _pixel_limits(processor)

    def with_image(entry: dict[str, Any]) -> dict[str, Any]:  # and the sizes at which the processor takes it as it is
        if entry["type"] != "image":
            return entry
        return {"type": "image", "image": Image.fromarray(next(remaining)), **limits}

    shown = []
    for message in messages:
        content = message["content"]
        shown.append({**message, "content": content if isinstance(content, str) else [*map(with_image, content)]})
    assert next(remaining, None) is None, "there are more images than image entries"
    pictures, _ = process_vision_info(shown, image_patch_size=processor.image_processor.patch_size)
    made = processor(text=[text], images=pictures, return_tensors="pt")
    return PromptInputs(
        input_ids=made["input_ids"][0],
        mm_token_type_ids=made["mm_token_type_ids"][0].long(),
        pixel_values=made.get("pixel_values"),
        image_grid_thw=made.get("image_grid_thw"),
        bare_ids=processor.tokenizer(text, return_tensors="pt")["input_ids"][0],
        images=tuple(pictures or ()),
    )


def check_sizes(sizes: Sequence[tuple[int, int]], processor: Any) -> None:
    """EngineError if the processor would resize a picture of one of these sizes, (height, width)."""
    images = processor.image_processor
    for size in dict.fromkeys(sizes):
        taken = smart_resize(*size, images.patch_size * images.merge_size, **_pixel_limits(processor))
        if taken != tuple(size):
            raise EngineError(
                f"the processor would resize pictures of {tuple(size)} to {taken}; its min_pixels and max_pixels must "
                "allow that size, and both sides be multiples of its patches"
            )


def _pixel_limits(processor: Any) -> dict[str, int]:
    size = processor.image_processor.size
    return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}


def prompt_lengths(
    prompts: Sequence[tuple[list[dict[str, Any]], Sequence[tuple[int, int]]]], processor: Any
) -> list[int]:
    """The number of tokens of each prompt as `process` will make them, from its messages and the (height, width) of its
    images.

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
    patches = [prompt.patches for prompt in prompts if prompt.patches is not None]
    if patches:
        inputs["pixel_values"] = torch.cat([pixels for pixels, _ in patches])
        inputs["image_grid_thw"] = torch.cat([grids for _, grids in patches])
    return inputs
