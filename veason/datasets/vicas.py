"""Reads the language-guided segmentation of ViCaS: prompts about one or several tracks, in two published versions.

Layout below the root: ``annotations/<version>/<id:06d>.json``, ``video_frames/<id:06d>/<00000…>.jpg`` (30 a second),
``splits/<version>/<part>.json`` (a list of ids). Versions differ in videos and masks, so a split names its own:
``v1.0/test``. About one frame a second was annotated by people and is scored (`ViCaS.gt_frames`); SAM2 filled in the
rest, which serves training and the oracle.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from veason import masks
from veason.datasets import base, fields
from veason.datasets.sample_list import SampleList
from veason.errors import DataError
from veason.files import check_regular, foreign_content
from veason.types import Rle, VideoSample

PARTS = ("train", "val", "test")
_SPLIT = re.compile(r"(v\d{1,3}\.\d{1,3})/(train|val|test)")
_FRAME = re.compile(r"(\d{1,9})\.jpg")
_KEPT = 256 << 20
"""Bytes of people's masks that a data set opened for scoring keeps, to parse their files once only."""


class ViCaS(SampleList):
    """One split of one version of ViCaS: a sample for each entry of ``object_referrals``, its place there the exp_id.

    Opening parses every annotation file once: videos in ascending order of their ids. No mask is kept, but those by
    people where it is opened for scoring, as JSON and up to `_KEPT` bytes; copies for other processes leave them out.
    """

    name = "vicas"
    default_split = ""  # none: the version has to be named

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        min_frames: int = 1,
        scoring: bool = False,
    ) -> None:
        """split: ``<version>/<part>``. image_root, meta: folder of the videos and list of ids, if elsewhere.

        min_frames, scoring: see `SampleList`.
        """
        self.root = Path(root)
        named = _SPLIT.fullmatch(split)
        if named is None:
            raise DataError(
                f"the ViCaS split {split!r} names no version: its versions are different benchmarks, so say "
                f"v0.1/PART or v1.0/PART, PART one of {', '.join(PARTS)}"
            )
        self.version, part = named[1], named[2]
        self.image_root = Path(image_root) if image_root else self.root / "video_frames"
        files = {"meta": Path(meta) if meta else self.root / "splits" / self.version / f"{part}.json"}
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds annotations and splits")
        self._gt_frames: dict[str, tuple[int, ...]] = {}
        self._people: dict[str, bytes] = {}
        self._room = _KEPT if scoring else 0
        samples = (sample for number in read_ids(files["meta"]) for sample in self._read_video(number))
        super().__init__(samples, split=split, files=files, min_frames=min_frames, scoring=scoring)
        self._last: tuple[str, dict[Any, tuple[Rle | None, ...]]] = ("", {})  # one value: threads share the reader

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_people": {}}

    def annotation_file(self, video: str) -> Path:
        return self.root / "annotations" / self.version / f"{video}.json"

    def gt_frames(self, sample: VideoSample) -> tuple[int, ...]:
        """Ids of the frames that people annotated: the only ones that are scored."""
        return self._gt_frames[sample.video]

    def truth_files(self, sample: VideoSample) -> tuple[Path, ...]:
        return (self.annotation_file(sample.video),)

    def track(self, sample: VideoSample, anno_id: int | str) -> tuple[Rle | None, ...]:
        """The masks of a track, those of people and, unless opened for scoring, of SAM2.

        None: not in the frame, or the frame is not annotated.
        """
        last = self._last
        if last[0] != sample.video:
            path, kept = self.annotation_file(sample.video), self._people.get(sample.video)
            content = _load(path, int(sample.video)) if kept is None else {"segmentations": orjson.loads(kept)}
            if self.tolerance is not None:  # opening has checked the others' names
                content["segmentations"] = [e for e in content["segmentations"] if e.get("is_gt") is True]
            last = self._last = (sample.video, _read_tracks(content, path, sample))
        return last[1].get(anno_id) or (None,) * len(sample)

    def _read_video(self, number: int) -> list[VideoSample]:
        video = f"{number:06d}"
        path, folder = self.annotation_file(video), self.image_root / video
        content = _load(path, number)
        sides = content.get("image_size")
        if not isinstance(sides, list) or len(sides) != 2:
            raise DataError(f"{path}: image_size must be [height, width], found {str(sides)[:80]}")
        size = fields.size({"height": sides[0], "width": sides[1]}, f"{path}: image_size")
        annotated = {name: entry.get("is_gt") is True for name, entry in _segmentations(content, path)}
        pictures = (_FRAME.fullmatch(file.name) for file in folder.iterdir()) if folder.is_dir() else ()
        names = _in_order(found[1] for found in pictures if found) or _in_order(annotated)  # scoring needs no picture
        unknown = set(annotated) - set(names)
        if unknown:
            raise DataError(f"{path}: the frame {min(unknown)}.jpg is not in {folder}; fetch the frames again")
        self._gt_frames[video] = tuple(t for t, name in enumerate(names) if annotated.get(name))
        if not self._gt_frames[video]:
            raise DataError(f"{path}: no entry of segmentations has is_gt, so nothing can be scored; fetch it again")
        if self._room > 0:
            people = [entry for entry in content["segmentations"] if entry.get("is_gt") is True]
            with contextlib.suppress(orjson.JSONEncodeError):  # nested too deeply: no masks, as scoring will say
                packed = orjson.dumps(people)
                if len(packed) <= self._room:
                    self._people[video] = packed
                    self._room -= len(packed)
        referrals = content.get("object_referrals")
        if not isinstance(referrals, list):
            raise DataError(f"{path}: object_referrals must be a list, found {type(referrals).__name__}")
        places = [f"{path}: object_referrals[{i}]" for i in range(len(referrals))]
        return [
            VideoSample(
                dataset=self.name,
                video=video,
                exp_id=str(i),
                expression=fields.text(base.check_object(referral, where), where, "prompt", self.tolerance),
                frames=names,
                frame_dir=folder,
                size=size,
                obj_ids=_track_ids(referral, where),
                anno_ids=_track_ids(referral, where),
            )
            for i, (referral, where) in enumerate(zip(referrals, places, strict=True))
        ]


