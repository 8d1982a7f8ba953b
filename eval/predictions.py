"""Predicted masks, wherever they lie: a folder of PNGs, as the published evaluators expect it, or one file of RLEs.

`open_predictions` tells which it is; the evaluators see `Predictions` and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import numpy as np

from eval import png
from veason import mask_lines
from veason.errors import DataError
from veason.types import Size, VideoSample

Layout = Callable[[VideoSample], str]
"""The folder of a sample's PNGs, relative to the root; a function of a module, so that it can be pickled."""


class Predictions(Protocol):
    """The predicted masks of a run. Picklable and cheap to copy."""

    root: Path
    """The folder of the PNGs, or the file of the RLEs: what messages call the prediction."""

    def absence(self, sample: VideoSample) -> str | None:
        """What of a sample's prediction is not there, in words; None if every frame has its mask."""
        ...

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Grey values of one predicted mask: (H, W) uint8, row-major, of the video's own size.

        A mask that is missing, damaged or of another size is a DataError that names file and sample.
        """
        ...


def open_predictions(pred: Path, *, layout: Layout | None = None, rle_value: int = 255) -> Predictions:
    """Predictions in a run folder, a bare folder of PNGs, or a file of RLEs (see `eval.rle_predictions`).

    layout: folder of a sample's PNGs below the root, ``video/exp_id`` unless given; RLE files go by video and exp_id.
    rle_value: grey value inside a mask that comes as an RLE. 255 is as our PNGs are; 1 is as Sa2VA scores its own,
    which leaves J and F alone and puts A and R of ReVOS on another scale.
    """
    from eval.rle_predictions import open_rles

    if pred.is_file():
        return open_rles(pred, value=rle_value)
    if not pred.is_dir():
        raise DataError(
            f"{pred}: no such folder or file; --pred is a run folder, a folder of <video>/<exp_id>/<frame>.png, or a "
            "file of RLEs (.jsonl, .json)"
        )
    lines, pngs = pred / mask_lines.FILE, pred / "Annotations"
    if lines.is_file() and pngs.is_dir():
        raise DataError(f"{pred}: holds both {lines.name} and {pngs.name}; name the one that --pred shall mean")
    if lines.is_file():
        return open_rles(lines, value=rle_value)
    return PngFolder(pngs if pngs.is_dir() else pred, layout or attrgetter("key"))


@dataclass(frozen=True)
class PngFolder:
    """A PNG a frame, in a folder a sample."""

    root: Path
    layout: Layout

    def path(self, sample: VideoSample, frame_id: int) -> Path:
        return self.root / self.layout(sample) / f"{sample.frames[frame_id]}.png"

    def absence(self, sample: VideoSample) -> str | None:
        folder = self.layout(sample)
        video = folder.rpartition("/")[0]
        if not (self.root / video).is_dir():
            return f"no folder {video} of the video"
        try:
            names = {entry.name for entry in os.scandir(self.root / folder)}
        except (FileNotFoundError, NotADirectoryError):
            return f"no folder {folder} of the expression"
        lacking = [frame for frame in sample.frames if f"{frame}.png" not in names]
        if not lacking:
            return None
        return f"{len(lacking)} of {len(sample)} frames are missing in {folder}, first {lacking[0]}.png"

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Grey as OpenCV converts: 1-bit files give 0/255, 8-bit grey their values, the rest their luminance."""
        return read_png(self.path(sample, frame_id), sample.size, sample.key)


def read_png(path: Path, size: Size, key: str) -> np.ndarray:
    """(H, W) uint8 grey values of a mask file of the sample `key`; a DataError if it is no whole PNG of `size`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); write the masks of {key} again") from error
    if not data.startswith(png.START):
        raise DataError(f"{path}: not a PNG file; write the masks of {key} again, one PNG a frame")
    if png.END not in data[-64:]:
        raise DataError(f"{path}: the PNG is cut off after {len(data)} bytes; write the masks of {key} again")
    mask = png.read_grey(data, size)
    if mask is None:
        raise DataError(f"{path}: the PNG is damaged; write the masks of {key} again")
    if mask.shape != size:
        raise DataError(
            f"{path}: the mask is {mask.shape[0]}x{mask.shape[1]}, the video of {key} is {size[0]}x{size[1]} "
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
