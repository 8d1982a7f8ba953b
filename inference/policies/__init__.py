"""The protocol of a policy, which is asked about clips and replies in text, well-formed or not.

There are a model through transformers (`hf`), vLLM (`vllm`) or a server (`openai`), the ground truth (`oracle`), and
recorded replies (`replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from veason.family import Family
from veason.types import Clip, Question, VideoSample

NAMES = ("oracle", "replay", "hf", "vllm", "openai")


class Policy(Protocol):
    """Answers questions with replies in the format of `veason.answer`; the caller parses."""

    name: str
    family: Family
    """Defines the space of the replies' boxes."""
    looks: bool
    """False for a policy that needs no pixels; its questions then carry no images."""

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        """Returns the clip that the policy needs (a replayed one); None to take the configured sampling."""
        ...

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        """Returns one reply per question. The same questions and seed give the same replies."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describes the policy for a run's record."""
        ...
