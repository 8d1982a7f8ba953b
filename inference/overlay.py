"""Draw masks and boxes into a picture: pure arrays in, a new array out.

The colours are those of Okabe and Ito, which stay apart for every kind of colour vision; lines have a dark edge beneath
them, so that none is lost on a background of its own colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from veason import boxes as geometry
from veason.types import Box, Size

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255 each."""

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # purple
)
"""Colours of objects 0, 1, …; the eighth object starts again."""

DARK: Colour = (16, 16, 16)


def paint(frame: np.ndarray, masks: Sequence[np.ndarray], *, alpha: float = 0.5) -> np.ndarray:
    """The (H, W, 3) uint8 RGB `frame` with each (H, W) bool mask filled in its object's colour and thinly outlined.

    `alpha` is the opacity of the filling. Where masks overlap the later ones lie on top.
    """
    picture = frame.copy()
    for i, mask in enumerate(masks):
        _check(mask, frame.shape[:2], i)
        colour = np.array(PALETTE[i % len(PALETTE)], dtype=np.float32)
        picture[mask] = np.rint(picture[mask] * (1 - alpha) + colour * alpha).astype(np.uint8)
    for i, mask in enumerate(masks):
        _stroke(picture, _rim(mask, line_width(frame.shape[:2]) // 2 or 1), PALETTE[i % len(PALETTE)])
    return picture


def draw_boxes(frame: np.ndarray, boxes: Sequence[Box], *, labels: Sequence[str] | None = None) -> np.ndarray:
    """The `frame` with each box drawn in its object's colour, and a label beside it where there is one.

    Boxes are xyxy, inclusive pixels of the frame; what lies outside is cut off, a box wholly outside is not drawn.
    """
    if labels is not None and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes")
    picture, size = frame.copy(), frame.shape[:2]
    seen = [(i, inside) for i, box in enumerate(boxes) if (inside := geometry.clip(box, size)) is not None]
    for i, box in seen:
        _stroke(picture, _frame_of(box, size), PALETTE[i % len(PALETTE)])
    for i, box in seen if labels is not None else ():
        picture = _tag(picture, box, labels[i], PALETTE[i % len(PALETTE)])
    return picture


def line_width(size: Size) -> int:
    """Pixels of a box's line in a picture of `size`: 2 up to about 400, 5 at 1080."""
    return max(2, round(min(size) / 200))


def _check(mask: np.ndarray, size: Size, i: int) -> None:
    if mask.shape != size or mask.dtype != bool:
        raise ValueError(f"mask {i} is {mask.shape} {mask.dtype}, the frame is {size} and a mask is bool")


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """The outermost `width` pixels of a mask; what touches the picture's border has its rim there."""
    kernel = np.ones((3, 3), np.uint8)
    core = cv2.erode(mask.view(np.uint8), kernel, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~core.view(bool)


def _frame_of(box: Box, size: Size) -> np.ndarray:
    """The line of a box as an (H, W) bool mask, inside the box."""
    x1, y1, x2, y2 = (round(value) for value in box)
    filled = np.zeros(size, dtype=bool)
    filled[y1 : y2 + 1, x1 : x2 + 1] = True
    return _rim(filled, line_width(size))


def _stroke(picture: np.ndarray, line: np.ndarray, colour: Colour) -> None:
    """Colour `line` in `picture`, in place, over a dark edge of one pixel."""
    edge = cv2.dilate(line.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    picture[edge] = picture[edge] // 2
    picture[line] = colour


def _tag(picture: np.ndarray, box: Box, label: str, colour: Colour) -> np.ndarray:
    """`picture` with `label` on a ground of `colour`, above the box's corner, or inside it where there is no room."""
    image = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=max(10, min(image.size) // 28))
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = max(0, min(round(box[0]), image.width - round(width)))
    y = round(box[1]) - round(height)
    y = y if y >= 0 else round(box[1])
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + 4 - left, y + 3 - top), label, font=font, fill=DARK)
    return np.asarray(image).copy()
