"""Reads and writes predictions in the form of ViCaS: a JSON file a video, several tracks a referral, all scored frames.

``<id:06d>.json`` holds ``{"video_id", "pred_caption", "pred_lgvis_masks": [per referral: [{"filename", "mask_rles":
[RLE per track]}]]}``. Every scored frame has to be there, with the same number of tracks in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from eval.predictions import Predictions, open_predictions
from eval.vicas_map import MAX_TRACKS
from veason import atomic, masks
from veason.datasets.vicas import ViCaS
from veason.errors import DataError
from veason.files import check_regular, foreign_content
from veason.types import Rle, VideoSample

_NAME = re.compile(r"\d{6}\.json")

Tracks = tuple[tuple[Rle | None, ...], ...]
"""P tracks x K scored frames."""


class TrackPredictions(Predictions, Protocol):
    """Predictions of tracks as well as of their union."""

    @property
    def form(self) -> str:
        """The form of the files, in words."""
        ...

    def tracks(self, sample: VideoSample) -> Tracks:
        """Returns the predicted tracks of a referral in the scored frames."""
        ...


def open_tracks(pred: Path, dataset: ViCaS) -> TrackPredictions:
    """Opens a folder with a JSON file a video, or whatever `open_predictions` opens: one track then, the union."""
    if pred.is_dir() and any(_NAME.fullmatch(path.name) for path in pred.iterdir()):
        return TrackFiles(pred, dataset)
    return Unions(open_predictions(pred), dataset)


class Unions:
    """Binary masks as one track a referral; a mask that is empty in every scored frame is no track."""

    form = "unions, one track a referral"

    def __init__(self, predicted: Predictions, dataset: ViCaS) -> None:
        self.root, self.absence, self.read = predicted.root, predicted.absence, predicted.read
        self.has_video = predicted.has_video
        self._dataset = dataset

    def tracks(self, sample: VideoSample) -> Tracks:
        track = tuple(masks.encode(self.read(sample, t)) for t in self._dataset.gt_frames(sample))
        return (track,) if any(masks.area(rle) for rle in track) else ()


class TrackFiles:
    """The ``<id:06d>.json`` of a folder. The video last asked for is held, and each of its masks is checked once."""

    form = "a JSON file a video"

    def __init__(self, root: Path, dataset: ViCaS) -> None:
        self.root, self._dataset = root, dataset
        self._video = ""
        self._referrals: list[Any] = []
        self._places: dict[int, int] = {}
        self._tracks: dict[str, Tracks] = {}

    def absence(self, sample: VideoSample) -> str | None:
        if not self.has_video(sample):
            return f"no file {self._path(sample).name} of the video"
        if int(sample.exp_id) >= len(self._load(sample)):
            return f"pred_lgvis_masks has {len(self._load(sample))} entries, this referral is number {sample.exp_id}"
        return None

    def has_video(self, sample: VideoSample) -> bool:
        return self._path(sample).exists()

    def read(self, sample: VideoSample, frame_id: int) -> np.ndarray:
        """Draws the union of the tracks, column-major, as RLEs decode: J and F do not depend on the direction."""
        tracks = self.tracks(sample)
        place = self._places[frame_id]
        union = masks.union([track[place] for track in tracks], sample.size)
        return union.view(np.uint8) * np.uint8(255)

    def tracks(self, sample: VideoSample) -> Tracks:
        referrals = self._load(sample)
        if sample.exp_id not in self._tracks:
            self._tracks[sample.exp_id] = self._check(sample, referrals[int(sample.exp_id)])
        return self._tracks[sample.exp_id]

    def _check(self, sample: VideoSample, referral: object) -> Tracks:
        where = f"{self._path(sample)}: referral {sample.exp_id}"
        frames = _frames(referral, where)
        wanted = [sample.frames[t] for t in self._dataset.gt_frames(sample)]
        lacking = [name for name in wanted if f"{name}.jpg" not in frames]
        if lacking:
            raise DataError(
                f"{where}: {len(lacking)} of {len(wanted)} scored frames are missing, first {lacking[0]}.jpg"
            )
        found = [frames[f"{name}.jpg"] for name in wanted]
        if len({len(rles) for rles in found}) > 1:
            raise DataError(f"{where}: the number of tracks changes from frame to frame; write an empty mask instead")
        if len(found[0]) > MAX_TRACKS:
            raise DataError(f"{where}: {len(found[0])} tracks; the benchmark takes {MAX_TRACKS} at most")
        try:
            flat = masks.check_track([rle for rles in found for rle in rles], sample.size, where)
            if None in flat:
                raise ValueError("a mask is null")
        except ValueError:
            for name, rles in zip(wanted, found, strict=True):  # one by one, to name the first that is wrong
                for rle in rles:
                    try:
                        masks.check(rle, sample.size, f"{where}, frame {name}")
                    except ValueError as error:
                        raise DataError(f"{error}; write {sample.video}.json again") from error
            raise
        count = len(found[0])
        return tuple(flat[i::count] for i in range(count))

    def _path(self, sample: VideoSample) -> Path:
        return self.root / f"{sample.video}.json"

    def _load(self, sample: VideoSample) -> list[Any]:
        if self._video != sample.video:
            self._referrals, self._tracks = _referrals(self._path(sample), sample.video), {}
            self._places = {t: place for place, t in enumerate(self._dataset.gt_frames(sample))}
            self._video = sample.video
        return self._referrals


def _referrals(path: Path, video: str) -> list[Any]:
    check_regular(path)
    data = path.read_bytes()
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        found = foreign_content(data[:512])
        why = f"not JSON but {found}" if found else f"not valid JSON: {error}; write the file again"
        raise DataError(f"{path}: {why}") from error
    if not isinstance(content, dict) or content.get("video_id") != int(video):
        raise DataError(f"{path}: expected an object with video_id {int(video)}; write the file again")
    entries = content.get("pred_lgvis_masks")
    if not isinstance(entries, list):
        raise DataError(f"{path}: pred_lgvis_masks must be a list, found {type(entries).__name__}")
    return entries


def _frames(entry: object, where: str) -> dict[str, list[Any]]:
    """Returns what should be the tracks' RLEs by file name."""
    found: dict[str, list[Any]] = {}
    for frame in entry if isinstance(entry, list) else [None]:
        name, rles = (frame.get("filename"), frame.get("mask_rles")) if isinstance(frame, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(rles, list):
            raise DataError(
                f"{where}: expected a list of objects with filename and mask_rles, found {str(frame)[:80]!r}"
            )
        if name in found:
            raise DataError(f"{where}: the frame {name[:80]!r} stands there twice; keep one of the two entries")
        found[name] = rles
    return found


def write_video(samples: Sequence[VideoSample], predicted: TrackPredictions, dataset: ViCaS, out: Path) -> None:
    """Writes the JSON file of one video with its scored frames; `samples` are all its referrals in order.

    A referral without a prediction gets no track.
    """
    names = [f"{samples[0].frames[t]}.jpg" for t in dataset.gt_frames(samples[0])]
    referrals = []
    for sample in samples:
        tracks = predicted.tracks(sample) if predicted.absence(sample) is None else ()
        empty = masks.encode(np.zeros(sample.size, bool))
        referrals.append(
            [{"filename": name, "mask_rles": [track[k] or empty for track in tracks]} for k, name in enumerate(names)]
        )
    content = {"video_id": int(samples[0].video), "pred_caption": "", "pred_lgvis_masks": referrals}
    atomic.write_bytes(out / f"{samples[0].video}.json", orjson.dumps(content))
