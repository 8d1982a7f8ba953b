"""Packs and checks the archive for a benchmark's server: ``<prefix><video>/<exp_id>/<frame>.png``, grey, 0 and 255.

Packing is repeatable: the same masks give the same bytes, with any number of workers. Checking never unpacks to disk
and never trusts the sizes that an archive states, so that a file from anywhere can be checked.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import predictions
from eval.predictions import Predictions
from eval.results import Problem
from veason import atomic, mask_png
from veason.errors import DataError
from veason.files import check_regular, foreign_content, read_head
from veason.types import Size, VideoSample
from veason.worker_pool import map_in_order

PREFIXES = {"mevis": "", "refytvos": "Annotations/"}
"""Benchmark with a server -> folder in the archive that the videos lie in."""

_SLACK = 1 << 16  # bytes that a PNG may be larger than its pixels


def entry_name(prefix: str, sample: VideoSample, frame_id: int) -> str:
    return f"{prefix}{sample.key}/{sample.frames[frame_id]}.png"


@dataclass(frozen=True)
class Packer:
    """Turns the masks of a video into entries. Pickled once for each worker."""

    prefix: str
    predictions: Predictions
    absent: frozenset[str]
    """Keys of samples without a prediction: their masks are empty."""

    def pack(self, samples: Sequence[VideoSample]) -> tuple[list[tuple[str, bytes]], list[Problem]]:
        """Returns (name, PNG) of every frame of a video's samples, and a problem for each unreadable sample."""
        entries: list[tuple[str, bytes]] = []
        problems: list[Problem] = []
        for sample in samples:
            empty = np.zeros(sample.size, bool) if sample.key in self.absent else None
            packed = []
            try:
                for t in range(len(sample)):
                    mask = self.predictions.read(sample, t) if empty is None else empty
                    packed.append((entry_name(self.prefix, sample, t), mask_png.encode(mask)))
                entries += packed
            except DataError as error:
                problems.append(Problem(sample.key, str(error)))
        return entries, problems


def pack(
    packer: Packer,
    videos: Sequence[Sequence[VideoSample]],
    out: Path,
    *,
    workers: int,
    verify: Callable[[Path], list[Problem]],
) -> list[Problem]:
    """Writes the archive `out`, the videos in their order; with any problem nothing is written and an older one stays.

    verify: returns the problems of the finished file, which is a hidden file beside `out` until then. It is locked, so
    that one process writes it, and written over if a killed process left it.
    """
    partial = out.with_name(f".{out.name}.partial")
    with atomic.creating(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    with open(handle, "r+b") as file:
        atomic.take_lock(file.fileno(), partial)
        if not (partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat())):
            raise DataError(f"{out}: another process has just written this file; check it, or run the command again")
        try:
            file.truncate(0)
            problems: list[Problem] = []
            with zipfile.ZipFile(file, "w") as archive:
                packed = map_in_order(Packer.pack, packer, videos, workers=workers, label="packing", unit="video")
                for entries, found in packed:
                    problems.extend(found)
                    for name, data in entries if not problems else ():
                        info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # no time or machine in it
                        info.create_system, info.external_attr = 3, 0o644 << 16
                        archive.writestr(info, data)  # stored, since PNGs do not shrink
            file.flush()
            problems = problems or verify(partial)
            if not problems:
                os.replace(partial, out)
            return problems
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Contents:
    """The names in an archive, compared with the expected ones."""

    missing: tuple[str, ...]
    doubled: tuple[str, ...]
    extra: tuple[str, ...]


def contents(archive: Path, expected: Iterable[str]) -> Contents:
    """Compares an archive's names with the `expected` ones; entries for folders on the way to them do not count."""
    wanted = set(expected)
    folders = {f"{name[:i]}/" for name in wanted for i, letter in enumerate(name) if letter == "/"}
    with open_zip(archive) as file:
        held = Counter(info.filename for info in file.infolist())
    return Contents(
        missing=tuple(sorted(wanted - held.keys())),
        doubled=tuple(sorted(name for name in wanted & held.keys() if held[name] > 1)),
        extra=tuple(sorted(held.keys() - wanted - folders)),
    )


@dataclass(frozen=True)
class Checker:
    """Reads the entries of a video; a scorer to `eval.scoring.score_all`."""

    archive: Path
    prefix: str

    def frames(self, sample: VideoSample) -> int:
        return len(sample)

    def score(self, samples: Sequence[VideoSample]) -> dict[str, str | None]:
        """Returns the fault of each entry that is in the archive, by its name; None if it has none."""
        found: dict[str, str | None] = {}
        with open_zip(self.archive) as file:
            held = {info.filename: info for info in file.infolist()}
            for sample in samples:
                for t in range(len(sample)):
                    name = entry_name(self.prefix, sample, t)
                    if name in held:
                        found[name] = _fault(file, held[name], sample.size)
        return found


def open_zip(archive: Path) -> zipfile.ZipFile:
    check_regular(archive)
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        head = read_head(archive)
        found = None if head.startswith(b"PK") else foreign_content(head)
        why = f"but {found}" if found else f"({error}); pack it again"
        raise DataError(f"{archive}: not a zip archive {why}") from error


def _fault(file: zipfile.ZipFile, info: zipfile.ZipInfo, size: Size) -> str | None:
    """Returns the fault of one entry, None if it has none; a few bytes more than its pixels are unpacked at most."""
    limit = size[0] * (size[1] + 1) + _SLACK
    if info.flag_bits & 1:
        return "it is encrypted"
    try:
        with file.open(info) as entry:
            data = entry.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        return f"it cannot be unpacked ({error})"
    if len(data) > limit:
        return f"it unpacks to more than {limit} bytes, which no mask of {size[0]}x{size[1]} has"
    try:
        head = mask_png.header(data)
        if head.size != size:
            return f"it is {head.size[0]}x{head.size[1]}, the video {size[0]}x{size[1]} (height x width)"
        if (head.depth, head.colour) != (8, mask_png.GREY):
            return f"it has {head.depth} bits and colour type {head.colour}, expected 8-bit grey (mode L)"
        mask = mask_png.decode_grey(data, size)
    except mask_png.PngError as error:
        return str(error)
    wrong = predictions.values(mask) - {255}
    return f"it holds the value {min(wrong)}, expected 0 and 255 only" if wrong else None
