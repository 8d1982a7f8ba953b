"""What one step is logged as: rewards by term, problems by code, lengths, spread within the groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from verl.protocol import Reward, Rollout


def reward_metrics(groups: Sequence[Sequence[Reward]]) -> dict[str, float]:
    """Means over all replies: total, every term, the share of each problem; and how the groups spread.

    ``group/std`` is the mean standard deviation within a group, ``group/equal`` the share of groups whose replies all
    have the same total (they teach nothing).
    """
    rewards = [reward for group in groups for reward in group]
    totals = [[reward.total for reward in group] for group in groups]
    terms = {name for reward in rewards for name in reward.parts}
    problems = Counter(reward.problem for reward in rewards if reward.problem is not None)
    return {
        "reward/total": fmean(reward.total for reward in rewards),
        **{f"reward/{name}": fmean(r.parts[name] for r in rewards if name in r.parts) for name in sorted(terms)},
        "reward/without_problem": sum(reward.problem is None for reward in rewards) / len(rewards),
        **{f"problem/{code}": count / len(rewards) for code, count in sorted(problems.items())},
        "group/std": fmean(_spread(group) for group in totals),
        "group/equal": fmean(float(len(set(group)) == 1) for group in totals),
    }


def _spread(values: Sequence[float]) -> float:
    """Population standard deviation; NaN where a value is."""
    mean = fmean(values)
    return math.sqrt(fmean((value - mean) ** 2 for value in values))


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Tokens of prompts and replies, and the share of replies that ended by themselves."""
    return {
        "length/prompt": fmean(rollout.prompt_tokens for rollout in rollouts),
        "length/response": fmean(rollout.response_tokens for rollout in rollouts),
        "length/response_max": float(max(rollout.response_tokens for rollout in rollouts)),
        "length/finished": fmean(float(rollout.finished) for rollout in rollouts),
    }


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def readable(rollout: Rollout, reward: Reward, *, note: str = "") -> str:
    """One rollout for a person to read; note: of its prompt."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in reward.parts.items())
    head = f"== {rollout.uid} #{rollout.index}: {reward.total:.3f} ({parts}); {reward.problem or 'no problem'}"
    head += f"; {rollout.response_tokens} tokens{'' if rollout.finished else ', cut off'}"
    text = "\n".join([head, *([note] if note else []), rollout.text, ""])
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)  # none reaches a terminal
