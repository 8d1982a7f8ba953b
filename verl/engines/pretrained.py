"""A pretrained model from disk: its weights, its processor, and which tokens end a reply, pad it or never belong in it.

The Hugging Face classes as they are, safetensors only, no code from the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel

from verl.engines import folder
from verl.engines.errors import EngineError

VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Names in a model's configuration of the tokens that stand for pictures."""


def load_base(path: str | Path, *, dtype: torch.dtype = torch.float32, empty: bool = False) -> PreTrainedModel:
    """The model of a checkpoint folder (or hub name), on the CPU; `empty`: its shapes alone, on the meta device.

    EngineError, before anything is loaded and with `empty` too, for a checkpoint that is not whole.
    """
    check(path)
    how = {"dtype": dtype, "attn_implementation": "sdpa", "trust_remote_code": False}
    if empty:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            return AutoModelForImageTextToText.from_config(config, **how)
    return AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **how)


def check(path: str | Path) -> None:
    """EngineError that says in one line why a checkpoint cannot be loaded (see `folder.problem`), if it cannot."""
    problem = folder.problem(path)
    if problem:
        raise EngineError(problem)


def load_config(path: str | Path) -> Any:
    """The Hugging Face configuration of a checkpoint. EngineError if the checkpoint is not whole."""
    check(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def load_processor(path: str | Path) -> Any:
    """Tokenizer, image processor and chat template of a checkpoint folder."""
    return AutoProcessor.from_pretrained(path, trust_remote_code=False)


def pad_id(processor: Any) -> int:
    """The token that fills rows up; it is masked wherever it stands."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def end_ids(path: str | Path, processor: Any) -> tuple[int, ...]:
    """Tokens that end a reply: the checkpoint's generation settings, else the tokenizer's end token."""
    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # no generation_config.json
        ends = None
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return (ends,) if isinstance(ends, int) else tuple(ends)


def banned_ids(config: Any) -> list[int]:
    """Tokens that a reply must not hold, as they stand for pictures that are not there. `config` is the model's."""
    found = [getattr(config, name, None) for name in VISION_TOKENS]
    return [token for token in found if token is not None]
