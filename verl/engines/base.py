"""The interface of a rollout engine, which takes weights by name and draws replies inside its own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from verl.config import ConfigError
from verl.protocol import Batch

if TYPE_CHECKING:
    from verl.engines.inputs import PromptInputs


class EngineError(ConfigError):
    """A checkpoint is not whole, or its processor does not take pictures as they are: the user can put it right."""


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine. A run's `verl.config.RolloutConfig` has the same fields and can be passed instead."""

    name: str = "hf"
    """Engine: hf, vllm, or ``package.module:attribute``."""
    batch_size: int = 16
    """hf: replies drawn together."""
    tensor_parallel_size: int = 1
    """vllm: ranks of the process group that share one copy of the weights."""
    gpu_memory_utilization: float = 0.6
    """vllm: share of the GPU for weights and cache."""
    max_model_len: int = 0
    """vllm: tokens of prompt and reply to make room for; 0: as many as the model takes."""
    enable_chunked_prefill: bool = True
    enforce_eager: bool = False


@dataclass(frozen=True)
class Sampling:
    """The sampling settings of replies."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 keeps every token."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that prompt or reply hold already, multiplies the negative ones; 1: none.
    With another value replies are not drawn from the distribution that the actor scores."""


class RolloutEngine(Protocol):
    """Draws replies with the weights of its last `sync_weights`."""

    def sync_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take full (unsharded) tensors under their Hugging Face names, one at a time; the stream must be used up."""
        ...

    def stale_weights(self) -> dict[str, float]:
        """Weights that the engine does not hold as they were last sent, with their relative distance (infinite: not
        sent). All ranks must ask."""
        ...

    def generate(self, prompts: Sequence[PromptInputs], *, n: int, sampling: Sampling, seeds: Sequence[int]) -> Batch:
        """`n` replies per prompt, a prompt's replies next to each other: B = len(prompts) * n rows of

        - ``responses`` (B, R) int64, right-padded with the pad token, the end token included where a reply ended;
        - ``response_mask`` (B, R) int64, 1 on the reply's tokens;
        - ``engine_logprobs`` (B, R) float32 of the tokens under the distribution they were drawn from (after
          temperature, before a repetition penalty; 0 on padding);
        - list ``finished`` of bool: ended by itself.

        The same prompts and `seeds` (one per prompt) give the same replies, whatever else is in the batch. Vision
        control tokens are never drawn.
        """
        ...

    def sleep(self) -> None:
        """Free the device memory that is only needed while generating."""
        ...

    def wake(self) -> None:
        """Take it again; called before `sync_weights` and `generate`."""
        ...
