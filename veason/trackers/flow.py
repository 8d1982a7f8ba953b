"""Computes optical flow between neighbouring frames, once for every object of every prompt."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SMALLEST = 32
"""Pixels of a side that DIS is given at least: below 16 or so it fails, on some sizes by reading out of bounds."""


class NeighbourFlow:
    """Dense flow from a frame to the one before or after it, by DIS; lazy, and cached up to a budget."""

    def __init__(self, frames: Sequence[np.ndarray], *, budget_bytes: int) -> None:
        """`frames`: T arrays (h, w, 3) uint8 RGB.

        Flows beyond `budget_bytes` are computed anew when asked for: slower, no different.
        """
        self._frames = frames
        self._left = budget_bytes
        self._cached: dict[tuple[int, int], np.ndarray] = {}
        height, width = frames[0].shape[:2]
        self._grid = np.dstack(np.meshgrid(np.arange(width), np.arange(height))).astype(np.float32)  # (h, w, 2) x, y

    def between(self, source: int, target: int) -> np.ndarray:
        """(h, w, 2) float16: for a pixel of `source`, how far right and down it lies in `target`."""
        if (source, target) in self._cached:
            return self._cached[source, target]
        height, width = self._frames[source].shape[:2]
        make = cv2.DISOpticalFlow_create  # type: ignore[attr-defined] # the stub leaves it out
        dis = make(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = dis.calc(self._gray(source), self._gray(target), None)
        flow = flow[:height, :width].astype(np.float16)  # finer than DIS is right
        if flow.nbytes <= self._left:
            self._left -= flow.nbytes
            self._cached[source, target] = flow
        return flow

    def carry(self, mask: np.ndarray, source: int, target: int, *, reach: float) -> np.ndarray:
        """`mask` of frame `source`, an (h, w) bool array, moved along to its neighbour `target`.

        Flow at an object's edge is a blend of two motions, and a mask that follows it frays. So the flow of the inside
        is carried on across the edge. `reach` is how far that is from the edge, in side lengths (the root of the area).
        """
        flow = self.between(target, source).astype(np.float32)  # from target back: every pixel gets one value
        moved = self._look_up(mask, flow)
        radius = max(1, round(reach * float(np.sqrt(np.count_nonzero(moved)))))
        inside = cv2.erode(moved.view(np.uint8), disc(radius)).astype(np.float32)
        if not inside.any():
            return moved
        weight = _smooth(inside, radius)[..., None]
        mean = _smooth(flow * inside[..., None], radius) / np.maximum(weight, 1e-3)
        return self._look_up(mask, np.where((inside[..., None] == 0) & (weight > 1e-3), mean, flow))

    def _look_up(self, mask: np.ndarray, flow: np.ndarray) -> np.ndarray:
        # The stub of OpenCV leaves out that there may be no second map.
        return cv2.remap(mask.astype(np.float32), self._grid + flow, None, cv2.INTER_LINEAR) > 0.5  # type: ignore[call-overload]

    def _gray(self, position: int) -> np.ndarray:
        gray = cv2.cvtColor(self._frames[position], cv2.COLOR_RGB2GRAY)
        down, right = (max(0, _SMALLEST - side) for side in gray.shape)
        return cv2.copyMakeBorder(gray, 0, down, 0, right, cv2.BORDER_REPLICATE) if down or right else gray


def disc(radius: int) -> np.ndarray:
    """Structuring element: a disc of `radius` pixels around its centre."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _smooth(values: np.ndarray, radius: int) -> np.ndarray:
    side = (4 * radius + 1, 4 * radius + 1)
    return cv2.blur(cv2.blur(values, side), side)  # twice: a tent, so that near counts more than far
