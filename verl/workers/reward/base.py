"""A reward judges all replies to one prompt at once, in a process of its own that may own heavy things."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Protocol

from verl.config import ConfigError, RewardConfig
from verl.protocol import Prompt, Reward
from verl.utils import plugins

GROUP = plugins.REWARDS


class RewardFunction(Protocol):
    """Built late, inside the reward worker that owns it, by ``factory(config.worker.reward)``.

    The factory is found by name: an entry point of the group ``verl.rewards``, or ``package.module:attribute``. It may
    have two attributes that are looked at before anything is started: ``check``, called with the same settings, whose
    ValueError is told in one line; and ``options``, a dataclass that extends `RewardConfig` by the factory's own keys
    (`verl.utils.plugins.reads` sets both), or a tuple with the names of all ``worker.reward.options`` that it needs.
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
        wanted = getattr(factory, "options", None)
        if isinstance(wanted, tuple):
            for name in config.options.keys() - set(wanted):
                near = get_close_matches(name, wanted, n=1, cutoff=0.3)
                meant = f" (did you mean {near[0]}?)" if near else ""
                there = ", ".join(wanted) or "none"
                raise ValueError(f"worker.reward.options.{name} is no option of it{meant}; it has {there}")
            missing = [f"worker.reward.options.{name}" for name in wanted if name not in config.options]
            if missing:
                raise ValueError(f"it needs {', '.join(missing)}")
        check = getattr(factory, "check", None)
        if check is not None:
            check(config)
    except ValueError as error:
        raise ConfigError(f"worker.reward.compute_score={config.compute_score}: {error}") from error
