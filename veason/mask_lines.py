"""Writes and reads the lines of ``masks.jsonl``: a sample's masks, run-length encoded, a whole run in one file.

A line is ``{"video": str, "exp_id": str, "size": [H, W], "counts": [str | null, …]}``: per frame, in frame order, the
compressed COCO runs of the union over the objects, null where it is empty. The file only grows: a run killed between a
sample's masks and its prediction writes the sample again, so of several lines of one sample the **last** counts, and a
line without its line feed does not count at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from veason import masks
from veason.errors import DataError
from veason.types import MaskTrack, Rle, Size, VideoSample

FILE = "masks.jsonl"
"""Name of the file in a run folder."""


@dataclass(frozen=True)
class MaskLine:
    """One line, its shape checked; the runs of a frame are checked when its mask is asked for."""

    video: str
    exp_id: str
    size: Size
    counts: tuple[str | None, ...]
    """T run strings; None is an empty mask."""

    def rle(self, frame_id: int) -> Rle | None:
        """The union mask of a frame, unchecked (`veason.masks.check`); None if it is empty."""
        counts = self.counts[frame_id]
        return None if counts is None else Rle(size=list(self.size), counts=counts)


def record(sample: VideoSample, unions: Sequence[Rle | None]) -> dict[str, Any]:
    """The line of a sample as a JSON object; `unions`: per frame its union mask, None or of area 0 where empty."""
    assert len(unions) == len(sample), f"{sample.key}: {len(unions)} masks for {len(sample)} frames"
    counts = [rle["counts"] if rle is not None and masks.area(rle) else None for rle in unions]
    return {"video": sample.video, "exp_id": sample.exp_id, "size": list(sample.size), "counts": counts}


def track_record(sample: VideoSample, track: MaskTrack) -> dict[str, Any]:
    """`record` of a predicted track, its objects merged without decoding."""
    return record(sample, [masks.merge([rles[t] for rles in track.objects]) for t in range(track.length)])


def parse(line: object, where: str) -> MaskLine:
    """The line that a JSON value of untrusted origin holds; otherwise a DataError that opens with `where`."""
    if not isinstance(line, dict):
        raise DataError(f"{where}: expected an object with video, exp_id, size and counts, found {type(line).__name__}")
    video, exp_id, size, counts = (line.get(name) for name in ("video", "exp_id", "size", "counts"))
    if not isinstance(video, str) or not isinstance(exp_id, str):
        raise DataError(f"{where}: video and exp_id must be texts, found {str((video, exp_id))[:80]}")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{where}: size must be [height, width], found {str(size)[:80]}")
    if not isinstance(counts, list) or not all(runs is None or isinstance(runs, str) for runs in counts):
        raise DataError(f"{where}: counts must be a list of run strings, null for an empty mask")
    return MaskLine(video=video, exp_id=exp_id, size=(size[0], size[1]), counts=tuple(counts))
