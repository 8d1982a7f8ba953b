"""Answers with the ground truth: the upper bound of a tracker, and a check of a copy of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from veason import boxes, ground_truth
from veason.answer import format_reply
from veason.datasets.base import Dataset
from veason.family import QWEN2_5_VL
from veason.types import Answer, Clip, Question, VideoSample


class OraclePolicy:
    """Replies with the shown frame in which the target is largest, and the true box of each object there.

    Objects that are not in that frame get no box. Where no shown frame has the target, the box list is empty.
    """

    name = "oracle"
    looks = False
    family = QWEN2_5_VL

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        replies = []
        for question in questions:
            size = question.sample.size
            tracks = self._dataset.object_rles(question.sample)
            areas = {t: ground_truth.area(tracks, t) for t in question.clip.frame_ids}
            keyframe = max(areas, key=lambda t: areas[t])  # the first among equals
            found = [box for box in ground_truth.boxes(tracks, keyframe) if box is not None]
            thinking, answer = "The target is in none of the shown frames.", Answer(keyframe=keyframe, boxes=())
            if found:
                to_size = self.family.answer_size(question.clip.size)
                answer = Answer(keyframe=keyframe, boxes=boxes.rescale(found, size, to_size))
                share = areas[keyframe] / (size[0] * size[1])
                thinking = (
                    f"The target covers {share:.1%} of frame {keyframe}, at least as much as of any other shown frame."
                )
            replies.append(format_reply(thinking, answer))
        return replies

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