def read_ids(path: Path) -> list[int]:
    """The ids of a split's videos, ascending."""
    ids = base.load_json(path)
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1_000_000 for i in ids):
        raise DataError(f"{path}: expected a list of video ids, whole numbers below a million")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: a video id appears twice; keep one of the two")
    return sorted(ids)


def _load(path: Path, number: int) -> dict[str, Any]:
    check_regular(path, hint="the split names it, so fetch the annotations again")
    data = path.read_bytes()
    collecting = gc.isenabled()
    gc.disable()  # thousands of new objects and no garbage: each collection meanwhile would be in vain
    try:
        content = orjson.loads(data)  # megabytes each, thousands of them
    except orjson.JSONDecodeError as error:
        found = foreign_content(data[:512])
        raise DataError(f"{path}: not JSON but {found}" if found else f"{path}: not valid JSON: {error}") from error
    finally:
        if collecting:
            gc.enable()
    content = base.check_object(content, str(path))
    if content.get("video_id") != number:
        raise DataError(f"{path}: video_id is {str(content.get('video_id'))[:80]}, the name says {number}")
    return content


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Frame names, which are numbers, in the order of the numbers: 100000 follows 99999."""
    return tuple(sorted(names, key=lambda name: (int(name), name)))


def _segmentations(content: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(frame name, entry) of each annotated frame, each name once."""
    seen: set[str] = set()
    entries = content.get("segmentations")
    for place, entry in enumerate(entries if isinstance(entries, list) else ()):
        filename = entry.get("filename") if isinstance(entry, dict) else None
        found = _FRAME.fullmatch(filename) if isinstance(filename, str) else None
        if found is None:
            where = f"{path}: segmentations[{place}]"  # made only here: there are hundreds of entries a video
            base.check_object(entry, where)
            raise DataError(f"{where}: filename must be a number and .jpg, found {str(filename)[:80]!r}")
        name = found[1]
        if name in seen:
            where = f"{path}: segmentations[{place}]"
            raise DataError(f"{where}: the frame {filename} is annotated twice; keep one of the two entries")
        seen.add(name)
        yield name, entry
    if not isinstance(entries, list):
        raise DataError(f"{path}: segmentations must be a list, found {type(entries).__name__}")


def _track_ids(entry: dict[str, Any], where: str) -> tuple[int, ...]:
    ids = entry.get("track_ids")
    if not isinstance(ids, list) or not all(type(i) is int for i in ids) or len(set(ids)) != len(ids):
        raise DataError(f"{where}: track_ids must be a list of different whole numbers, found {str(ids)[:80]}")
    return tuple(ids)


def _read_tracks(content: dict[str, Any], path: Path, sample: VideoSample) -> dict[int, tuple[Rle | None, ...]]:
    """Every track of a video in the frames that `content` has, by id."""
    places: list[tuple[int, str]] = []
    rles: list[object] = []
    for name, entry in _segmentations(content, path):
        ids, here = _track_ids(entry, f"{path}: {name}.jpg"), entry.get("mask_rles")
        if not isinstance(here, list) or len(here) != len(ids):
            raise DataError(f"{path}: {name}.jpg: mask_rles and track_ids are parallel lists; fetch the file again")
        places += [(track_id, name) for track_id in ids]
        rles += here
    checked: list[Rle] = []
    with contextlib.suppress(ValueError):  # all at once; one by one below, only to name the first that is wrong
        checked = [rle for rle in masks.check_track(rles, sample.size, str(path)) if rle is not None]
    if len(checked) != len(rles):
        try:
            checked = [
                masks.check(rle, sample.size, f"{path}: {name}.jpg, track {track_id}")
                for rle, (track_id, name) in zip(rles, places, strict=True)
            ]
        except ValueError as error:
            raise DataError(str(error)) from error
    found: dict[int, list[Rle | None]] = {}
    frame_ids = {name: t for t, name in enumerate(sample.frames)}
    for (track_id, name), rle, area in zip(places, checked, masks.areas(checked).tolist(), strict=True):
        if area and name in frame_ids:
            found.setdefault(track_id, [None] * len(sample))[frame_ids[name]] = rle
    return {track_id: tuple(track) for track_id, track in found.items()}
