"""The four terms of the reward, each a pure function of numbers or arrays; larger is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veason import box_matching, ground_truth, masks
from veason.box_matching import MAX_BOXES
from veason.types import Box


def format_term(*, well_formed: bool, valid: int, entries: int) -> float:
    """0 … 2: one for the tags, one for the box list.

    well_formed: the whole reply is think block, white space, answer block. valid of `entries` list entries are boxes;
    an empty list, or none that could be read, is worth nothing.
    """
    return float(well_formed) + (valid / entries if entries else 0.0)


def keyframe_term(areas: Sequence[int], position: int | None) -> float:
    """0 … 1: area of the target in the chosen frame, relative to the shown frame where it is largest.

    areas: of the union mask in each shown frame. position: index among them; None is a frame that was not shown.
    """
    return ground_truth.keyframe_ratio(areas, position)


def spatial_term(overlaps: Sequence[float], *, predicted: int, true: int) -> float:
    """0 … 1: sum of the matched pairs' IoU over the larger number of boxes, so that missing and surplus ones cost."""
    return box_matching.share(overlaps, predicted=predicted, true=true)


def consistency_term(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """0 … 1: mean IoU over the shown frames of two lists of (h, w) bool masks; a frame empty in both counts 1."""
    return float(sum(masks.iou(a, b) for a, b in zip(found, true, strict=True)) / len(true))


def is_undefined(predicted: Sequence[Box], true: Sequence[Box]) -> bool:
    """True if the released arithmetic finds no number for some pair of boxes, so that its matching fails as a whole.

    Areas are not clipped there: a box turned inside out may have exactly minus the area of a true box, and NaN or
    infinity times zero is no area.
    """
    p_N4 = np.asarray(predicted[:MAX_BOXES], dtype=np.float64).reshape(-1, 4)
    t_M4 = np.asarray(true[:MAX_BOXES], dtype=np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        p_N, t_M = ((b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (p_N4, t_M4))
    return bool(np.isnan(p_N4).any() or np.isnan(p_N).any() or (p_N[:, None] + t_M == 0).any())
