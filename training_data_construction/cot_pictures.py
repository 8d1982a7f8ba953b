"""The pictures that the teacher sees: shrunk frames with the true boxes in red, as JPEG data URLs; a contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from training_data_construction.cot_tasks import CotTask
from veason import boxes as geometry
from veason import frames
from veason.types import Box, Size

LONG_SIDE, SHORT_SIDE = 640, 480
RED = (255, 0, 0)
LINE = 2
"""Pixels of a box's line, in the picture that is sent."""

_PREFIX = "data:image/jpeg;base64,"
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)  # fmt: skip # full colour resolution: a red line of two pixels stays red


def data_urls(task: CotTask) -> list[str]:
    """The task's shown frames as the teacher gets them. Decodes those frames alone."""
    size = task.sample.size
    shown = [_shrunk(task.sample.frame_path(t), size) for t in task.clip.frame_ids]
    return [
        encode(with_boxes(frame.copy(), boxes, from_size=size)) for frame, boxes in zip(shown, task.boxes, strict=True)
    ]


@lru_cache(maxsize=32)  # of 0.9 MB: expressions of one video come one after the other and share frames
def _shrunk(path: Path, size: Size) -> np.ndarray:
    return shrink(frames.load(path, expect=size))


def shrunk_size(size: Size) -> Size:
    """(height, width) that fits 480 x 640, or 640 x 480 for an upright picture; never larger than `size`."""
    height, width = size
    room = (LONG_SIDE, SHORT_SIDE) if height > width else (SHORT_SIDE, LONG_SIDE)
    scale = min(1.0, room[0] / height, room[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 frame at `shrunk_size`."""
    height, width = shrunk_size(frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)  # a new array, also at the same size


def with_boxes(frame: np.ndarray, boxes: Sequence[Box], *, from_size: Size) -> np.ndarray:
    """`frame` with the outline of each box in red; boxes in pixels of `from_size`. Draws into `frame`."""
    height, width = frame.shape[:2]
    for x1, y1, x2, y2 in geometry.rescale(boxes, from_size, (height, width)):
        left, top = max(0, round(x1) - 1), max(0, round(y1) - 1)
        right, bottom = min(width, round(x2) + 2), min(height, round(y2) + 2)  # one past the line
        for rows in (slice(top, top + LINE), slice(max(top, bottom - LINE), bottom)):
            frame[rows, left:right] = RED
        for columns in (slice(left, left + LINE), slice(max(left, right - LINE), right)):
            frame[top:bottom, columns] = RED
    return frame


def encode(frame: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as the data URL of a JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), _JPEG)
    assert ok, f"a frame of shape {frame.shape} could not be encoded"
    return _PREFIX + base64.b64encode(data).decode("ascii")


def decode(url: str) -> Image.Image:
    """The picture in a data URL of `encode`."""
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix(_PREFIX)))).convert("RGB")


def contact_sheet(urls: Sequence[str], captions: Sequence[str], *, columns: int = 4) -> Image.Image:
    """All pictures of one request in a grid, each below its caption."""
    pictures, caption_height, gap = [decode(url) for url in urls], 16, 4
    width, height = max(p.width for p in pictures) + gap, max(p.height for p in pictures) + caption_height + gap
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % columns * width, i // columns * height
        pen.text((x + gap, y + 2), caption, fill="black")
        sheet.paste(picture, (x, y + caption_height))
    return sheet
