"""A vision-language model through vLLM in this process: many questions answered beside each other.

The same prompt, preprocessing and reading of replies as `hf`: at temperature 0 the same replies.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from veason.errors import DataError
from veason.policies.hf import decoding_of, dtype_of, limits, never_generated, open_checkpoint, spell
from veason.types import Clip, Question, Size, VideoSample

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
"""Of vLLM, where the environment does not say otherwise."""
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
"""GiB of keys and values; no pinning to cores; no compiling, which takes a minute."""

FORBIDDEN = -100.0
"""Added to a logit: the lowest bias that vLLM takes."""


class VLLMPolicy:
    """A Qwen2.5-VL style checkpoint, as for `hf.HFPolicy`. Vision control tokens are never generated."""

    name = "vllm"
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
        max_model_len: int | None = None,
        gpu_memory: float = 0.6,
    ) -> None:
        """`max_model_len`: tokens of prompt and reply to make room for; `gpu_memory`: share of the GPU for weights and
        cache; `device`: cpu or cuda, only to check that it is what the installed vLLM runs on. The rest as for `hf`.
        DataError if vLLM is not installed."""
        if importlib.util.find_spec("vllm") is None:
            raise DataError(
                "--policy vllm needs vLLM: `make setup-vllm` on a machine without CUDA, `pip install -e '.[vllm]'` on "
                "one with it; --policy hf gives the same replies without it"
            )
        self._source, self._template = str(model), template
        config, self._processor, self.family = open_checkpoint(self._source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype_of(dtype, self.device)
        self._top_p, self._decoding = top_p, decoding_of(self._source, generation_defaults)
        self._limits = limits(self._decoding, generation_defaults, max_new_tokens, temperature, top_p)
        self._never = dict.fromkeys(never_generated(config), FORBIDDEN)
        self._ends = _end_ids(self._source, self._processor)
        self._llm = self._open(max_model_len=max_model_len, gpu_memory=gpu_memory)

    def _open(self, *, max_model_len: int | None, gpu_memory: float) -> Any:
        on_cpu = self.device.type == "cpu"
        for name, value in {**SETTINGS, **(CPU_SETTINGS if on_cpu else {})}.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        set_threads = torch.set_num_threads
        try:
            return LLM(
                self._source,
                dtype=str(self.dtype).removeprefix("torch."),
                max_model_len=max_model_len,
                enable_prefix_caching=True,
                enable_chunked_prefill=not on_cpu,  # there a seed and a chunk clash
                generation_config="vllm",  # sampling is as the options say
                limit_mm_per_prompt={"video": 0},
                **(
                    {"skip_mm_profiling": True, "enforce_eager": True}
                    if on_cpu
                    else {"gpu_memory_utilization": gpu_memory}
                ),
            )
        finally:
            torch.set_num_threads = set_threads  # vLLM on a CPU puts a warning in its place

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        """As `base.Policy.answer`; a question's reply depends on `seed` and its sample, not on the others'."""
        requests = [self._request(question) for question in questions]
        params = [self._params(zlib.crc32(f"{seed}/{question.sample.key}".encode())) for question in questions]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        tokens = [output.outputs[0].token_ids for output in outputs]
        return self._processor.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _request(self, question: Question) -> dict[str, Any]:
        """Token ids with one token a picture, and the pictures."""
        text, shown = spell(question, self._processor, self.family, template=self._template)
        self._check_size(question.clip.size)
        ids = self._processor.tokenizer(text)["input_ids"]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": shown}}

    def _check_size(self, size: Size) -> None:
        """The processor must take a picture at its size: a second resize would move the boxes."""
        images = self._processor.image_processor
        patches = images.get_number_of_image_patches(*size, {})
        if patches != size[0] * size[1] // images.patch_size**2:
            raise DataError(
                f"{self._source}: the processor would resize pictures of {size}; its min_pixels and max_pixels must "
                "allow the model size"
            )

    def _params(self, seed: int) -> Any:
        from vllm import SamplingParams

        greedy = self._limits["temperature"] == 0
        return SamplingParams(
            max_tokens=self._limits["max_new_tokens"],
            temperature=self._limits["temperature"],
            top_p=1.0 if greedy else self._top_p,
            top_k=-1 if greedy else self._decoding.top_k,
            seed=None if greedy else seed,
            repetition_penalty=self._decoding.repetition_penalty,
            logit_bias=self._never,
            stop_token_ids=self._ends,
            ignore_eos=True,  # but for the above
            detokenize=False,
        )

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "model": self._source, "dtype": str(self.dtype).split(".")[1], **self._limits}


def _end_ids(source: str, processor: Any) -> list[int]:
    """Tokens that end a reply, as transformers takes them from a checkpoint when it generates."""
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # no generation_config.json
        ends = None
    ends = processor.tokenizer.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends)
