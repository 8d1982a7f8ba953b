"""Builds a tiny Qwen2.5-VL with random weights: the real classes at toy size, loadable offline like any checkpoint.

Its replies are noise. Commands run with it in tests, and training of the base policy starts from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.utils import logging

from demo.tokenizer import END_OF_TEXT, TURN_END, build_tokenizer
from veason import prompt_settings
from veason.family import QWEN2_5_VL

HEAD = 32
"""Dimensions of an attention head of text and vision; vLLM on a CPU refuses fewer."""

PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4096}
"""Bounds on the pixels of an image that the processor leaves at its size, if its sides are multiples of 28."""

ASKED = prompt_settings.PromptSettings(
    frames=6, size=(84, 84), family=QWEN2_5_VL.name, prompt_template=None, max_new_tokens=120
)
"""The prompt format that the tiny policies are trained and prompted with."""


@dataclass(frozen=True)
class PolicySize:
    """Dimensions of the tiny policy; the default stays below 4 MB on disk."""

    hidden: int = 128
    layers: int = 2
    mlp: int = 256
    vision_hidden: int = 64
    vision_layers: int = 1
    vision_mlp: int = 128


def write_tiny_policy(folder: str | Path, *, seed: int, size: PolicySize | None = None) -> None:
    """Write weights, tokenizer, chat template and processor; the same seed and size give the same bytes."""
    tokenizer = build_tokenizer()
    save_policy(build_model(tokenizer, seed=seed, size=size or PolicySize()), tokenizer, folder)


def save_policy(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: str | Path
) -> None:
    """Write a model, its tokenizer, processor and prompt format."""
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bar:
            logging.enable_progress_bar()
    build_processor(tokenizer).save_pretrained(folder)
    prompt_settings.write(folder, ASKED)
    for path in filter(Path.is_file, Path(folder).iterdir()):
        path.chmod(0o644)  # the weights come out readable by their owner only


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, size: PolicySize
) -> Qwen2_5_VLForConditionalGeneration:
    """Build the model in float32, its weights drawn from `seed`; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, size)).float().eval()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model


def build_config(tokenizer: PreTrainedTokenizerFast, size: PolicySize) -> Qwen2_5_VLConfig:
    """Configure untied embeddings, full attention in every vision layer, rotary sections 4 + 6 + 6 = half a head."""
    number = tokenizer.get_vocab()
    ids: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": number[TURN_END],
        "pad_token_id": number[END_OF_TEXT],
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // HEAD,
        "num_key_value_heads": max(size.hidden // HEAD // 2, 1),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        **ids,
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_hidden // HEAD,
        "out_hidden_size": size.hidden,
        "fullatt_block_indexes": list(range(size.vision_layers)),
        "initializer_range": 0.05,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number["<|image_pad|>"],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="float32",
        **ids,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(PIXELS)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(PIXELS)),
        chat_template=tokenizer.chat_template,
    )
