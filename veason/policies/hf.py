"""A vision-language model through transformers: batched generation, greedy or sampled."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from veason import prompt
from veason.errors import DataError
from veason.family import Family, family_of
from veason.policies import grouped_attention
from veason.types import Clip, Question, VideoSample

_VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


class HFPolicy:
    """A Qwen2.5-VL style checkpoint: a folder with weights, tokenizer, chat template and processor, or a hub name.

    Vision control tokens are never generated: they would stand for pictures that are not there.
    """

    name = "hf"
    looks = True

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        template: str | None = None,
    ) -> None:
        """`temperature` 0 is greedy; `dtype` auto: bfloat16 on a GPU, float32 on CPU; `template`: a prompt's text."""
        self._source, self._template = str(model), template
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        config, self._processor, self.family = open_checkpoint(self._source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype_of(dtype, self.device)
        self._model = AutoModelForImageTextToText.from_pretrained(
            self._source, dtype=self.dtype, attn_implementation={"": "sdpa", "text_config": grouped_attention.NAME}
        )
        self._model.to(self.device).eval()
        self._processor.tokenizer.padding_side = "left"
        self._limits = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self._generation = {
            "max_new_tokens": max_new_tokens,
            "suppress_tokens": never_generated(config),
            **(_GREEDY if temperature == 0 else {**_SAMPLED, "temperature": temperature, "top_p": top_p}),
        }

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        inputs = self._inputs(questions)
        torch.manual_seed(seed)
        tokens = self._model.generate(**inputs.to(self.device), **self._generation)  # (B, prompt + new)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self._processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Left-padded model inputs of some questions."""
        spelled = [spell(question, self._processor, self.family, template=self._template) for question in questions]
        texts, images = (list(column) for column in zip(*spelled, strict=True))
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt")
        self._check_grid(inputs["image_grid_thw"], [size for q in questions for size in [q.clip.size] * len(q.clip)])
        if inputs.get("pixel_values") is not None:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        return inputs

    def _check_grid(self, grid: torch.Tensor, sizes: list[tuple[int, int]]) -> None:
        """The processor must have taken every picture at its size: a second resize would move the boxes."""
        patch = self._processor.image_processor.patch_size
        for (_, rows, columns), size in zip(grid.tolist(), sizes, strict=True):
            if (rows * patch, columns * patch) != size:
                raise DataError(
                    f"{self._source}: the processor resized {size} pictures to {(rows * patch, columns * patch)}; "
                    "its min_pixels and max_pixels must allow the model size"
                )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "model": self._source, "dtype": str(self.dtype).split(".")[1], **self._limits}


_SAMPLED = {"do_sample": True, "top_k": 0}
_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
"""None where a checkpoint's own generation config would set sampling options that greedy decoding warns about."""


def open_checkpoint(source: str) -> tuple[Any, Any, Family]:
    """Configuration, processor and family of a checkpoint. DataError if it has them not."""
    try:
        config = AutoConfig.from_pretrained(source)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be loaded as a checkpoint with its processor: {error}") from error
    return config, processor, family_of(config.model_type)


def spell(question: Question, processor: Any, family: Family, *, template: str | None) -> tuple[str, list[Image.Image]]:
    """A question as a model reads it: the chat's text with one token a picture, and the pictures."""
    family.check_size(question.clip.size)
    shown = [Image.fromarray(image) for image in question.images]
    messages = prompt.messages(question.sample.expression, question.clip, shown, template=template)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), shown


def never_generated(config: Any) -> list[int]:
    """Tokens that stand for pictures, which a reply has none of."""
    return [getattr(config, name) for name in _VISION_TOKENS if hasattr(config, name)]


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on a GPU, float32 on a CPU. DataError for an unknown name."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in ("float32", "bfloat16", "float16"):
        raise DataError(f"dtype must be auto, float32, bfloat16 or float16, found {name!r}")
    return getattr(torch, name)
