"""Matches predicted boxes with true ones by the assignment of largest total overlap, and scores the matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import linear_sum_assignment

from veason import boxes as geometry
from veason.types import Box

MAX_BOXES = 120
"""Boxes on each side that are matched; the rest is ignored."""


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


def share(overlaps: Sequence[float], *, predicted: int, true: int) -> float:
    """0 … 1: sum of the matched pairs' IoU over the larger number of boxes, so that missing and surplus ones cost."""
    if max(predicted, true) == 0:  # no box on either side
        return 0.0
    return sum(overlaps) / max(predicted, true)
