"""Measures the masks of a scene: sizes, places, which shapes are hidden, which enter the picture and which leave it.

Lengths are in short sides. A shape is *clear* in a frame where it is visible, off the border and overlaps no other:
only there are the measures of its mask those of the shape itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo.render import render_masks
from demo.scene import Scene

NEVER = -1
"""Stands in place of a frame id for an event that does not happen."""


@dataclass(frozen=True)
class Facts:
    """The measures of N shapes in T frames."""

    areas: np.ndarray
    """(N, T) int: visible pixels."""
    centres: np.ndarray
    """(N, T, 2) float: mean (x, y) of the visible pixels in short sides; NaN where not visible."""
    boxes: np.ndarray
    """(N, T, 4) float: (x1, y1, x2, y2) outer edges of the visible pixels in short sides; NaN where not visible."""
    clear: np.ndarray
    """(N, T) bool: the shape is visible, off the border and overlaps no other."""
    border: np.ndarray
    """(N, T) bool: the visible part touches the border of the picture."""
    hidden: np.ndarray
    """(N, T) float: share of the shape (its part within the picture) that other shapes hide."""
    meets: np.ndarray
    """(N, N, T) bool: two silhouettes overlap."""
    anchored: np.ndarray
    """(N, T) bool: the shape is visible at the centre of its box."""
    pixels: int
    """Number of pixels in a frame, H·W."""

    def growth(self, shape: int) -> float | None:
        """Returns the area in the last clear frame over that in the first; None if they are too close to compare."""
        clear = np.flatnonzero(self.clear[shape])
        if len(clear) < 2 or clear[-1] - clear[0] < 0.4 * (np.count_nonzero(self.areas[shape]) - 1):
            return None
        return float(self.areas[shape, clear[-1]] / self.areas[shape, clear[0]])

    def displacement(self, shape: int) -> np.ndarray | None:
        """Returns (dx, dy) from the first to the last frame in which it is apart from others; None without two of them.

        A shape half outside counts too: one that comes in from the right has moved to the left.
        """
        apart = np.flatnonzero((self.areas[shape] > 0) & ~self.meets[shape].any(axis=0))
        return self.centres[shape, apart[-1]] - self.centres[shape, apart[0]] if len(apart) >= 2 else None

    def speed(self, shape: int) -> float | None:
        """Returns the mean step between neighbouring clear frames; None with fewer than two steps."""
        pairs = self.clear[shape, 1:] & self.clear[shape, :-1]
        steps = np.linalg.norm(np.diff(self.centres[shape], axis=0), axis=1)[pairs]
        return float(steps.mean()) if len(steps) >= 2 else None

    def leaves(self, shape: int) -> int | None:
        """Returns the first frame after the shape has left over the border; NEVER if it stays; None if in doubt."""
        return _gone(self.areas[shape], self.border[shape], self.meets[shape].any(axis=0))

    def enters(self, shape: int) -> int | None:
        """Returns the first frame of a shape that came in over the border; NEVER if it was there; None if in doubt."""
        last = _gone(self.areas[shape, ::-1], self.border[shape, ::-1], self.meets[shape].any(axis=0)[::-1])
        return last if last in (None, NEVER) else self.areas.shape[1] - last


def _gone(areas: np.ndarray, border: np.ndarray, touched: np.ndarray) -> int | None:
    """Returns the first frame after the last one that shows the shape, as `Facts.leaves` does; all three are (T,)."""
    seen = np.flatnonzero(areas)
    last = int(seen[-1])
    if last == len(areas) - 1:
        whole = not border[last] or areas[last] >= 0.7 * areas.max()
        return NEVER if whole else None  # in doubt while half of it is outside
    at_once = len(seen) == last - seen[0] + 1
    return last + 1 if at_once and border[last] and not touched[last] else None  # otherwise hidden, or it came back


def measure(scene: Scene) -> Facts:
    """Measures a scene by its masks at native size."""
    return measure_masks(*render_masks(scene))


def measure_masks(masks: np.ndarray, silhouettes: np.ndarray) -> Facts:
    """Measures visible masks and whole silhouettes, both (N, T, H, W) bool."""
    shapes, frames, height, width = masks.shape
    areas = masks.sum(axis=(2, 3))
    whole = silhouettes.sum(axis=(2, 3))
    flat = silhouettes.reshape(shapes, frames, -1)
    meets = np.stack([(flat & one).any(axis=2) for one in flat], axis=1)  # (N, N, T)
    meets[np.arange(shapes), np.arange(shapes)] = False
    border = np.asarray(masks[:, :, [0, -1], :].any(axis=(2, 3)) | masks[:, :, :, [0, -1]].any(axis=(2, 3)))

    rows, columns = masks.sum(axis=3), masks.sum(axis=2)  # (N, T, H), (N, T, W)
    moments = np.stack([columns @ np.arange(width), rows @ np.arange(height)], axis=-1)
    centres = moments / np.where(areas, areas, np.nan)[..., None] + 0.5  # + 0.5: the middle of a pixel

    boxes = np.full((shapes, frames, 4), np.nan)
    anchored = np.zeros((shapes, frames), dtype=bool)
    for i, t in np.argwhere(masks.any(axis=(2, 3))):
        y, x = np.flatnonzero(masks[i, t].any(axis=1)), np.flatnonzero(masks[i, t].any(axis=0))
        x1, y1, x2, y2 = boxes[i, t] = x[0], y[0], x[-1] + 1, y[-1] + 1
        # the box centre is one pixel, or the two or four about it
        middle = np.s_[(y1 + y2 - 1) // 2 : (y1 + y2) // 2 + 1, (x1 + x2 - 1) // 2 : (x1 + x2) // 2 + 1]
        anchored[i, t] = masks[i, t][middle].all()
    return Facts(
        areas=areas,
        centres=centres / min(height, width),
        boxes=boxes / min(height, width),
        clear=(areas > 0) & ~border & ~meets.any(axis=1),
        border=border,
        hidden=np.where(whole > 0, 1 - areas / np.maximum(whole, 1), 0.0),
        meets=meets,
        anchored=anchored,
        pixels=height * width,
    )
