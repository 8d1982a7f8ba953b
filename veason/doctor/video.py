"""Examines one video without decoding a picture: its files, their sizes, its masks, the targets of its expressions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veason import frames, ground_truth, masks
from veason.datasets.base import Dataset
from veason.datasets.pictures import picture_size
from veason.doctor.findings import Finding
from veason.errors import DataError
from veason.types import Rle, VideoSample

ABSENT = 2
"""type_id of an expression that has no target."""
FOREGROUND_FRAMES = 4
"""Number of frames of a video in which the stored foreground is compared."""

Track = tuple[Rle | None, ...]


@dataclass(frozen=True)
class Checked:
    """The findings in one video, and the time that reading it took."""

    findings: tuple[Finding, ...]
    seconds: tuple[float, ...]
    """Clock time of reading each picture's header."""


def check(dataset: Dataset, video: str, *, part: bool = False) -> Checked:
    """Examine one video of a data set. part: the expressions are some of the video's, not all."""
    samples = dataset.by_video[video]
    seconds, found = _check_frames(samples)
    tracks, broken = _read_tracks(dataset, samples)
    found += broken
    for sample in samples:
        found += _check_target(dataset, sample, tracks)
    if "foreground" in dataset.files and all(anno_id in tracks for s in samples for anno_id in s.anno_ids):
        found += _check_foreground(dataset, video, [tracks[anno_id] for anno_id in sorted(tracks, key=str)], part)
    return Checked(tuple(found), tuple(seconds))


def _check_frames(samples: Sequence[VideoSample]) -> tuple[list[float], list[Finding]]:
    """(seconds for each header, findings) of the check that every frame is there, of the annotated size."""
    sample, keys = samples[0], tuple(sample.key for sample in samples)
    try:
        names = {entry.name for entry in os.scandir(sample.frame_dir)}
    except (FileNotFoundError, NotADirectoryError):
        what, remedy = "the folder of the video's frames is not there", "fetch the video, or name --image-root"
        return [], [Finding("error", "missing frames", str(sample.frame_dir), what, remedy, keys)]
    found: list[Finding] = []
    seconds: list[float] = []
    wrong = []
    lacking = [frame for frame in sample.frames if f"{frame}{sample.suffix}" not in names]
    if lacking:
        what = f"{len(lacking)} of {len(sample)} frames are not there, first {lacking[0]}{sample.suffix}"
        found.append(Finding("error", "missing frames", str(sample.frame_dir), what, "fetch the video again", keys))
    absent = set(lacking)
    for t, frame in enumerate(sample.frames):
        if frame in absent:
            continue
        started = time.perf_counter()
        try:
            size = picture_size(sample.frame_path(t))
        except DataError as error:
            where = str(sample.frame_path(t))
            what = str(error).removeprefix(f"{where}: ")
            found.append(Finding("error", "broken frames", where, what, "fetch it again", keys))
            continue
        finally:
            seconds.append(time.perf_counter() - started)
        if size != sample.size:
            wrong.append((frame, size))
    if wrong:
        frame, size = wrong[0]
        what = (
            f"{len(wrong)} of {len(sample)} frames are of another size than the masks: {frame}{sample.suffix} is "
            f"{size[0]}x{size[1]}, the video {sample.size[0]}x{sample.size[1]} (height x width)"
        )
        remedy = "fetch the frames at the annotated size; they are not resized here"
        found.append(Finding("error", "frame sizes", str(sample.frame_dir), what, remedy, keys))
    return seconds, found


def _read_tracks(dataset: Dataset, samples: Sequence[VideoSample]) -> tuple[dict[int | str, Track], list[Finding]]:
    """(checked tracks by annotation id, findings): each annotation of a video is read once."""
    users: dict[int | str, list[VideoSample]] = {}
    for sample in samples:
        for anno_id in dict.fromkeys(sample.anno_ids):
            users.setdefault(anno_id, []).append(sample)
    tracks: dict[int | str, Track] = {}
    found = []
    for anno_id, named_by in users.items():
        keys = tuple(sample.key for sample in named_by)
        try:
            tracks[anno_id] = dataset.track(named_by[0], anno_id)
        except DataError as error:
            found.append(Finding("error", "masks", named_by[0].video, str(error), "fetch the annotations again", keys))
            continue
        if not any(masks.area(rle) for rle in tracks[anno_id]):
            what = f"annotation {anno_id} has no pixel in any frame ({len(keys)} expressions name it)"
            found.append(Finding("warning", "empty masks", named_by[0].video, what, "correct the id or leave it out"))
    return tracks, found


def _check_target(dataset: Dataset, sample: VideoSample, tracks: dict[int | str, Track]) -> Iterator[Finding]:
    """Check that an expression names a visible target, unless its type says that it has none."""
    if sample.type_id == ABSENT:
        if sample.anno_ids:
            what = f"the type says that there is no target, {len(sample.anno_ids)} annotations are named"
            yield Finding("warning", "target", sample.key, what, "correct the type or the ids", (sample.key,))
        return
    if not sample.anno_ids:
        if sample.type_id is not None:  # without types, a split may come without ground truth
            what = f"type {sample.type_id} has a target, no annotation is named"
            yield Finding("warning", "target", sample.key, what, "correct the type or the ids", (sample.key,))
        return
    if not all(anno_id in tracks for anno_id in sample.anno_ids):
        return  # reported with its masks
    try:
        scored = dataset.gt_frames(sample)
    except DataError as error:
        yield Finding("error", "masks", sample.key, str(error), "fetch the annotations again", (sample.key,))
        return
    if not any(masks.area(tracks[anno_id][t]) for anno_id in sample.anno_ids for t in scored):
        what, remedy = "the target is visible in no frame", "leave it out of training (--write-exclude)"
        yield Finding("warning", "target", sample.key, what, remedy, (sample.key,))


def _check_foreground(dataset: Dataset, video: str, tracks: Sequence[Track], part: bool) -> Iterator[Finding]:
    """Check that the stored foreground is the union of the annotations, in a few frames; of a part it may be more."""
    path = dataset.files["foreground"]
    try:
        stored = dataset.foreground(video)
    except DataError as error:
        keys = tuple(sample.key for sample in dataset.by_video[video])
        yield Finding("error", "foreground", f"{path}: {video}", str(error), "fetch the file again", keys)
        return
    some = frames.linspace(len(stored), FOREGROUND_FRAMES)
    other = []
    for t in some:
        area, union_area = masks.area(stored[t]), ground_truth.area(tracks, t)
        both = masks.area(
            masks.merge([stored[t], *(track[t] for track in tracks)])
        )  # as large where one holds the other
        if area != both or (union_area != both and not part):
            other.append(t)
    if other:
        t = other[0]
        areas = f"{masks.area(stored[t])} pixels stored, {ground_truth.area(tracks, t)} annotated"
        what = f"{len(other)} of {len(some)} frames looked at differ from the union of the masks, frame id {t}: {areas}"
        yield Finding("warning", "foreground", f"{path}: {video}", what, "R depends on it; fetch both files again")
