"""Scores the replies to one prompt: four terms each, one weighted sum, one encoding of the frames for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grpo_reward import terms
from grpo_reward.options import STRICT, Preset, RewardOptions, check_weights
from grpo_reward.target import Target
from veason import answer, box_matching, masks
from veason import boxes as geometry
from veason.family import BY_MODEL_TYPE
from veason.trackers import open_tracker
from veason.trackers.base import Tracker
from veason.types import Box
from verl.protocol import Prompt, Reward
from verl.utils import plugins

ZERO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
FAMILIES = {family.name: family for family in BY_MODEL_TYPE.values()}


@dataclass(frozen=True)
class Reading:
    """A reply as the terms read it."""

    format: float
    position: int | None
    """Position of the keyframe among the shown frames; None without a usable one."""
    boxes: tuple[Box, ...]
    """Predicted boxes in model pixels; none where one bad entry spoils the list."""
    problem: str | None


class KeyframeReward:
    """The four-term reward behind `verl`'s `RewardFunction`; owns the one tracker of its process."""

    def __init__(
        self, preset: Preset = STRICT, *, weights: Mapping[str, float] | None = None, tracker: Tracker | None = None
    ) -> None:
        """weights: by term, 1 where not named. tracker: needed unless the weight of consistency is 0.

        ValueError for an unknown term, a weight that is no number, or a missing tracker.
        """
        self.preset, self.weights, self.tracker = preset, check_weights(weights or {}), tracker
        if self.tracks and tracker is None:
            raise ValueError("the consistency term needs a tracker; without one, set weights.consistency to 0")
        self._encoded: tuple[Any, Any] | None = None
        self._decoded: tuple[Target, list[np.ndarray]] | None = None

    @property
    def tracks(self) -> bool:
        """True if the consistency term is computed at all."""
        return self.weights["consistency"] != 0

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        """Judge the G replies to `prompt`: its target a `Target`, its images (h, w, 3) uint8 RGB at model size.

        Parts are the terms as they are, before weighting; consistency is among them if it has a weight. Replies of the
        same keyframe and boxes are tracked once. Whatever fails here is noted with the prompt's uid.
        """
        target: Target = prompt.target
        known: dict[tuple, dict[str, float]] = {}
        rewards = []
        try:
            for text in replies:
                reading = read(text, target, self.preset)
                key = (reading.position, reading.boxes)
                if key not in known:
                    known[key] = self._judge(reading, target, prompt.images)
                parts = {"format": reading.format, **known[key]}
                total = sum(self.weights[name] * value for name, value in parts.items())
                rewards.append(Reward(total=total, parts=parts, problem=reading.problem))
        except Exception as error:
            error.add_note(f"while judging the replies to {prompt.uid}")
            raise
        return rewards

    def _judge(self, reading: Reading, target: Target, images: Sequence[np.ndarray]) -> dict[str, float]:
        """The terms of an answer, all but the format."""
        parts = {"keyframe": terms.keyframe_term(target.areas, reading.position), "spatial": 0.0}
        if self.tracks:
            parts["consistency"] = 0.0
        if reading.position is None or not reading.boxes:
            return parts
        true = true_boxes(target.boxes[reading.position], zero_boxes=self.preset.zero_boxes)
        if self.preset.brittle_lists and terms.is_undefined(reading.boxes, true):
            return parts
        found = box_matching.match(reading.boxes, true)
        parts["spatial"] = terms.spatial_term(found.overlaps, predicted=found.predicted, true=found.true)
        if self.tracks and found.pairs:
            prompts = [reading.boxes[i] for i, _ in found.pairs]
            finite = [box for box in prompts if all(map(math.isfinite, box))]  # others: as an object that is nowhere
            tracker, encoded = self._encode(images, target)
            track = tracker.track(encoded, keyframe=reading.position, boxes=finite)
            if self._decoded is None or self._decoded[0].masks != target.masks:  # once for all replies to a prompt
                self._decoded = (target, [masks.decode(rle, target.size) for rle in target.masks])  # T x (h, w) bool
            parts["consistency"] = terms.consistency_term(list(masks.track_unions(track)), self._decoded[1])
        return parts

    def _encode(self, images: Sequence[np.ndarray], target: Target) -> tuple[Tracker, Any]:
        """The tracker and its view of the shown frames, which is kept for as long as the same list is asked for."""
        assert self.tracker is not None  # by the constructor, where consistency has a weight
        if self._encoded is None or self._encoded[0] is not images:
            shapes = [image.shape for image in images]
            if shapes != [(*target.size, 3)] * len(target.frame_ids):
                raise ValueError(f"images are {shapes}, the target has {len(target.frame_ids)} frames of {target.size}")
            self._encoded = None  # the features of two clips are never in memory together
            self._encoded = (images, self.tracker.encode(images))
        return self.tracker, self._encoded[1]


