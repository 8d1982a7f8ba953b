"""Draws masks and boxes into a picture: arrays in, a new array out.

The colours are those of Okabe and Ito, which can be told apart with every kind of colour vision. Lines have a dark edge
beneath them, so that none is lost on a background of its own colour.
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
    """Returns the (H, W, 3) uint8 RGB `frame` with each (H, W) bool mask filled in its object's colour and outlined.

    `alpha` is the opacity of the filling. Where masks overlap the later ones lie on top.
    """
    picture = frame.copy()
    for i, mask in enumerate(masks):
        if mask.shape != frame.shape[:2] or mask.dtype != bool:
            raise ValueError(
                f"mask {i} is {mask.shape} {mask.dtype}, the frame is {frame.shape[:2]} and a mask is bool"
            )
        colour = np.array(PALETTE[i % len(PALETTE)], dtype=np.float32)
        picture[mask] = np.rint(picture[mask] * (1 - alpha) + colour * alpha).astype(np.uint8)
    for i, mask in enumerate(masks):
        _stroke(picture, _rim(mask, line_width(frame.shape[:2]) // 2 or 1), PALETTE[i % len(PALETTE)])
    return picture


def draw_boxes(frame: np.ndarray, boxes: Sequence[Box], *, labels: Sequence[str] | None = None) -> np.ndarray:
    """Returns the `frame` with each box drawn in its object's colour, and a label beside it where there is one.

    Boxes are xyxy, inclusive pixels of the frame; what lies outside is cut off, a box wholly outside is not drawn.
    """
    if labels is not None and len(labels) != len(boxes):
        raise ValueError(f"{len(labels)} labels for {len(boxes)} boxes")
    picture, size = frame.copy(), frame.shape[:2]
    seen = [(i, inside) for i, box in enumerate(boxes) if (inside := geometry.clip(box, size)) is not None]
    for i, box in seen:
        x1, y1, x2, y2 = (round(value) for value in box)
        filled = np.zeros(size, dtype=bool)
        filled[y1 : y2 + 1, x1 : x2 + 1] = True
        _stroke(picture, _rim(filled, line_width(size)), PALETTE[i % len(PALETTE)])
    for i, box in seen:
        if labels is not None:
            picture = _with_label(picture, box, labels[i], PALETTE[i % len(PALETTE)])
    return picture


def line_width(size: Size) -> int:
    """Chooses the width of a box's line in a picture of `size`: 2 pixels up to about 400, 5 at 1080."""
    return max(2, round(min(size) / 200))


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """Selects the outermost `width` pixels of a mask, also where it touches the picture's border."""
    kernel = np.ones((3, 3), np.uint8)
    core = cv2.erode(mask.view(np.uint8), kernel, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~core.view(bool)


def _stroke(picture: np.ndarray, line: np.ndarray, colour: Colour) -> None:
    """Colours `line` in `picture`, in place, over a dark edge of one pixel."""
    edge = cv2.dilate(line.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    picture[edge] = picture[edge] // 2
    picture[line] = colour


def _with_label(picture: np.ndarray, box: Box, label: str, colour: Colour) -> np.ndarray:
    """Returns `picture` with `label` on a ground of `colour`, above the box's corner or, for want of room, inside."""
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
