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
from veason.family import family_of
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
        try:
            config = AutoConfig.from_pretrained(self._source)
            self._processor = AutoProcessor.from_pretrained(self._source)
        except (OSError, ValueError) as error:
            raise DataError(f"{model}: cannot be loaded as a checkpoint with its processor: {error}") from error
        self.family = family_of(config.model_type)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = _dtype(dtype, self.device)
        self._model = AutoModelForImageTextToText.from_pretrained(self._source, dtype=self.dtype).to(self.device).eval()
        self._processor.tokenizer.padding_side = "left"
        self._limits = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self._generation = {
            "max_new_tokens": max_new_tokens,
            "suppress_tokens": [getattr(config, name) for name in _VISION_TOKENS if hasattr(config, name)],
            **(
                _GREEDY
                if temperature == 0
                else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            ),
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
        texts, images = [], []
        for question in questions:
            self.family.check_size(question.clip.size)
            shown = [Image.fromarray(image) for image in question.images]
            messages = prompt.messages(question.sample.expression, question.clip, shown, template=self._template)
            texts.append(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            images.append(shown)
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


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in ("float32", "bfloat16", "float16"):
        raise DataError(f"dtype must be auto, float32, bfloat16 or float16, found {name!r}")
    return getattr(torch, name)
