"""Generation defaults: how replies are drawn, and which tokens end them, fill up rows, or never belong in them.

transformers decodes as a checkpoint's ``generation_config.json`` recommends, without a word; here only if that is asked
for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from verl.config import Config, ConfigError
from verl.engines import pretrained
from verl.engines.base import Sampling

DEFAULTS = ("plain", "checkpoint")
"""Whose decoding settings hold where an option does not say otherwise."""
VISION_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Names in a model's configuration of the tokens that stand for pictures."""


@dataclass(frozen=True)
class Decoding:
    """The settings beside temperature and top-p (which are options) that change what replies are drawn from."""

    repetition_penalty: float = 1.0
    """Applied to tokens that the prompt or the reply so far holds; 1 is none."""
    top_k: int = -1
    """Number of tokens that sampling chooses among; -1 is all."""
    not_taken: dict[str, Any] = field(default_factory=dict)
    """Recommendations of the checkpoint that are not in force, by their names in ``generation_config.json``."""


def read_decoding(source: str | Path, defaults: str) -> Decoding:
    """The decoding settings of a checkpoint that `pretrained.problem` finds nothing wrong with, by one of `DEFAULTS`.

    ``plain`` takes none from the checkpoint, so that replies are drawn from the distribution that training scores.
    ``checkpoint`` takes the repetition penalty and, where replies are sampled, the top-k of its
    ``generation_config.json``. Raises ValueError for another word, and for a value that cannot be meant.
    """
    if defaults not in DEFAULTS:
        raise ValueError(f"generation defaults are {' or '.join(DEFAULTS)}, found {defaults!r}")
    path = pretrained.fetch(source) / "generation_config.json"
    found = json.loads(path.read_bytes()) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object of settings, found {type(found).__name__}")
    about_tokens = ("transformers_version", "max_length", "max_new_tokens")
    found = {
        key: value
        for key, value in found.items()
        if value is not None and not key.startswith("_") and "_token_id" not in key and key not in about_tokens
    }
    if defaults == "plain":
        return Decoding(not_taken=found)
    penalty, top_k = found.pop("repetition_penalty", 1.0), found.pop("top_k", None)
    if not isinstance(penalty, int | float) or not 0 < penalty < float("inf"):
        raise ValueError(f"{path}: repetition_penalty is {penalty!r}, expected a number above 0")
    if top_k is not None and (not isinstance(top_k, int) or top_k < -1):
        raise ValueError(f"{path}: top_k is {top_k!r}, expected a whole number")
    return Decoding(float(penalty), top_k or -1, found)


# ------------------------------------------------------------------------------------------------ a training run


def samplings(config: Config) -> dict[str, Sampling]:
    """Returns the sampling settings of a run by phase: ``training``, and ``validation``, which is greedy.

    Raises ConfigError for recommendations of the checkpoint that cannot be followed.
    """
    rollout, decoding = config.worker.rollout, _run_decoding(config)
    length, penalty = config.data.max_response_length, decoding.repetition_penalty
    return {
        "training": Sampling(
            max_tokens=length,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=decoding.top_k if rollout.top_k == -1 else rollout.top_k,
            repetition_penalty=penalty,
        ),
        "validation": Sampling(max_tokens=length, temperature=0.0, repetition_penalty=penalty),
    }


def record(config: Config, run_folder: Path) -> None:
    """Write ``decoding.json`` into a run's folder: what is in force, and what the checkpoint recommends that is not."""
    facts = {
        **{name: asdict(sampling) for name, sampling in samplings(config).items()},
        "generation_defaults": config.worker.rollout.generation_defaults,
        "recommended_but_not_in_force": _run_decoding(config).not_taken,
    }
    (run_folder / "decoding.json").write_text(json.dumps(facts, indent=2) + "\n")


def _run_decoding(config: Config) -> Decoding:
    try:
        return read_decoding(config.worker.actor.model.model_path, config.worker.rollout.generation_defaults)
    except ValueError as error:
        raise ConfigError(f"worker.rollout.generation_defaults: {error}") from error


# ------------------------------------------------------------------------------------------------ tokens


def pad_id(processor: Any) -> int:
    """The token that fills up rows; it is masked wherever it stands."""
    tokenizer = processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def end_ids(path: str | Path, processor: Any) -> tuple[int, ...]:
    """Tokens that end a reply: the checkpoint's generation settings name them, else they are the tokenizer's."""
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
