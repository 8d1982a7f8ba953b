"""Score the replies to one prompt: four terms each, one weighted sum, one encoding of the frames for all of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from grpo_reward import matching, terms
from grpo_reward.options import RewardOptions
from grpo_reward.target import Target
from veason import answer, masks
from veason import boxes as geometry
from veason.answer import RELEASED as RELEASED_RULES
from veason.answer import STRICT as STRICT_RULES
from veason.answer import Rules
from veason.family import BY_MODEL_TYPE
from veason.trackers import open_tracker
from veason.trackers.base import Tracker
from veason.types import Box, Reply
from verl.protocol import Prompt, Reward
from verl.utils import plugins

TERMS = ("format", "keyframe", "spatial", "consistency")
ZERO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
_FAMILIES = {family.name: family for family in BY_MODEL_TYPE.values()}


@dataclass(frozen=True)
class Preset:
    """Every choice on which the released reward and ours differ."""

    rules: Rules
    """What the parser takes for a number, a box and an answer; each of its fields is a switch of its own."""
    zero_boxes: bool
    """An object that is absent on the keyframe still counts, as a true box [0, 0, 0, 0]; one if all are absent."""
    brittle_lists: bool
    """One entry that is no box, or boxes of True and False alone, make the whole list worthless to R_s and R_u."""
    wide_format: bool
    """The format term runs from 0 to 2, not to 1."""

    def switch(self, **values: bool | str) -> Preset:
        """This preset with some switches, of its own or of its rules, set by name."""
        rules = {name: value for name, value in values.items() if name in _names(Rules)}
        own = {name: value for name, value in values.items() if name not in rules}
        unknown = own.keys() - (_names(Preset) - {"rules"})
        if unknown:
            raise _unknown("reward switch", unknown, _names(Preset) | _names(Rules))
        return replace(self, rules=replace(self.rules, **rules), **own)


STRICT = Preset(rules=STRICT_RULES, zero_boxes=False, brittle_lists=False, wide_format=False)
RELEASED = Preset(rules=RELEASED_RULES, zero_boxes=True, brittle_lists=True, wide_format=True)
PRESETS = {"strict": STRICT, "released": RELEASED}


@dataclass(frozen=True)
class Reading:
    """What the terms want to know of a reply."""

    format: float
    position: int | None
    """Of the keyframe among the shown frames; None without a usable one."""
    boxes: tuple[Box, ...]
    """Model pixels."""
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
        """Whether the consistency term is computed at all."""
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
        if self.preset.brittle_lists and matching.is_undefined(reading.boxes, true):
            return parts
        found = matching.match(reading.boxes, true)
        parts["spatial"] = terms.spatial_term(found.overlaps, predicted=found.predicted, true=found.true)
        if self.tracks and found.pairs:
            prompts = [reading.boxes[i] for i, _ in found.pairs]
            parts["consistency"] = self._consistency(reading.position, prompts, target, images)
        return parts

    def _consistency(self, position: int, boxes: Iterable[Box], target: Target, images: Sequence[np.ndarray]) -> float:
        """R_u of the boxes that were matched, on the shown frame `position`."""
        finite = [box for box in boxes if all(map(math.isfinite, box))]  # as an object that is nowhere
        encoded = self._encode(images, target)
        track = self.tracker.track(encoded, keyframe=position, boxes=finite)
        return terms.consistency_term(list(masks.track_unions(track)), self._true_masks(target))

    def _true_masks(self, target: Target) -> list[np.ndarray]:
        """T x (h, w) bool, decoded once for all replies to a prompt; kept until another target is asked for."""
        if self._decoded is None or self._decoded[0].masks != target.masks:
            self._decoded = (target, [masks.decode(rle, target.size) for rle in target.masks])
        return self._decoded[1]

    def _encode(self, images: Sequence[np.ndarray], target: Target) -> Any:
        """The tracker's view of the shown frames; kept for as long as the same list is asked for."""
        if self._encoded is None or self._encoded[0] is not images:
            shapes = [image.shape for image in images]
            if shapes != [(*target.size, 3)] * len(target.frame_ids):
                raise ValueError(f"images are {shapes}, the target has {len(target.frame_ids)} frames of {target.size}")
            self._encoded = None  # the features of two clips are never in memory together
            self._encoded = (images, self.tracker.encode(images))
        return self._encoded[1]


