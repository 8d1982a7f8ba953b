"""Reads predicted masks: from a folder of PNGs, as the published evaluators expect it, or from one file of RLEs.

`open_predictions` finds out which it is; the evaluators use the interface `Predictions` alone.
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

    @property
    def root(self) -> Path:
        """The folder of the PNGs, or the file of the RLEs; messages name it."""
        ...

    def absence(self, sample: VideoSample) -> str | None:
        """Says what of a sample's prediction is missing; returns None if every frame has its mask."""
        ...

    def has_video(self, sample: VideoSample) -> bool:
        """Tells whether there is anything of the sample's video, of any expression."""
        ...

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Reads the grey values of one predicted mask: (H, W) uint8, row-major, of the video's own size.

        Raises a DataError that names file and sample if the mask is missing, damaged or of another size.
        """
        ...


def open_predictions(pred: Path, *, layout: Layout | None = None, rle_value: int = 255) -> PngFolder | RleFile:
    """Opens the predictions in a run folder, a folder of PNGs, or a file of RLEs (see `eval.rle_predictions`).

    layout: the folder of a sample's PNGs below the root, ``video/exp_id`` unless given; files of RLEs are read by video
    and exp_id. rle_value: the grey value inside a mask that comes as an RLE. 255 is the value of our PNGs; Sa2VA scores
    its own masks with 1, which does not change J and F and puts A and R of ReVOS on another scale.
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
        raise DataError(f"{pred}: holds both {lines.name} and {pngs.name}; give one of them as --pred")
    if lines.exists():
        return open_rles(lines, value=rle_value)
    return PngFolder(pngs if pngs.is_dir() else pred, layout or attrgetter("key"))


def run_folder(root: Path) -> Path | None:
    """Returns the run folder of the masks at `root` (see `Predictions.root`); None for masks from elsewhere."""
    places = (root, root.parent) if root.name in (PNGS, mask_lines.FILE) else (root,)
    names = ("run.json", DONE)
    return next((place for place in places if any((place / name).is_file() for name in names)), None)


def run_settings(root: Path) -> dict[str, Any]:
    """Returns the settings of the run that made the masks at `root`, such as ``dataset``; {} if unknown."""
    run = run_folder(root)
    if run is None or not (run / "run.json").is_file():
        return {}
    record = load_json(run / "run.json")
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        raise DataError(f"{run / 'run.json'}: expected an object with settings; restore the file, or remove it")
    return settings


def done_samples(root: Path) -> set[str]:
    """Returns the keys of the samples that the run of the masks at `root` says are done; none where there is no run."""
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
    """Predictions with a PNG a frame, in a folder a sample."""

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
        """Returns a fingerprint of names, sizes and times, which changes if a mask of the sample is written again."""
        return folder_fingerprint(self.path(sample, t) for t in range(len(sample)))["names_and_times"]

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Reads grey values as OpenCV converts them: 1-bit files give 0/255, other files their values or luminance."""
        path = f"{self.root}/{self.layout(sample)}/{sample.frames[frame_id]}.png"  # a Path takes as long as its file
        return read_png(path, sample.size, sample.key)


def read_png(path: str | Path, size: Size, key: str) -> np.ndarray:
    """Reads the (H, W) uint8 grey values of a mask of the sample `key`; raises DataError if it is no PNG of `size`.

    The size is checked in the header, so that a file of another size is never decoded, however large it says it is.
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
    """Reads (height, width) from a mask file's header; raises DataError if it is no PNG, or larger than `LARGEST`."""
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
    """Reads a whole regular file; raises OSError for a FIFO, on which reading would wait for ever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        return file.readall()


def values(mask: np.ndarray) -> set[int]:
    """Returns the nonzero grey values in a mask."""
    top = int(mask.max(initial=0))
    if top == 0:
        return set()
    if np.count_nonzero(mask) == np.count_nonzero(mask == top):
        return {top}
    return set(np.unique(mask).tolist()) - {0}
