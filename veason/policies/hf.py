"""A vision-language model through transformers: batched generation, greedy or sampled."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessor
from transformers.utils import logging

from veason import prompt
from veason.errors import DataError
from veason.family import Family, family_of
from veason.policies import folder, grouped_attention
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
        generation_defaults: str = "plain",
    ) -> None:
        """`temperature` 0 is greedy; `dtype` auto: bfloat16 on a GPU, float32 on CPU; `template`: a prompt's text.
        `generation_defaults`: plain, or checkpoint for what its ``generation_config.json`` recommends, see
        `folder.decoding`. DataError for a checkpoint that is not whole."""
        self._source, self._template = str(model), template
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        config, self._processor, self.family = open_checkpoint(self._source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype_of(dtype, self.device)
        decoding = decoding_of(self._source, generation_defaults)
        self._model = AutoModelForImageTextToText.from_pretrained(
            self._source,
            dtype=self.dtype,
            attn_implementation={"": "sdpa", "text_config": grouped_attention.NAME},
            use_safetensors=True,
        )
        self._model.to(self.device).eval()
        self._model.generation_config = _only_tokens(self._model.generation_config)
        self._processor.tokenizer.padding_side = "left"
        self._limits = limits(decoding, generation_defaults, max_new_tokens, temperature, top_p)
        sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": max(0, decoding.top_k)}
        self._generation = {
            "max_new_tokens": max_new_tokens,
            "suppress_tokens": never_generated(config),
            "logits_processor": [
                _RepetitionPenalty(decoding.repetition_penalty, self._processor.tokenizer.pad_token_id)
            ],
            **({"do_sample": False} if temperature == 0 else sampled),
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


class _RepetitionPenalty(LogitsProcessor):
    """As transformers', but for padding, which would make a reply depend on its neighbours in the batch."""

    def __init__(self, penalty: float, pad: int | None) -> None:
        self._penalty, self._pad = penalty, pad

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # (B, tokens so far), (B, V)
        if self._penalty == 1:
            return scores
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, ids, True)
        if self._pad is not None:
            seen[:, self._pad] = False
        return torch.where(seen, torch.where(scores > 0, scores / self._penalty, scores * self._penalty), scores)


def open_checkpoint(source: str) -> tuple[Any, Any, Family]:
    """Configuration, processor and family of a checkpoint. DataError, before anything is loaded, if it is not whole."""
    problem = folder.problem(source)
    if problem:
        raise DataError(problem)
    config = AutoConfig.from_pretrained(source)
    return config, AutoProcessor.from_pretrained(source), family_of(config.model_type)


def decoding_of(source: str, defaults: str) -> folder.Decoding:
    """`folder.decoding`, its complaints as a DataError."""
    try:
        return folder.decoding(source, defaults)
    except ValueError as error:
        raise DataError(str(error)) from error


def limits(
    decoding: folder.Decoding, defaults: str, max_new_tokens: int, temperature: float, top_p: float
) -> dict[str, Any]:
    """All that replies depend on beside weights and prompt, for a run's record: as it is in force, and what the
    checkpoint recommends that is not."""
    sampling = {"top_p": top_p, "top_k": decoding.top_k} if temperature else {}
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        **sampling,
        "repetition_penalty": decoding.repetition_penalty,
        "generation_defaults": defaults,
        "recommended_but_not_in_force": decoding.not_taken,
    }


def _only_tokens(settings: GenerationConfig) -> GenerationConfig:
    """The end and padding tokens of a checkpoint's generation settings; how to draw is said at each call."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(settings, name) for name in names})


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
