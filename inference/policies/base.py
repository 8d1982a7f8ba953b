"""What a policy is: it is asked about clips and replies in text, well-formed or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from veason.family import Family
from veason.types import Clip, Question, VideoSample


class Policy(Protocol):
    """Answers questions with replies in the format of `veason.answer`; the caller parses."""

    name: str
    family: Family
    """Says in which space the replies' boxes are."""
    looks: bool
    """False for a policy that needs no pixels; its questions then carry no images."""

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        """The clip a policy insists on (a replayed one); None to take the configured sampling."""
        ...

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        """One reply per question. The same questions and seed give the same replies."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a run's record should say of the policy."""
        ...
