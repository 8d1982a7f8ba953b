"""The numbers that one step is logged as: rewards by term, problems by code, lengths, spread within the groups."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

from verl.protocol import Reward, Rollout


def reward_metrics(groups: Sequence[Sequence[Reward]]) -> dict[str, float]:
    """Means over all replies of the total, every term and the share of each problem; and how the groups spread.

    ``group/std`` is the mean standard deviation within a group, ``group/equal`` the share of groups whose replies all
    have the same total (they teach nothing).
    """

    def spread(values: Sequence[float]) -> float:  # population standard deviation; NaN where a value is
        mean = fmean(values)
        return math.sqrt(fmean((value - mean) ** 2 for value in values))

    rewards = [reward for group in groups for reward in group]
    totals = [[reward.total for reward in group] for group in groups]
    terms = {name for reward in rewards for name in reward.parts}
    problems = Counter(reward.problem for reward in rewards if reward.problem is not None)
    return {
        "reward/total": fmean(reward.total for reward in rewards),
        **{f"reward/{name}": fmean(r.parts[name] for r in rewards if name in r.parts) for name in sorted(terms)},
        "reward/without_problem": sum(reward.problem is None for reward in rewards) / len(rewards),
        **{f"problem/{code}": count / len(rewards) for code, count in sorted(problems.items())},
        "group/std": fmean(spread(group) for group in totals),
        "group/equal": fmean(float(len(set(group)) == 1) for group in totals),
    }


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean numbers of tokens of prompts and replies, and the share of replies that ended by themselves."""
    return {
        "length/prompt": fmean(rollout.prompt_tokens for rollout in rollouts),
        "length/response": fmean(rollout.response_tokens for rollout in rollouts),
        "length/response_max": float(max(rollout.response_tokens for rollout in rollouts)),
        "length/finished": fmean(float(rollout.finished) for rollout in rollouts),
    }


def engine_gap(gaps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The distance between the engine's and the actor's log-probabilities over all ranks, from that of each rank: the
    mean over tokens, and the largest of all."""
    tokens = sum(gap["tokens"] for gap in gaps)
    mean = sum(gap["mean"] * gap["tokens"] for gap in gaps) / max(tokens, 1.0)
    return {"engine/gap_mean": mean, "engine/gap_max": max(gap["max"] for gap in gaps)}


def describe_stale_weights(found: Sequence[Mapping[str, float]], *, most: int = 8) -> str:
    """A sentence that names the weights that an engine does not hold as they were sent, the most distant first, from
    what each rank found."""
    stale: dict[str, float] = {}
    for of_rank in found:
        stale |= {name: max(value, stale.get(name, 0.0)) for name, value in of_rank.items()}
    if not stale:
        return "It holds all weights as they were sent, so its inputs or its arithmetic differ"
    worst = sorted(stale, key=stale.__getitem__, reverse=True)
    names = ", ".join(f"{name} ({stale[name]:.2g})" for name in worst[:most])
    more = f" and {len(worst) - most} more" if len(worst) > most else ""
    return f"Stale in the engine, with their relative distance from what was sent: {names}{more}"


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def readable(rollout: Rollout, reward: Reward, *, note: str = "") -> str:
    """One rollout for a person to read; `note` is that of its prompt."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in reward.parts.items())
    head = f"== {rollout.uid} #{rollout.index}: {reward.total:.3f} ({parts}); {reward.problem or 'no problem'}"
    head += f"; {rollout.response_tokens} tokens{'' if rollout.finished else ', cut off'}"
    text = "\n".join([head, *([note] if note else []), rollout.text, ""])
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)  # none reaches a terminal


class Timer:
    """Counts seconds by phase: ``with timer("generate"): …``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
