"""Computes track mAP as the ViCaS benchmark does for language-guided segmentation, quirks included. Pure arithmetic.

A track is a mask for each scored frame, as RLE; None is an empty mask. All predicted tracks have the same confidence,
so the precision-recall curve follows the order in which they come: referrals in the order of sorted videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veason import masks
from veason.types import Rle

THRESHOLDS = np.arange(0.5, 0.95 + 1e-4, 0.05)
"""(10,) float64: 0.5 … 0.95 as this sum gives them, 0.6000000000000001 for one; a track IoU is compared with >=."""

NAMED = {"AP@50": 0, "AP@75": 5, "AP@90": 8}
"""Columns reported beside the mean -> place among the thresholds."""

MAX_TRACKS = 10
"""Predicted tracks a referral may have; the benchmark's own script breaks off beyond."""

Track = Sequence[Rle | None]


def track_ious(predicted: Sequence[Track], true: Sequence[Track]) -> np.ndarray:
    """Returns intersection over union of the pixels of all frames together, (P, G) float32; 0 where there are none."""
    areas, true_areas, shared = masks.shared_areas(predicted, true)
    joint = areas[:, None] + true_areas - shared
    ious = np.divide(shared, joint, out=np.zeros(shared.shape), where=joint > 0)
    return ious.astype(np.float32)  # 0.6 then reaches 0.6000000000000001


def hits(ious: np.ndarray) -> np.ndarray:
    """Returns which predicted tracks of one referral count as found at each threshold, (10, P) bool.

    Each track in turn goes through the true ones and takes every free one that it overlaps enough, which frees the one
    it held before: it keeps the last, and the others are free for the tracks behind it.
    """
    found = np.zeros((len(THRESHOLDS), len(ious)), bool)
    for level, threshold in enumerate(THRESHOLDS):
        held: list[int | None] = [None] * len(ious)
        for i, row in enumerate(ious.astype(np.float64)):
            for j, iou in enumerate(row):
                if j not in held and iou >= threshold:
                    held[i] = j
        found[level] = [j is not None for j in held]
    return found


def average_precisions(found: np.ndarray, true: int) -> np.ndarray:
    """Returns the area below the precision envelope over recall at each threshold, (10,) float32 in per cent.

    found: (10, N) bool, the `hits` of all referrals side by side, in order. true: number of true tracks, of all
    referrals. Without a predicted track the area is 0; without a true one, 100.
    """
    if found.size == 0:
        return np.zeros(len(THRESHOLDS), np.float32)
    if true == 0:
        return np.full(len(THRESHOLDS), 100, np.float32)
    right = np.cumsum(found.astype(np.float32), axis=1)  # (10, N); float32 throughout, as published
    precision = right / np.arange(1, found.shape[1] + 1, dtype=np.float32)
    recall = right / np.float32(true)
    areas = []
    for points, along in zip(
        precision, recall, strict=True
    ):  # below the smallest falling step function over the points
        envelope = np.append(np.maximum.accumulate(points[::-1])[::-1], np.float32(0))  # 0 from the last point on
        steps = np.diff(along, prepend=np.float32(0), append=np.float32(1))
        risen = steps != 0
        areas.append(np.sum(steps[risen] * envelope[risen]))
    return np.array(areas, np.float32) * np.float32(100)
