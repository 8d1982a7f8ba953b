"""Renders a scene: anti-aliased pictures and crisp masks. The same scene gives the same arrays.

A mask holds the pixels in which a shape is *visible*: at least half covered by it and not wholly covered by a shape in
front. A pixel on the border between two overlapping shapes shows both and belongs to both masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from demo.scene import COLOURS, Scene, Shape
from veason.types import Size

_FINE = 4  # sub-pixels per pixel and axis
_INK = 15 * _FINE**2  # value of a covered sub-pixel: a multiple of their number, so that means over pixels are exact
_SHIFT = 6  # fractional bits OpenCV draws with
_RIM = 0.012  # width of a shape's darker rim, in short sides


def render_clip(
    scene: Scene, size: Size | None = None, *, frame_ids: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames (T, H, W, 3) uint8 RGB and visible masks (N, T, H, W) bool; by default all, at native size."""
    size = size or scene.size
    ids = range(scene.frames) if frame_ids is None else frame_ids
    backdrop = background(scene, size)  # (H, W, 3) float32
    covers = [_coverages(scene, t, size) for t in ids]
    frames = []
    for cover, t in zip(covers, ids, strict=True):
        picture, u = backdrop.copy(), scene.moment(t)
        for shape, alpha in zip(scene.shapes, cover, strict=True):  # from the back to the front
            rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
            if rows.size:
                window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                ink = _ink(shape, scene, u, alpha.shape, window)
                picture[window] += alpha[window][..., None] * (ink - picture[window])
        frames.append(np.clip(picture + 0.5, 0, 255).astype(np.uint8))
    return np.stack(frames), np.stack([visible(cover) for cover in covers], axis=1)


def render_masks(
    scene: Scene, size: Size | None = None, *, frame_ids: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns visible masks and whole silhouettes, (N, T, H, W) bool each, without painting any pixels."""
    size = size or scene.size
    ids = range(scene.frames) if frame_ids is None else frame_ids
    covers = [_coverages(scene, t, size) for t in ids]
    return np.stack([visible(c) for c in covers], axis=1), np.stack([c >= 0.5 for c in covers], axis=1)


def visible(cover: np.ndarray) -> np.ndarray:
    """Returns visible masks (N, H, W) bool from the coverages of one frame, ordered from the back to the front."""
    masks = cover >= 0.5  # (N, H, W)
    opaque = np.zeros(cover.shape[1:], dtype=bool)
    for i in reversed(range(len(cover))):
        masks[i] &= ~opaque
        opaque |= cover[i] == 1
    return masks


def background(scene: Scene, size: Size) -> np.ndarray:
    """Paints the empty picture, (H, W, 3) float32 in 0 … 255."""
    height, width = size
    rng = np.random.default_rng(scene.grain)
    blotches = cv2.resize(rng.normal(size=(7, 9, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    speckle = cv2.resize(rng.normal(size=(48, 64)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.full((height, width, 3), 88, dtype=np.float32)
    if scene.background == "ramp":
        picture[..., 0] = 44 + 108 * x / max(width - 1, 1)
        picture[..., 1] = 44 + 108 * y / max(height - 1, 1)
        picture[..., 2] = 92
        picture += 2.5 * blotches
    elif scene.background == "cloud":
        picture += rng.uniform(-16, 16, size=3).astype(np.float32) + 12 * blotches
    return np.clip(picture + 4 * speckle[..., None], 0, 255)


def _coverages(scene: Scene, frame_id: int, size: Size) -> np.ndarray:
    """Returns (N, H, W) float32: the share of each pixel that each shape would cover if it were alone."""
    u = scene.moment(frame_id)
    covers = np.zeros((len(scene.shapes), *size), dtype=np.float32)
    for shape, cover in zip(scene.shapes, covers, strict=True):
        _draw(_to_pixels(shape.outline(u), scene, size), cover)
    return covers


def _to_pixels(points: np.ndarray, scene: Scene, size: Size) -> np.ndarray:
    scale = min(scene.size) * np.array([size[1] / scene.size[1], size[0] / scene.size[0]])
    return points * scale


def _draw(outline: np.ndarray, cover: np.ndarray) -> None:
    """Writes the share of each pixel within an outline (P, 2) into an empty `cover` (H, W)."""
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 2, cover.shape[::-1])
    width, height = high - low
    if width <= 0 or height <= 0:
        return  # outside the picture
    fine = np.zeros((height * _FINE, width * _FINE), dtype=np.uint8)
    corners = ((outline - low) * _FINE - 0.5) * (1 << _SHIFT)
    cv2.fillPoly(fine, [np.round(corners).astype(np.int32)], _INK, shift=_SHIFT)
    blocks = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)  # means, exact with this ink
    cover[low[1] : high[1], low[0] : high[0]] = blocks / np.float32(_INK)


def _ink(shape: Shape, scene: Scene, u: float, size: Size, window: tuple[slice, slice]) -> np.ndarray:
    """Returns the colour of a shape in a window, (h, w, 3) float32; its texture moves and grows with it."""
    rows, columns = window
    y, x = np.mgrid[rows, columns].astype(np.float32) + 0.5
    pixels = np.stack([x, y], axis=-1) / _to_pixels(np.ones(2), scene, size)  # in short sides
    local = (pixels - shape.centre(u)) / shape.radius_at(u)
    turn = np.deg2rad(shape.tilt)
    across = local[..., 0] * np.cos(turn) + local[..., 1] * np.sin(turn)
    down = local[..., 1] * np.cos(turn) - local[..., 0] * np.sin(turn)
    pattern = np.zeros_like(across)  # plain: relative brightness around 0
    if shape.texture == "stripes":
        pattern = 0.11 * np.sin(9 * across)
    elif shape.texture == "checks":
        pattern = 0.11 * np.tanh(4 * np.sin(6.5 * across) * np.sin(6.5 * down))
    elif shape.texture == "dots":
        pattern = 0.16 * np.maximum(np.cos(9 * across) * np.cos(9 * down), 0) - 0.03
    light = 1 + pattern - 0.06 * (across + down)
    inner = shape.centre(u) + (1 - _RIM / shape.radius_at(u)) * (shape.outline(u) - shape.centre(u))
    within = np.zeros(size, dtype=np.float32)
    _draw(_to_pixels(inner, scene, size), within)
    light = light * (1 - 0.22 * (1 - within[window]))  # a darker rim
    return (np.array(COLOURS[shape.colour]) * light[..., None]).astype(np.float32)
