"""Reads predicted masks from one file of run-length encodings, one sample at a time.

There are two forms. ``.jsonl``: a line a sample, as ``inference.predict --masks rle`` writes it
(`veason.mask_lines`). ``.json``: ``{video: {exp_id: {"prediction_masks": [RLE | null, …]}}}``, one compressed COCO RLE
a frame, as Sa2VA writes it.
Either file may be larger than memory: opening it notes where samples lie, and each is parsed when it is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import orjson

from veason import mask_lines, masks
from veason.datasets.json_index import JsonIndex
from veason.errors import DataError
from veason.files import check_regular, foreign_content, read_head
from veason.safe_text import printable
from veason.types import VideoSample


class _Entries(Protocol):
    """The samples of a file, each parsed when it is asked for."""

    @property
    def path(self) -> Path: ...

    def __contains__(self, sample: VideoSample) -> bool: ...

    def has_video(self, sample: VideoSample) -> bool: ...

    def rles(self, sample: VideoSample) -> Sequence[object]:
        """Returns what should be an RLE or None for each frame; nothing is checked yet."""
        ...


def open_rles(path: Path, *, value: int = 255) -> RleFile:
    """Opens the predictions in the file `path`; its suffix tells the form. value: the grey value inside a mask."""
    if path.suffix in (".jsonl", ".json"):
        head = read_head(path)
        found = foreign_content(head) if head else None  # a run that has done nothing yet has an empty file
        if found is not None:
            raise DataError(f"{path}: {found}")
        if path.suffix == ".jsonl":
            return RleFile(_Lines(path), value)
        if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            raise DataError(
                f"{path}: not a JSON object of videos but {printable(repr(head[:40]))}; --pred is a .json of "
                "{video: {exp_id: {prediction_masks: [RLE | null, …]}}}"
            )
        return RleFile(_Document(path), value)
    check_regular(path)
    raise DataError(f"{path}: --pred must be a .jsonl (one line per sample), a .json (Sa2VA's format) or a folder")


class RleFile:
    """The `eval.predictions.Predictions` in a file; the samples of one video are held at a time."""

    def __init__(self, entries: _Entries, value: int) -> None:
        self.root = entries.path
        self._entries, self._value = entries, value
        self._video = ""
        self._held: dict[str, Sequence[object]] = {}

    def absence(self, sample: VideoSample) -> str | None:
        return None if sample in self._entries else f"no masks of {sample.key} in {self.root.name}"

    def has_video(self, sample: VideoSample) -> bool:
        return self._entries.has_video(sample)

    def version(self, sample: VideoSample) -> str:
        """Returns a hash of the sample's RLEs."""
        return hashlib.sha256(orjson.dumps(self._rles(sample))).hexdigest()[:16]

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        where = f"{self.root}: {sample.key}, frame {sample.frames[frame_id]}"
        rle = self._rles(sample)[frame_id]
        if rle is None:
            return np.zeros(sample.size, np.uint8)
        try:
            mask = masks.decode(masks.check(rle, sample.size, where), sample.size)
        except ValueError as error:
            raise DataError(f"{error}; write the masks of the sample again") from error
        return cv2.transpose(mask.T.view(np.uint8)) * np.uint8(self._value)  # row-major, as PNGs are read

    def _rles(self, sample: VideoSample) -> Sequence[object]:
        if sample.video != self._video:
            self._video, self._held = sample.video, {}
        if sample.exp_id not in self._held:
            if sample not in self._entries:
                raise DataError(f"{self.root}: no masks of {sample.key}; predict it")
            rles = self._entries.rles(sample)
            if len(rles) != len(sample):
                raise DataError(
                    f"{self.root}: {sample.key} has {len(rles)} masks for {len(sample)} frames; every frame needs its "
                    "entry, null where the mask is empty"
                )
            self._held[sample.exp_id] = rles
        return self._held[sample.exp_id]


class _Lines:
    """The form ``masks.jsonl``; holds where the last line of each sample lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: dict[tuple[str, str], tuple[int, int]] = {}
        start = 0
        with open(path, "rb") as file:
            for number, data in enumerate(file, start=1):
                if not data.endswith(b"\n"):
                    break  # half a line is what a killed writer leaves
                line = self._parse(data, f"{path}:{number}")
                self._spans[line.video, line.exp_id] = (start, len(data))
                start += len(data)
        self._videos = {video for video, _ in self._spans}

    def __contains__(self, sample: VideoSample) -> bool:
        return (sample.video, sample.exp_id) in self._spans

    def has_video(self, sample: VideoSample) -> bool:
        return sample.video in self._videos

    def rles(self, sample: VideoSample) -> Sequence[object]:
        start, length = self._spans[sample.video, sample.exp_id]
        handle = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(handle, length, start)
        finally:
            os.close(handle)
        line = self._parse(data, f"{self.path}: {sample.key}")
        return [line.rle(t) for t in range(len(line.counts))]

    def _parse(self, data: bytes, where: str) -> mask_lines.MaskLine:
        try:
            return mask_lines.parse(orjson.loads(data), where)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where}: not a JSON line: {error}; write the file again") from error


class _Document:
    """The form of Sa2VA, an object of videos; one video is parsed at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._videos = JsonIndex(path)
        self._name = ""
        self._video: dict[str, object] = {}

    def __contains__(self, sample: VideoSample) -> bool:
        return sample.exp_id in self._expressions(sample.video)

    def has_video(self, sample: VideoSample) -> bool:
        return sample.video in self._videos

    def rles(self, sample: VideoSample) -> Sequence[object]:
        entry = self._expressions(sample.video)[sample.exp_id]
        rles = entry.get("prediction_masks") if isinstance(entry, dict) else None
        if not isinstance(rles, list):
            raise DataError(f"{self.path}: {sample.key} has no list prediction_masks, found {str(entry)[:80]!r}")
        return rles

    def _expressions(self, video: str) -> dict[str, object]:
        if video not in self._videos:
            return {}
        if video != self._name:
            entry = self._videos[video]
            if not isinstance(entry, dict):
                raise DataError(f"{self.path}: {video}: expected an object of expressions, found a list")
            self._name, self._video = video, entry
        return self._video