def read(text: str, target: Target, preset: Preset) -> Reading:
    """Parse a reply and grade its form; boxes come out in model pixels whatever space its family speaks."""
    rules = preset.rules
    reply = answer.parse_reply(text, rules=rules)
    listed = reply
    if rules.block == "first":  # the released format term finds its answer by another pattern than the other terms
        listed = answer.parse_reply(text, rules=replace(rules, block="braces"))
    counted = listed.reached in ("box_list", "boxes") and listed.answer is not None
    graded = terms.format_term(
        well_formed=reply.well_formed,
        valid=len(listed.answer.boxes) if counted else 0,
        entries=listed.entries if counted else 0,
    )
    placed = answer.place(reply, target.clip)
    return Reading(
        format=graded if preset.wide_format else graded / 2,
        position=None if placed.answer is None else target.clip.position(placed.answer.keyframe),
        boxes=_boxes(placed, target, preset),
        problem=placed.problem,
    )


def true_boxes(boxes: Sequence[Box | None], *, zero_boxes: bool) -> list[Box]:
    """The boxes to match on a frame, from those of its objects (None: absent)."""
    present = [box for box in boxes if box is not None]
    if not zero_boxes:
        return present
    return [box or ZERO_BOX for box in boxes] if present else [ZERO_BOX]


def _boxes(reply: Reply, target: Target, preset: Preset) -> tuple[Box, ...]:
    """The predicted boxes in model pixels; none where one bad entry spoils the list."""
    boxes = () if reply.answer is None else reply.answer.boxes[: matching.MAX_BOXES]
    if preset.brittle_lists:
        bools = all(isinstance(value, bool) for box in boxes for value in box)  # NumPy does not subtract those
        if bools or len(reply.answer.boxes) < reply.entries:
            return ()
    return geometry.rescale(boxes, _FAMILIES[target.family].answer_size(target.size), target.size)


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every term, 1 where not named; ValueError for an unknown term, or a weight that is negative or
    no number."""
    unknown = weights.keys() - set(TERMS)
    if unknown:
        raise _unknown("reward term", unknown, set(TERMS))
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights.{name} is {weight}, expected a finite number of 0 or more")
    return {name: float(weights.get(name, 1.0)) for name in TERMS}


def check(config: RewardOptions) -> None:
    """ValueError for settings that `build` would fail with, or would not read; `verl` asks before a run starts.

    SAM2 is built with its weights on the CPU, and dropped: nothing less shows that the two fit.
    """
    _preset(config)
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
    """The reward that a run's `worker.reward` describes; opens its tracker only if consistency has a weight.

    `options` are switches by name, such as ``zero_boxes: false`` over the preset `released`.
    """
    preset, weights = _preset(config), check_weights(config.weights)
    return KeyframeReward(preset, weights=weights, tracker=_open(config) if weights["consistency"] else None)


def _preset(config: RewardOptions) -> Preset:
    if config.preset not in PRESETS:
        raise _unknown("reward preset", {config.preset}, set(PRESETS))
    unknown = config.options.keys() - ((_names(Preset) | _names(Rules)) - {"rules"})
    if unknown:
        raise _unknown("reward switch", unknown, _names(Preset) | _names(Rules))
    return PRESETS[config.preset].switch(**{name: _value(name, text) for name, text in config.options.items()})


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


def _value(name: str, text: str | bool) -> bool | str | int:
    """A switch's value as its type wants it."""
    if name == "block":
        if text not in answer.BLOCKS:
            raise ValueError(f"reward switch block is {text!r}, expected one of {', '.join(answer.BLOCKS)}")
        return text
    if name == "max_depth":
        if not str(text).isdecimal() or int(text) < 1:
            raise ValueError(f"reward switch max_depth is {text!r}, expected a whole number of 1 or more")
        return int(text)
    if str(text).lower() not in ("true", "false"):
        raise ValueError(f"reward switch {name} is {text!r}, expected true or false")
    return str(text).lower() == "true"


def _names(record: type) -> set[str]:
    return {field.name for field in fields(record)}


def _unknown(what: str, given: Iterable[str], known: Iterable[str]) -> ValueError:
    name, names = min(given), sorted(set(known) - {"rules"})
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return ValueError(f"no {what} is called {name!r}; the nearest is {near[0]!r}, all are {', '.join(names)}")
