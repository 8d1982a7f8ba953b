"""Builds the request about a sample: the task, its frames with the true boxes in red as JPEG data URLs, the messages.

Requests are built in worker processes. These are spawned and import this module alone: no HTTP client, no event loop.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from training_data_construction import cot_prompts, cot_tasks
from training_data_construction.cot_tasks import CotTask, Rules
from veason import boxes as geometry
from veason import frames
from veason.datasets.base import Dataset
from veason.types import Box, Size

TOGETHER = 4
"""Number of requests that a worker builds at a time: neighbours are about one video and share its frames."""
LONG_SIDE, SHORT_SIDE = 640, 480
RED = (255, 0, 0)
LINE = 2
"""Width of a box's line in pixels of the picture that is sent."""

_PREFIX = "data:image/jpeg;base64,"
_JPEG = (
    cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)  # fmt: skip # full colour resolution: a red line of two pixels stays red


@dataclass(frozen=True)
class CotRequest:
    """The request about one sample."""

    key: str
    task: CotTask | None
    """None: the target is in no frame, so there is nothing to ask."""
    messages: list[dict[str, Any]]


def build(dataset: Dataset, number: int, rules: Rules) -> CotRequest:
    """Builds the request about sample `number`: reads its masks; decodes, draws on and encodes its shown frames."""
    task = cot_tasks.plan(dataset, number, rules)
    key = dataset[number].key
    if task is None:
        return CotRequest(key=key, task=None, messages=[])
    messages = cot_prompts.messages(
        task.sample.expression,
        task.clip,
        data_urls(task),
        keyframe=task.answer.keyframe,
        style=cot_prompts.draw_style(Random(f"{rules.seed}/{key}/style")),
    )
    return CotRequest(key=key, task=task, messages=messages)


def build_some(job: tuple[Dataset, Rules], numbers: Sequence[int]) -> list[CotRequest]:
    """Builds the requests about some samples, as the task of a `WorkerPool` that shares data set and rules."""
    dataset, rules = job
    return [build(dataset, number, rules) for number in numbers]


def data_urls(task: CotTask) -> list[str]:
    """Returns the task's shown frames as the teacher gets them; decodes no other frame."""
    size = task.sample.size
    shown = [_load_shrunk(task.sample.frame_path(t), size) for t in task.clip.frame_ids]
    return [
        encode(with_boxes(frame.copy(), boxes, from_size=size)) for frame, boxes in zip(shown, task.boxes, strict=True)
    ]


@lru_cache(maxsize=32)  # 0.9 MB each: expressions of one video come one after the other and share frames
def _load_shrunk(path: Path, size: Size) -> np.ndarray:
    return shrink(frames.load(path, expect=size))


def shrunk_size(size: Size) -> Size:
    """Returns (height, width) that fits 480 x 640, or 640 x 480 for an upright picture; never larger than `size`."""
    height, width = size
    room = (LONG_SIDE, SHORT_SIDE) if height > width else (SHORT_SIDE, LONG_SIDE)
    scale = min(1.0, room[0] / height, room[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(frame: np.ndarray) -> np.ndarray:
    """Resizes a frame (H, W, 3) uint8 to `shrunk_size`."""
    height, width = shrunk_size(frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)  # a new array, also at the same size


def with_boxes(frame: np.ndarray, boxes: Sequence[Box], *, from_size: Size) -> np.ndarray:
    """Draws the outline of each box into `frame` in red, and returns it; boxes are in pixels of `from_size`."""
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
    """Encodes (H, W, 3) uint8 RGB as the data URL of a JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), _JPEG)
    assert ok, f"a frame of shape {frame.shape} could not be encoded"
    return _PREFIX + base64.b64encode(data.tobytes()).decode("ascii")


def decode(url: str) -> Image.Image:
    """Decodes the picture in a data URL of `encode`."""
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix(_PREFIX)))).convert("RGB")


def contact_sheet(urls: Sequence[str], captions: Sequence[str], *, columns: int = 4) -> Image.Image:
    """Lays out the pictures of one request in a grid, each below its caption."""
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
