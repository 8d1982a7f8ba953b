"""Predicted masks, wherever they lie: a folder of PNGs, as the published evaluators expect it, or one file of RLEs.

`open_predictions` tells which it is; the evaluators see `Predictions` and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from veason import atomic, mask_lines, mask_png
from veason.errors import DataError
from veason.files import folder_fingerprint, foreign_content, load_json, read_head
from veason.types import Size, VideoSample

if TYPE_CHECKING:
    from eval.rle_predictions import RleFile

PNGS = "Annotations"
"""Folder of the PNGs in a run folder."""
DONE = "predictions.jsonl"
"""Name of the file in a run folder that says which samples are done."""

Layout = Callable[[VideoSample], str]
"""The folder of a sample's PNGs, relative to the root; a function of a module, so that it can be pickled."""


class Predictions(Protocol):
    """The predicted masks of a run. Picklable and cheap to copy."""

    root: Path
    """The folder of the PNGs, or the file of the RLEs: what messages call the prediction."""

    def absence(self, sample: VideoSample) -> str | None:
        """What of a sample's prediction is not there, in words; None if every frame has its mask."""
        ...

    def has_video(self, sample: VideoSample) -> bool:
        """Whether anything of the sample's video is there, be it of another expression."""
        ...

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Grey values of one predicted mask: (H, W) uint8, row-major, of the video's own size.

        A mask that is missing, damaged or of another size is a DataError that names file and sample.
        """
        ...


def open_predictions(pred: Path, *, layout: Layout | None = None, rle_value: int = 255) -> PngFolder | RleFile:
    """Predictions in a run folder, a bare folder of PNGs, or a file of RLEs (see `eval.rle_predictions`).

    layout: folder of a sample's PNGs below the root, ``video/exp_id`` unless given; RLE files go by video and exp_id.
    rle_value: grey value inside a mask that comes as an RLE. 255 is as our PNGs are; 1 is as Sa2VA scores its own,
    which leaves J and F alone and puts A and R of ReVOS on another scale.
    """
    from eval.rle_predictions import open_rles

    if not pred.exists():
        raise DataError(
            f"{pred}: no such folder or file; --pred is a run folder, a folder of <video>/<exp_id>/<frame>.png, or a "
            "file of RLEs (.jsonl, .json)"
        )
    if not pred.is_dir():
        return open_rles(pred, value=rle_value)
    lines, pngs = pred / mask_lines.FILE, pred / PNGS
    if lines.exists() and pngs.is_dir():
        raise DataError(f"{pred}: holds both {lines.name} and {pngs.name}; name the one that --pred shall mean")
    if lines.exists():
        return open_rles(lines, value=rle_value)
    return PngFolder(pngs if pngs.is_dir() else pred, layout or attrgetter("key"))


def run_folder(root: Path) -> Path | None:
    """The run folder that the masks at `root` are of (see `Predictions.root`); None for masks from elsewhere."""
    places = (root, root.parent) if root.name in (PNGS, mask_lines.FILE) else (root,)
    names = ("run.json", DONE)
    return next((place for place in places if any((place / name).is_file() for name in names)), None)


def run_settings(root: Path) -> dict[str, Any]:
    """What the run of the masks at `root` was asked for, ``dataset`` and ``split`` among it; nothing if unknown."""
    run = run_folder(root)
    if run is None or not (run / "run.json").is_file():
        return {}
    record = load_json(run / "run.json")
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        raise DataError(f"{run / 'run.json'}: expected an object with settings; restore the file, or remove it")
    return settings


def done_samples(root: Path) -> set[str]:
    """Keys of the samples that the run of the masks at `root` says it is done with; none where no run says so."""
    run = run_folder(root)
    if run is None or not (run / DONE).is_file():
        return set()
    try:
        return {f"{record['video']}/{record['exp_id']}" for record in atomic.read_journal(run / DONE)}
    except KeyError as error:
        raise DataError(f"{run / DONE}: a line without {error}; restore the file, or predict again") from None
    except ValueError as error:
        raise DataError(f"{error}; restore the file, or predict again") from error


@dataclass(frozen=True)
class PngFolder:
    """A PNG a frame, in a folder a sample."""

    root: Path
    layout: Layout

    def path(self, sample: VideoSample, frame_id: int) -> Path:
        return self.root / self.layout(sample) / f"{sample.frames[frame_id]}.png"

    def has_video(self, sample: VideoSample) -> bool:
        return (self.root / self.layout(sample)).parent.is_dir()

    def absence(self, sample: VideoSample) -> str | None:
        folder = self.layout(sample)
        if not self.has_video(sample):
            return f"no folder {folder.rpartition('/')[0]} of the video"
        try:
            names = {entry.name for entry in os.scandir(self.root / folder)}
        except (FileNotFoundError, NotADirectoryError):
            return f"no folder {folder} of the expression"
        lacking = [frame for frame in sample.frames if f"{frame}.png" not in names]
        if not lacking:
            return None
        return f"{len(lacking)} of {len(sample)} frames are missing in {folder}, first {lacking[0]}.png"

    def version(self, sample: VideoSample) -> str:
        """Another text if a mask of the sample has been written again: names, sizes and times of its files."""
        return folder_fingerprint(self.path(sample, t) for t in range(len(sample)))["names_and_times"]

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Grey as OpenCV converts: 1-bit files give 0/255, 8-bit grey their values, the rest their luminance."""
        path = f"{self.root}/{self.layout(sample)}/{sample.frames[frame_id]}.png"  # a Path takes as long as its file
        return read_png(path, sample.size, sample.key)


def read_png(path: str | Path, size: Size, key: str) -> np.ndarray:
    """(H, W) uint8 grey values of a mask file of the sample `key`; a DataError if it is no whole PNG of `size`.

    The header tells the size, so that nothing of another size is ever decoded, however large it says it is.
    """
    again = f"write the masks of {key} again"
    try:
        data = _read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    try:
        found = mask_png.header(data).size
        if found != size:
            raise DataError(
                f"{path}: the mask is {found[0]}x{found[1]}, the video of {key} is {size[0]}x{size[1]} "
                f"(height x width); write masks at the video's own size, they are not resized here"
            )
        return mask_png.decode_grey(data, size)
    except mask_png.PngError as error:
        foreign = foreign_content(data[:512]) if data else None
        raise DataError(
            f"{path}: {error}" + (f" but {foreign}" if foreign else f"; {again}, one PNG a frame")
        ) from error


LARGEST = 1 << 27
"""Pixels of a mask at most where no data set says how large it has to be: four times 8K."""


def png_size(path: Path) -> Size:
    """(height, width) from a mask file's header; a DataError if it is no PNG, or larger than `LARGEST`."""
    head = read_head(path)
    try:
        height, width = mask_png.header(head).size
    except mask_png.PngError as error:
        found = foreign_content(head)
        problem = f"not a PNG file but {found}" if found else f"{error}; write the masks of its sample again"
        raise DataError(f"{path}: {problem}") from error
    if height * width > LARGEST:
        raise DataError(f"{path}: {height}x{width} pixels (height x width); no mask is that large")
    return (height, width)


def _read_regular(path: str | Path) -> bytes:
    """The whole of a regular file; a FIFO, on which reading waits for ever, is an OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        return file.readall()


def values(mask: np.ndarray) -> set[int]:
    """The nonzero grey values in a mask."""
    top = int(mask.max(initial=0))
    if top == 0:
        return set()
    if np.count_nonzero(mask) == np.count_nonzero(mask == top):
        return {top}
    return set(np.unique(mask).tolist()) - {0}
