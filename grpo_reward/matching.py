"""Which predicted box stands for which true one: the assignment of largest total overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from veason import boxes as geometry
from veason.types import Box

MAX_BOXES = 120
"""Boxes a side that are looked at; the rest is as if it had not been said."""


@dataclass(frozen=True)
class Matching:
    """Pairs of a predicted and a true box, min(predicted, true) of them, whether they overlap or not."""

    pairs: tuple[tuple[int, int], ...]
    """(index of the predicted box, index of the true box), ascending in the first."""
    overlaps: tuple[float, ...]
    """IoU of each pair, inclusive pixels."""
    predicted: int
    """Number of predicted boxes, at most `MAX_BOXES`."""
    true: int
    """Number of true boxes, at most `MAX_BOXES`."""


def match(predicted: Sequence[Box], true: Sequence[Box]) -> Matching:
    """Hungarian matching by cost 1 - IoU; both in the same pixels, in any number."""
    predicted, true = predicted[:MAX_BOXES], true[:MAX_BOXES]
    overlaps = geometry.iou(predicted, true)  # (predicted, true) float64
    rows, columns = linear_sum_assignment(1.0 - overlaps)
    return Matching(
        pairs=tuple(zip(rows.tolist(), columns.tolist(), strict=True)),
        overlaps=tuple(overlaps[rows, columns].tolist()),
        predicted=len(predicted),
        true=len(true),
    )


def is_undefined(predicted: Sequence[Box], true: Sequence[Box]) -> bool:
    """The released arithmetic finds no number for some pair, so that its matching fails as a whole.

    Areas are not clipped there: a box turned inside out may have exactly minus the area of a true box, and NaN or
    infinity times zero is no area.
    """
    p_N4 = np.asarray(predicted[:MAX_BOXES], dtype=np.float64).reshape(-1, 4)
    t_M4 = np.asarray(true[:MAX_BOXES], dtype=np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        p_N, t_M = ((b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (p_N4, t_M4))
    return bool(np.isnan(p_N4).any() or np.isnan(p_N).any() or (p_N[:, None] + t_M == 0).any())
