"""The matching of `veason.box_matching`, and where the released reward's own arithmetic has no answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veason.box_matching import MAX_BOXES, Matching, match
from veason.types import Box

__all__ = ["MAX_BOXES", "Matching", "is_undefined", "match"]


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
