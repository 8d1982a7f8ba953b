"""What a reward is: it judges all replies to one prompt at once, in a process of its own that may own heavy things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from verl.protocol import Prompt, Reward


class RewardFunction(Protocol):
    """Built late, inside the reward worker that owns it, by ``factory(config.worker.reward)``.

    The factory is found by name: an entry point of the group ``verl.rewards``, or ``package.module:attribute``.
    """

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        """Judge the G replies to `prompt` (its images at hand), in their order.

        A malformed reply is data and gets its Reward; an exception is the reward's own failure and stops the run.
        """
        ...
