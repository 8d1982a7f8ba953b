"""One scene for the whole folder, small enough to score by hand, and a tracker that only fills boxes.

Three frames of 56 x 56 are shown, ids 2, 12 and 22. Object A fills columns 4-13: rows 20-24 in frame 2, rows 20-29 in
frames 12 and 22. Object B, 10 x 10 at (40, 40), is in frame 22 alone. Areas of the union: 50, 100, 200.
"""

from __future__ import annotations

import numpy as np
import pytest

from grpo_reward.reward_score import KeyframeReward
from grpo_reward.target import Target
from veason import boxes as geometry
from veason import masks
from veason.answer import format_reply
from veason.types import Answer, Clip, MaskTrack
from verl.protocol import Prompt

SIZE = (56, 56)
A12 = (4.5, 20.5, 13.5, 29.5)
"""A's true box on frame 12: its pixels plus 0.5."""


def filled(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


class Filler:
    """Takes the inside of each box for the object, on every frame; counts what it is asked."""

    name = "filler"

    def __init__(self):
        self.encoded, self.tracked = 0, []

    def encode(self, frames):
        self.encoded += 1
        return len(frames)

    def track(self, encoded, *, keyframe, boxes):
        self.tracked.append((keyframe, tuple(boxes)))
        insides = [geometry.clip(box, SIZE) for box in boxes]
        objects = [masks.encode(filled(*map(int, box)) if box else np.zeros(SIZE, bool)) for box in insides]
        return MaskTrack(size=SIZE, objects=tuple((rle,) * encoded for rle in objects), length=encoded)


@pytest.fixture
def target():
    a = [filled(4, 20, 13, 24), filled(4, 20, 13, 29), filled(4, 20, 13, 29)]
    b = [None, None, filled(40, 40, 49, 49)]
    tracks = [[None] * 23, [None] * 23]
    for track, seen in zip(tracks, (a, b), strict=True):
        for frame_id, mask in zip((2, 12, 22), seen, strict=True):
            track[frame_id] = None if mask is None else masks.encode(mask)
    return Target.of_tracks(tracks, Clip(frame_ids=(2, 12, 22), size=SIZE), size=SIZE)


@pytest.fixture
def prompt(target):
    return Prompt(uid="video/0", messages=[], images=[np.zeros((*SIZE, 3), np.uint8)] * 3, target=target)


@pytest.fixture
def filler():
    return Filler()


@pytest.fixture
def grade(prompt, filler):
    """Reward of one reply under a preset, with the counting tracker."""
    return lambda preset, text: KeyframeReward(preset, tracker=filler).score(prompt, [text])[0]


@pytest.fixture
def say():
    """A well-formed reply with this keyframe and these boxes, as JSON text or as values."""

    def reply(keyframe, boxes):
        if isinstance(boxes, str):
            inside = f'{{"keyframe_timestamp": {keyframe}, "bbox_2d_list": {boxes}}}'
            return f"<think>t</think><answer>{inside}</answer>"
        return format_reply("t", Answer(keyframe, tuple(boxes)))

    return reply
