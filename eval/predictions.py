"""A folder of predicted masks, ``<video>/<exp_id>/<frame>.png``, as the published evaluators expect it."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from veason.errors import DataError
from veason.types import Size, VideoSample

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"


def locate(pred: Path) -> Path:
    """The folder of the masks: ``pred/Annotations`` of a run folder, else `pred` itself."""
    if not pred.is_dir():
        raise DataError(f"{pred}: no such folder; --pred is a run folder, or holds <video>/<exp_id>/<frame>.png itself")
    return pred / "Annotations" if (pred / "Annotations").is_dir() else pred


def mask_path(root: Path, sample: VideoSample, frame_id: int) -> Path:
    return root / sample.video / sample.exp_id / f"{sample.frames[frame_id]}.png"


def absence(root: Path, sample: VideoSample) -> str | None:
    """What of a sample's prediction is not there, in words; None if every frame has its file."""
    if not (root / sample.video).is_dir():
        return f"no folder {sample.video} of the video"
    try:
        names = {entry.name for entry in os.scandir(root / sample.video / sample.exp_id)}
    except (FileNotFoundError, NotADirectoryError):
        return f"no folder {sample.key} of the expression"
    lacking = [frame for frame in sample.frames if f"{frame}.png" not in names]
    if not lacking:
        return None
    return f"{len(lacking)} of {len(sample)} frames are missing in {sample.key}, first {lacking[0]}.png"


def read_mask(path: Path, size: Size, sample: VideoSample) -> np.ndarray:
    """Grey values of one predicted mask: (H, W) uint8, row-major. A file that is no such mask is a DataError.

    Grey as OpenCV converts: 1-bit files give 0/255, 8-bit grey their values, palette and colour their luminance.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); write the masks of {sample.key} again") from error
    if not data.startswith(_PNG_START):
        raise DataError(f"{path}: not a PNG file; write the masks of {sample.key} again, one PNG a frame")
    if _PNG_END not in data[-64:]:
        raise DataError(f"{path}: the PNG is cut off after {len(data)} bytes; write the masks of {sample.key} again")
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"{path}: the PNG is damaged; write the masks of {sample.key} again")
    if mask.shape != size:
        raise DataError(
            f"{path}: the mask is {mask.shape[0]}x{mask.shape[1]}, the video of {sample.key} is {size[0]}x{size[1]} "
            f"(height x width); write masks at the video's own size, they are not resized here"
        )
    return mask


def values(mask: np.ndarray) -> set[int]:
    """The nonzero grey values in a mask."""
    top = int(mask.max())
    if top == 0:
        return set()
    if np.count_nonzero(mask) == np.count_nonzero(mask == top):
        return {top}
    return set(np.unique(mask).tolist()) - {0}
