"""What a reward is: it judges all replies to one prompt at once, in a process of its own that may own heavy things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from verl.config import ConfigError, RewardConfig
from verl.protocol import Prompt, Reward
from verl.utils import plugins

GROUP = "verl.rewards"


class RewardFunction(Protocol):
    """Built late, inside the reward worker that owns it, by ``factory(config.worker.reward)``.

    The factory is found by name: an entry point of the group ``verl.rewards``, or ``package.module:attribute``. It may
    have an attribute ``check``, called with the same settings before anything is started: a ValueError of it is told
    in one line.
    """

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        """Judge the G replies to `prompt` (its images at hand), in their order.

        A malformed reply is data and gets its Reward; an exception is the reward's own failure and stops the run.
        """
        ...


def check_reward(config: RewardConfig) -> None:
    """ConfigError if there is no reward of the configured name, or it cannot work with its settings."""
    try:
        factory = plugins.find(config.compute_score, group=GROUP)
        check = getattr(factory, "check", None)
        if check is not None:
            check(config)
    except ValueError as error:
        raise ConfigError(f"worker.reward.compute_score={config.compute_score}: {error}") from error
