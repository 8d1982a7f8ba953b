"""Makes the cards of a report: finds an expression's frames, masks, boxes and scores, video by video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from eval.predictions import Predictions, open_predictions
from inference.report_page import Card
from inference.report_pictures import DRAWING, Album, Picture, draw, fit, sample_frames
from inference.report_run import Outcome, Run
from inference.report_scores import Scores
from veason import masks
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.types import Box, Rle, VideoSample

_T = TypeVar("_T")
Track = tuple[tuple[Rle | None, ...], ...]
"""Objects x T frames."""


class CardMaker:
    """Makes cards one at a time; holds the scores and the names of what is already on the page, no pixels."""

    def __init__(self, run: Run, dataset: Dataset, scores: Scores | None, *, frames_per_card: int) -> None:
        self._run, self._dataset, self._n = run, dataset, frames_per_card
        self._masks = open_predictions(run.path)
        self._samples = {sample.key: sample for sample in dataset}
        self._scored = scores is not None
        self._rows = scores.rows if scores else {}
        lost = [*scores.missing, *scores.errors] if scores else []
        self._lost = {problem.sample: problem.reason for problem in lost}
        self._albums: dict[str, Album] = {}

    def make(self, number: int, outcome: Outcome) -> tuple[Card, str]:
        """(the card of an outcome, CSS rules of the frames it is the first to show)."""
        sample = find_sample(self._samples, outcome, run=self._run.path, dataset=self._dataset)
        album = self._albums.setdefault(sample.video, Album(sample, len(self._albums)))
        notes: list[str] = []
        if sample.key in self._lost:
            notes.append(f"Not scored as predicted: {self._lost[sample.key]}")
        track = _try(lambda: self._dataset.object_rles(sample), notes) if self._scored else None
        shown = sample_frames(len(sample), self._n, keyframe=outcome.keyframe)
        pictures = tuple(picture(self._masks, sample, t, album=album, track=track, notes=notes) for t in shown)
        card = Card(
            number=number,
            sample=sample,
            outcome=outcome,
            row=self._rows.get(sample.key),
            keyframe=_plain(sample, outcome, album),
            true_boxes=true_boxes(track, outcome.keyframe),
            frames=pictures,
            notes=tuple(dict.fromkeys(notes)),
        )
        return card, album.new_rules(shown)


def find_sample(samples: Mapping[str, VideoSample], outcome: Outcome, *, run: Path, dataset: Dataset) -> VideoSample:
    """The sample that a prediction of `run` is about, of `samples` by key; a DataError if it fits none."""
    sample = samples.get(outcome.key)
    if sample is None:
        raise DataError(
            f"{run}: {outcome.key} is not in the {dataset.name} split {dataset.split!r} of "
            f"{dataset.files['meta']}; give the --gt and --split that were predicted"
        )
    if sample.expression != outcome.expression:
        raise DataError(
            f"{run}: {outcome.key} was asked {outcome.expression[:80]!r}, but it is "
            f"{sample.expression[:80]!r} in {dataset.files['meta']}; the data set is another one"
        )
    outside = [t for t in (outcome.keyframe, *outcome.frame_ids) if t is not None and not 0 <= t < len(sample)]
    if outside:
        raise DataError(f"{run}: {outcome.key} has frame id {outside[0]} in {len(sample)} frames")
    return sample


def picture(
    predictions: Predictions, sample: VideoSample, frame_id: int, *, album: Album, track: Track | None, notes: list[str]
) -> Picture:
    """A frame with its predicted mask and its true one drawn; what cannot be read is added to `notes`."""
    predicted = _try(lambda: predictions.read(sample, frame_id) != 0, notes)
    true = None if track is None else masks.union([rles[frame_id] for rles in track], sample.size)
    return draw(frame_id, album.css_class(frame_id), sample.size, prediction=predicted, truth=true)


def _try(read: Callable[[], _T], notes: list[str]) -> _T | None:
    """What `read` gives; None, and a note for the card, where the file is missing or broken."""
    try:
        return read()
    except DataError as error:
        notes.append(str(error))
        return None


def _plain(sample: VideoSample, outcome: Outcome, album: Album) -> Picture | None:
    """The keyframe without masks."""
    if outcome.keyframe is None:
        return None
    return Picture(outcome.keyframe, album.css_class(outcome.keyframe), fit(sample.size, DRAWING))


def true_boxes(track: Track | None, keyframe: int | None) -> tuple[Box, ...]:
    """The box of each true object that is on the keyframe."""
    if track is None or keyframe is None:
        return ()
    boxes = (masks.box(rles[keyframe]) for rles in track)
    return tuple(box for box in boxes if box is not None)
