"""The same reward in two other trainers: upstream verl's `compute_score` and TRL's reward functions.

Both take as ground truth what `Target.to_json` writes, and as frames arrays, PIL pictures or paths, in the order of
the target's frame ids; they are resized to the target's size. Settings are the fields of `RewardOptions`.
Frames need not be given where ``weights={"consistency": 0}``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from grpo_reward.options import RewardOptions
from grpo_reward.reward_score import KeyframeReward, build
from grpo_reward.target import Target
from veason import frames
from veason.types import Size
from verl.protocol import Prompt, Reward

Frame = np.ndarray | str | Path | Any
"""(H, W, 3) uint8 RGB array, PIL picture, or path of a picture, of any size."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, float | str]:
    """Upstream verl's ``custom_reward_function``; settings come from its ``reward_kwargs``.

    extra_info: ``frames`` holds the shown frames; given as paths they are encoded once for the rollouts of a prompt
    that follow each other. Returns ``score``, every term by name, and ``problem`` (empty if there is none).
    """
    shown = (extra_info or {}).get("frames")
    [reward] = _score(_reward_of(settings), ground_truth, shown, [solution_str], uid=data_source)
    return {"score": reward.total, **reward.parts, "problem": reward.problem or ""}


def trl_reward(**settings: Any) -> Callable[..., list[float]]:
    """A reward function for TRL's GRPOTrainer, with these settings; `keyframe_reward` says what it takes."""

    def configured_keyframe_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return keyframe_reward(prompts, completions, settings=settings, **columns)

    configured_keyframe_reward.__name__ = keyframe_reward.__name__  # TRL logs a reward by this name
    return configured_keyframe_reward


def keyframe_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    target: Sequence[str | Mapping[str, Any]],
    frames: Sequence[Sequence[Frame]] | None = None,
    settings: Mapping[str, Any] | None = None,
    **columns: Any,
) -> list[float]:
    """Totals of N completions, strings or chat messages; the columns `target` and `frames` have N rows too.

    Completions of one prompt, which TRL keeps next to each other, are judged together.
    """
    reward, totals = _reward_of(settings or {}), []
    truths = [truth if isinstance(truth, str) else json.dumps(truth) for truth in target]
    rows = zip(completions, truths, [None] * len(truths) if frames is None else frames, strict=True)
    for truth, group in itertools.groupby(rows, key=lambda row: row[1]):
        same = list(group)
        replies = [_text(completion) for completion, _, _ in same]
        totals += [each.total for each in _score(reward, truth, same[0][2], replies, uid="a prompt")]
    return totals


def _score(
    reward: KeyframeReward,
    ground_truth: str | Mapping[str, Any],
    shown: Sequence[Frame] | None,
    replies: Sequence[str],
    *,
    uid: str,
) -> list[Reward]:
    target = Target.from_json(ground_truth)
    if shown is None and reward.tracks:
        raise ValueError("the consistency term needs the shown frames; without them, set weights.consistency to 0")
    images: list[np.ndarray] = []
    paths = tuple(Path(frame) for frame in shown or () if isinstance(frame, (str, Path)))
    if shown is not None and len(paths) == len(shown):
        images = _loaded(paths, target.size)
    elif shown is not None:
        images = [frames.resize(np.asarray(frame), target.size) for frame in shown]
    return reward.score(Prompt(uid=uid, messages=[], images=images, target=target), replies)


def _reward_of(settings: Mapping[str, Any]) -> KeyframeReward:
    """The reward of these settings, built once a process: it may own a tracker."""
    return _built(json.dumps(settings, sort_keys=True, default=str))


@lru_cache(maxsize=4)
def _built(settings: str) -> KeyframeReward:
    return build(RewardOptions(**json.loads(settings)))


@lru_cache(maxsize=2)
def _loaded(paths: tuple[Path, ...], size: Size) -> list[np.ndarray]:
    """The same list for the same paths, by which the reward knows that it need not encode again."""
    return [frames.resize(frames.load(path), size) for path in paths]


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    return "".join(c if isinstance(c, str) else "".join(part.get("text", "") for part in c) for c in contents)
