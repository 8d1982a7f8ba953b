"""The protocol of benchmark readers, and the checks that every reader makes of names that become paths."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from veason.errors import DataError
from veason.files import RepeatedKey
from veason.files import load_json as load_json_file
from veason.types import Rle, VideoSample

_log = logging.getLogger(__name__)


class Dataset(Protocol):
    """One split of a benchmark: an ordered list of samples, with the ground truth on request. Picklable, no pixels."""

    name: str
    default_split: str
    """The split that is opened where none is named: the one that can be scored offline."""
    split: str
    files: dict[str, Path]
    """The annotation files this split is read from, by role (``meta``, ``masks``, ``foreground``)."""

    @property
    def warnings(self) -> list[str]:
        """The faults that were let through because the data set was opened for scoring; to be printed once."""
        ...

    @property
    def by_video(self) -> dict[str, list[VideoSample]]:
        """The samples of each video, both in the order of the file."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> VideoSample: ...

    def __iter__(self) -> Iterator[VideoSample]: ...

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        """One annotation of a sample's video: T checked RLEs, None where the object is not in the frame."""
        ...

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        """Ground truth of a sample: its objects x T frames; None where an object is not in a frame.

        Every RLE has been checked (`veason.masks.check`). No objects for an absent target.
        """
        ...

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        """Per frame the union of all annotated objects that the video's expressions refer to."""
        ...

    def gt_frames(self, sample: VideoSample) -> tuple[int, ...]:
        """Ascending ids of the frames that have ground truth, hence are scored: mostly all, never none.

        A None of `object_rles` says "the object is absent" in these frames and nothing in any other.
        """
        ...

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        """The files beside `files` that the ground truth of a sample is read from; none where `files` hold all of it.

        They are named whether they exist or not.
        """
        ...


class Tolerance:
    """Counts by kind the faults that a reader lets through for scoring, since the published scripts ignore them."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}

    def note(self, kind: str, where: str) -> None:
        """Count one entry, named by `where`, in which `kind` was found; one that was noted before counts once.

        A worker process, whose notes are not collected, logs the first of a kind itself.
        """
        if kind not in self._found and multiprocessing.parent_process() is not None:
            _log.warning("%s: %s", where, kind)
        self._found.setdefault(kind, {})[where] = None

    def take(self) -> list[tuple[str, str]]:
        """Everything noted so far as (kind, where), forgotten here; a worker hands it back to be noted elsewhere."""
        taken = [(kind, where) for kind, places in self._found.items() for where in places]
        self._found.clear()
        return taken

    def lines(self) -> list[str]:
        """A line for each kind: the first entry, and how many more there are."""
        return [
            f"{next(iter(places))}: {kind}" + (f" (and {len(places) - 1} more)" if len(places) > 1 else "")
            for kind, places in self._found.items()
        ]


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_PART = re.compile(r"[^\\/:\x00-\x1f\x7f]{1,255}")


def check_name(name: object, where: str, *, slashes: bool = False) -> str:
    """`name` if it can be a relative path below a root; otherwise a DataError that opens with `where`.

    Names come from data sets and become paths of files we read **and write**: no "..", no absolute path, no empty
    part, no backslash, no control character; slashes only where asked for (video keys have them).
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: expected a non-empty name, found {name!r}")
    parts = name.split("/") if slashes else (name,)
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise DataError(f"{where}: the name {name!r} would leave its folder or is no file name; correct the entry")
    return name


def load_json(path: Path) -> Any:
    """Parse an annotation file; an object with a repeated key comes back as a `RepeatedKey`."""
    return load_json_file(path, hint="is the data root right?")


def check_object(value: object, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object without repeated keys; otherwise a DataError that opens with `where`."""
    if isinstance(value, RepeatedKey):
        raise DataError(f"{where}: the key {value.key!r} appears twice; keep one of the two entries")
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {type(value).__name__}")
    return value
