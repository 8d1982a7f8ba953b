"""ReVOS: expressions that refer (type 0), need reasoning (1), or have no target in the video (2).

Layout below the root: ``JPEGImages/<video>/<frame>.jpg``, ``meta_expressions_{train,valid}_.json`` (the trailing
underscore is the data set's own), ``mask_dict.json`` (both splits), ``mask_dict_foreground.json``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from veason import masks
from veason.datasets import base
from veason.datasets.json_index import JsonIndex
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample


class ReVOS:
    """One split of ReVOS. Opening reads the expressions; masks are read per annotation, when asked for."""

    name = "revos"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_root: str | Path | None = None,
        meta: str | Path | None = None,
        masks: str | Path | None = None,
    ) -> None:
        """image_root, meta, masks: where frames, expressions and masks are, if not at their places below `root`."""
        self.root, self.split = Path(root), split
        self.image_root = Path(image_root) if image_root else self.root / "JPEGImages"
        self.files = {
            "meta": Path(meta) if meta else self.root / f"meta_expressions_{split}_.json",
            "masks": Path(masks) if masks else self.root / "mask_dict.json",
            "foreground": self.root / "mask_dict_foreground.json",
        }
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --data-root is the folder that holds mask_dict.json")
        self._samples = list(_read_samples(self.files["meta"], self.image_root))
        if not self._samples:
            raise DataError(f"{self.files['meta']}: the data set is empty: no video has an expression")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> VideoSample:
        return self._samples[index]

    def __iter__(self) -> Iterator[VideoSample]:
        return iter(self._samples)

    @cached_property
    def _masks(self) -> JsonIndex:
        return JsonIndex(self.files["masks"])

    @cached_property
    def _foreground(self) -> JsonIndex | None:
        return JsonIndex(self.files["foreground"]) if self.files["foreground"].is_file() else None

    @cached_property
    def _by_video(self) -> dict[str, list[VideoSample]]:
        videos: dict[str, list[VideoSample]] = {}
        for sample in self._samples:
            videos.setdefault(sample.video, []).append(sample)
        return videos

    def object_rles(self, sample: VideoSample) -> tuple[tuple[Rle | None, ...], ...]:
        """Ground truth of a sample, objects x T frames (see `Dataset.object_rles`)."""
        return tuple(self._annotation(anno_id, sample) for anno_id in sample.anno_ids)

    def _annotation(self, anno_id: int | str, sample: VideoSample) -> tuple[Rle | None, ...]:
        path = self.files["masks"]
        if str(anno_id) not in self._masks:
            raise DataError(f"{path}: annotation {anno_id} of {sample.key} is missing; expressions and masks disagree")
        return _check_masks(self._masks[str(anno_id)], sample, f"{path}: annotation {anno_id} of {sample.key}")

    def foreground(self, video: str) -> tuple[Rle | None, ...]:
        """Per frame the union of all annotated objects of a video; from the stored file, else from the masks."""
        samples = self._by_video[video]
        if self._foreground is not None and video in self._foreground:
            path = self.files["foreground"]
            entry = base.check_object(self._foreground[video], f"{path}: {video}")
            return _check_masks(entry.get("masks_rle"), samples[0], f"{path}: masks_rle of {video}")
        annotations = {anno_id: sample for sample in samples for anno_id in sample.anno_ids}
        tracks = [self._annotation(anno_id, sample) for anno_id, sample in annotations.items()]
        return tuple(masks.merge([track[t] for track in tracks]) for t in range(len(samples[0])))


def _check_masks(rles: object, sample: VideoSample, where: str) -> tuple[Rle | None, ...]:
    if not isinstance(rles, list):
        raise DataError(f"{where}: expected a list of masks, found {type(rles).__name__}")
    if len(rles) != len(sample):
        raise DataError(f"{where}: {len(rles)} masks for {len(sample)} frames; position in the list is the frame id")
    try:
        return tuple(
            None if rle is None else masks.check(rle, sample.size, f"{where}, frame {t}") for t, rle in enumerate(rles)
        )
    except ValueError as error:
        raise DataError(str(error)) from error


def _read_samples(meta: Path, image_root: Path) -> Iterator[VideoSample]:
    document = base.check_object(base.load_json(meta), str(meta))
    videos = base.check_object(document.get("videos"), f"{meta}: videos")
    for video, entry in videos.items():
        where = f"{meta}: video {video!r}"
        base.check_name(video, where, slashes=True)
        entry = base.check_object(entry, where)
        frames, size, folder = _read_frames(entry, where), _read_size(entry, where), image_root / video
        for exp_id, expression in base.check_object(entry.get("expressions"), f"{where}: expressions").items():
            yield VideoSample(
                dataset="revos",
                video=video,
                exp_id=base.check_name(exp_id, f"{where}: expression id"),
                frames=frames,
                frame_dir=folder,
                size=size,
                **_read_expression(expression, f"{where}: expression {exp_id!r}"),
            )


def _read_frames(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    frames = entry.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{where}: frames must be a non-empty list")
    names = tuple(base.check_name(frame, f"{where}: frame {i}") for i, frame in enumerate(frames))
    for before, after in itertools.pairwise(names):
        if not before < after:  # readers sort, evaluators do not: one order only if stored sorted
            raise DataError(f"{where}: frames are not sorted or not unique at {before!r}, {after!r}")
    return names


def _read_size(entry: dict[str, Any], where: str) -> Size:
    size = (entry.get("height"), entry.get("width"))
    if not all(type(side) is int and 0 < side <= 1 << 15 for side in size):
        raise DataError(f"{where}: height and width must be positive ints, found {size}")
    return size  # type: ignore[return-value]


def _read_expression(entry: object, where: str) -> dict[str, Any]:
    entry = base.check_object(entry, where)
    text, type_id = entry.get("exp"), entry.get("type_id")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: exp must be a non-empty text, found {text!r}")
    if type_id not in (0, 1, 2) or isinstance(type_id, bool):
        raise DataError(f"{where}: type_id must be 0, 1 or 2, found {type_id!r}")
    obj_ids, anno_ids = entry.get("obj_id"), entry.get("anno_id")
    for name, ids in (("obj_id", obj_ids), ("anno_id", anno_ids)):
        if not isinstance(ids, list) or not all(type(i) in (int, str) for i in ids):
            raise DataError(f"{where}: {name} must be a list of ids, found {str(ids)[:80]}")
    if len(obj_ids) != len(anno_ids):
        raise DataError(f"{where}: {len(obj_ids)} obj_id but {len(anno_ids)} anno_id; the two lists are parallel")
    return {"expression": text, "type_id": type_id, "obj_ids": tuple(obj_ids), "anno_ids": tuple(anno_ids)}
