"""Answers with a vision-language model: turns questions into prompts and asks an engine of `verl.engines`.

Rollouts and validation draw with the same engines, so a checkpoint answers here as it did in training.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from veason import prompt
from veason.errors import DataError
from veason.family import family_of
from veason.types import Clip, Question, VideoSample
from verl.engines import generation, inputs, open_engine, pretrained
from verl.engines.base import EngineError, EngineOptions, Sampling
from verl.engines.inputs import PromptInputs


class EnginePolicy:
    """A Qwen2.5-VL style checkpoint: a folder with weights, tokenizer, chat template and processor, or a hub name.

    Vision control tokens are never generated, since each would stand for a picture that is not there.
    """

    looks = True

    def __init__(
        self,
        name: str,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        template: str | None = None,
        generation_defaults: str = "plain",
        batch_size: int = 16,
        max_model_len: int | None = None,
        gpu_memory: float = 0.6,
    ) -> None:
        """Loads the model. DataError for a checkpoint that is not whole, and where vLLM is not installed.

        name: the engine, hf or vllm. temperature: 0 is greedy. dtype: auto is bfloat16 on a GPU and float32 on a CPU.
        template: the text of the prompt. generation_defaults: plain, or checkpoint for what its
        ``generation_config.json`` recommends. batch_size, for hf: questions that are answered together. max_model_len
        and gpu_memory, for vllm: the largest number of tokens of a prompt with its reply, and the share of the GPU's
        memory for weights and cache.
        """
        if name == "vllm" and importlib.util.find_spec("vllm") is None:
            raise DataError(
                "--policy vllm needs vLLM: `make setup-vllm` on a machine without CUDA, `pip install -e '.[vllm]'` on "
                "one with it; --policy hf gives the same replies without it"
            )
        self.name, self._source, self._template = name, str(model), template
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        try:
            config = pretrained.load_config(self._source)
        except EngineError as error:
            raise DataError(str(error)) from error
        self.family = family_of(config.model_type)
        try:
            decoding = generation.read_decoding(self._source, generation_defaults)
        except ValueError as error:
            raise DataError(str(error)) from error
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        if dtype not in ("float32", "bfloat16", "float16"):
            raise DataError(f"dtype must be auto, float32, bfloat16 or float16, found {dtype!r}")
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.processor = pretrained.load_processor(self._source)
        greedy = temperature == 0
        self._sampling = Sampling(
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=1.0 if greedy else top_p,
            top_k=-1 if greedy else decoding.top_k,
            repetition_penalty=decoding.repetition_penalty,
        )
        self._described = {
            "name": name,
            "model": self._source,
            "dtype": str(self.dtype).split(".")[1],
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            **({} if greedy else {"top_p": top_p, "top_k": decoding.top_k}),
            "repetition_penalty": decoding.repetition_penalty,
            "generation_defaults": generation_defaults,
            "recommended_but_not_in_force": decoding.not_taken,
        }
        options = EngineOptions(
            name=name, batch_size=batch_size, max_model_len=max_model_len or 0, gpu_memory_utilization=gpu_memory
        )
        self.engine = open_engine(self._source, config=options, device=self.device, dtype=self.dtype)

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        """Answers as `Policy.answer` says; a reply depends on `seed` and its sample, not on the other questions."""
        seeds = [zlib.crc32(f"{seed}/{question.sample.key}".encode()) for question in questions]
        replies = self.engine.generate(self.prompts(questions), n=1, sampling=self._sampling, seeds=seeds)
        rows = zip(replies["responses"], replies["response_mask"].bool(), strict=True)
        tokens = [row[mask].tolist() for row, mask in rows]
        return self.processor.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def prompts(self, questions: Sequence[Question]) -> list[PromptInputs]:
        """Makes the questions' prompts. DataError if the model's processor would resize their pictures."""
        made = []
        for question in questions:
            self.family.check_size(question.clip.size)
            messages = prompt.messages(
                question.sample.expression, question.clip, question.images, template=self._template
            )
            try:
                made.append(inputs.read_chat(messages, question.images, self.processor))
            except EngineError as error:
                raise DataError(f"{self._source}: {error}") from error
        return made

    def describe(self) -> dict[str, Any]:
        """Describes what replies depend on beside weights and prompt, and what the checkpoint recommends in vain."""
        return dict(self._described)