def read(text: str, target: Target, preset: Preset) -> Reading:
    """Parse a reply and grade its form; boxes come out in model pixels whatever space its family speaks."""
    rules = preset.rules
    reply = listed = answer.parse_reply(text, rules=rules)
    if rules.block == "first":  # the released format term finds its answer by another pattern than the other terms
        listed = answer.parse_reply(text, rules=replace(rules, block="braces"))
    valid = entries = 0
    if listed.reached in ("box_list", "boxes") and listed.answer is not None:
        valid, entries = len(listed.answer.boxes), listed.entries
    graded = terms.format_term(well_formed=reply.well_formed, valid=valid, entries=entries)

    placed = answer.place(reply, target.clip)
    position: int | None = None
    boxes: tuple[Box, ...] = ()
    if placed.answer is not None:
        position = target.clip.position(placed.answer.keyframe)
        boxes = placed.answer.boxes[: box_matching.MAX_BOXES]
        bools = all(isinstance(value, bool) for box in boxes for value in box)  # NumPy does not subtract those
        if preset.brittle_lists and (bools or len(placed.answer.boxes) < placed.entries):
            boxes = ()
    return Reading(
        format=graded if preset.wide_format else graded / 2,
        position=position,
        boxes=geometry.rescale(boxes, FAMILIES[target.family].answer_size(target.size), target.size),
        problem=placed.problem,
    )


def true_boxes(boxes: Sequence[Box | None], *, zero_boxes: bool) -> list[Box]:
    """The boxes to match on a frame, from those of its objects (None: absent)."""
    present = [box for box in boxes if box is not None]
    if not zero_boxes:
        return present
    return [box or ZERO_BOX for box in boxes] if present else [ZERO_BOX]


def check(config: RewardOptions) -> None:
    """ValueError for settings that `build` would fail with, or would not read; `verl` asks before a run starts.

    SAM2 is built with its weights on the CPU, and dropped: nothing less shows that the two fit.
    """
    config.switched_preset()
    weights = check_weights(config.weights)
    if not any(weights.values()):
        raise ValueError("every weight of worker.reward.weights is 0: all replies would be worth the same")
    if weights["consistency"] == 0:
        return  # an ablation is one line over settings that may name a tracker
    default = RewardOptions()
    unread = [name for name in ("sam2_checkpoint", "sam2_config") if getattr(config, name) != getattr(default, name)]
    if config.tracker != "sam2" and unread:
        raise ValueError(
            f"worker.reward.{unread[0]} is {getattr(config, unread[0])!r}, which the tracker {config.tracker} never "
            "reads: take worker.reward.tracker=sam2, or leave it out"
        )
    _open(config, device="cpu")


@plugins.reads(RewardOptions, check=check)
def build(config: RewardOptions) -> KeyframeReward:
    """The reward that a run's `worker.reward` describes; opens its tracker only if consistency has a weight."""
    preset, weights = config.switched_preset(), check_weights(config.weights)
    return KeyframeReward(preset, weights=weights, tracker=_open(config) if weights["consistency"] else None)


def _open(config: RewardOptions, *, device: str | None = None) -> Tracker:
    """device: of SAM2; None is CUDA where there is one."""
    if config.sam2_mode != "video":
        raise ValueError(f"sam2_mode is {config.sam2_mode!r}; the consistency term tracks through a video: 'video'")
    if config.tracker != "sam2":
        return open_tracker(config.tracker)
    if not config.sam2_checkpoint:
        raise ValueError(
            "worker.reward.sam2_checkpoint is empty: give the SAM2 weights, another worker.reward.tracker (grabcut "
            "needs none), or set worker.reward.weights.consistency=0"
        )
    return open_tracker("sam2", config=config.sam2_config, checkpoint=config.sam2_checkpoint, device=device)
