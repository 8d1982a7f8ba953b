"""Measures answers before any tracking: the keyframe and the boxes of a reply against the ground truth.

The measures tell where a low J&F comes from: the wrong frame, wrong boxes, or a tracker that lost its object. The
formulas are those of the reward's keyframe and spatial terms (`veason.ground_truth`, `veason.box_matching`), on masks
and boxes in **video** pixels rather than at model size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from veason import box_matching, ground_truth, masks
from veason.answer import parse_reply
from veason.types import Box


@dataclass(frozen=True)
class Quality:
    """The quality of one reply as an answer."""

    targets: int
    """Objects of the target that are in any frame of the video; 0 where the target is absent."""
    usable: bool
    """True if the keyframe is one of the shown frames and there is at least one box."""
    well_formed: bool
    """True if the whole reply is a think block, white space and an answer block."""
    keyframe_ratio: float
    """0 … 1: area of the target in the keyframe over its largest in a shown frame; 0 without a usable answer."""
    box_iou: float
    """0 … 1: IoU of the matched boxes on the keyframe over the larger number of boxes; 0 without a usable answer."""


def judge(
    tracks: ground_truth.Tracks, *, frame_ids: Sequence[int], keyframe: int | None, boxes: Sequence[Box], reply: str
) -> Quality:
    """Measures the answer in a line of ``predictions.jsonl``.

    tracks: N objects x T frames of RLE or None, as `Dataset.object_rles` gives them. frame_ids: ascending ids of the
    shown frames. keyframe: a frame id, None without a usable answer. boxes: xyxy on the keyframe, inclusive corners,
    video pixels. reply: the whole text.
    """
    usable = keyframe in frame_ids and len(boxes) > 0
    ratio = overlap = 0.0
    if usable and keyframe is not None:
        areas = [ground_truth.area(tracks, t) for t in frame_ids]
        ratio = ground_truth.keyframe_ratio(areas, frame_ids.index(keyframe))
        true = [box for box in ground_truth.boxes(tracks, keyframe) if box is not None]
        found = box_matching.match(boxes, true)
        overlap = box_matching.share(found.overlaps, predicted=found.predicted, true=found.true)
    return Quality(
        targets=sum(any(masks.area(rle) for rle in rles) for rles in tracks),
        usable=usable,
        well_formed=parse_reply(reply).well_formed,
        keyframe_ratio=ratio,
        box_iou=overlap,
    )


@dataclass(frozen=True)
class Means:
    """Means over some replies, 0 … 1; NaN where there is none to take the mean of."""

    well_formed: float
    """The share over all replies."""
    usable: float
    """This mean and the next two are over the expressions with a target; for the others, an empty list is correct."""
    keyframe_ratio: float
    box_iou: float


def means(qualities: Iterable[Quality]) -> Means:
    """Takes the means of what `judge` returned."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else math.nan

    every = list(qualities)
    present = [quality for quality in every if quality.targets > 0]
    return Means(
        well_formed=mean([q.well_formed for q in every]),
        usable=mean([q.usable for q in present]),
        keyframe_ratio=mean([q.keyframe_ratio for q in present]),
        box_iou=mean([q.box_iou for q in present]),
    )
