"""Computes with boxes: IoU, rescaling, clipping.

Boxes are ``(x1, y1, x2, y2)`` with **inclusive** pixel corners, so a box is ``x2 - x1 + 1`` wide: the convention of the
released reward and of boxes read from masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veason.types import Box, Size


def rescale(boxes: Sequence[Box], from_size: Size, to_size: Size) -> tuple[Box, ...]:
    """Boxes of a picture of `from_size`, in the same picture resized to `to_size`; both (height, width)."""
    sy, sx = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return tuple((x1 * sx, y1 * sy, x2 * sx, y2 * sy) for x1, y1, x2, y2 in boxes)


def clip(box: Box, size: Size) -> Box | None:
    """The part of `box` inside a picture of `size` (height, width); None if there is none (outside, or x2 < x1)."""
    height, width = size
    x1, y1 = max(box[0], 0.0), max(box[1], 0.0)
    x2, y2 = min(box[2], width - 1.0), min(box[3], height - 1.0)
    return (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def iou(a: Sequence[Box], b: Sequence[Box]) -> np.ndarray:
    """Intersection over union of every box of `a` with every box of `b`: (len(a), len(b)) float64.

    Inclusive pixels: a box of one pixel has area 1. A box with x2 < x1 - 1 has no area and overlaps nothing.
    """
    a_N4 = np.asarray(a, dtype=np.float64).reshape(-1, 1, 4)
    b_M4 = np.asarray(b, dtype=np.float64).reshape(1, -1, 4)
    low = np.maximum(a_N4[..., :2], b_M4[..., :2])
    high = np.minimum(a_N4[..., 2:], b_M4[..., 2:])
    inter_NM = np.clip(high - low + 1, 0, None).prod(axis=-1)
    union_NM = _area(a_N4) + _area(b_M4) - inter_NM
    return np.divide(inter_NM, union_NM, out=np.zeros_like(inter_NM), where=union_NM > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2] + 1, 0, None).prod(axis=-1)


def true_box(box: Box, size: Size, to: Size) -> Box:
    """A ground-truth box of a picture of `size`, scaled to size `to`, all four sides moved by 0.5, as the released data
    set has them. The reward compares with these boxes and SFT teaches them; they may lie half a pixel outside."""
    x1, y1, x2, y2 = rescale([box], size, to)[0]
    return (x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5)
