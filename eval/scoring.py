"""Scores every expression of a video in one pass over its frames, and many videos in a pool of processes.

In each frame, each distinct target is decoded once for all expressions that share it, and a video of any length takes
the memory of a few frames.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import cv2
import numpy as np

from eval import metrics, predictions
from eval.metrics import accuracy, robustness
from eval.predictions import Predictions
from eval.results import Missing, Problem
from eval.survey import Published, check_not_all_alike, log_warnings, survey
from veason import mask_png, masks
from veason.datasets.base import Dataset, Tolerance
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample

COMPILE_FROM = 4_000
"""Predicted frames a worker must have to score before loading compiled code pays."""

Measure = Literal["visa", "binary", "jf"]
"""The measures of a frame: J, F, A and R on stored grey values or on {0, 1}; or J and F alone, for which every nonzero
value is inside."""

Track = Sequence[Sequence[Rle | None]]
"""Objects x T frames."""


T = TypeVar("T")


class VideoScorer(Protocol[T]):
    """The way in which a video is scored. Pickled once for each worker."""

    def frames(self, sample: VideoSample) -> int:
        """Returns the number of a sample's masks whose pixels are looked at."""
        ...

    def score(self, samples: Sequence[VideoSample]) -> dict[str, T]:
        """Returns outcomes by name, for samples of one video."""
        ...


@dataclass(frozen=True)
class Score:
    """Means over the frames of one expression, unrounded, in 0 … 1."""

    j: float
    f: float
    a: float = math.nan
    """NaN where it is not measured, as R."""
    r: float = math.nan
    values: tuple[int, ...] = ()
    """Nonzero grey values found in the predicted masks, ascending."""
    extra: object = None
    """Further measures of a benchmark."""


Outcome = Score | str
"""A score, or the reason why there is none."""


@dataclass(frozen=True)
class Scorer:
    """Scores the expressions of a video. Pickled once for each worker; the data set opens its files there."""

    dataset: Dataset
    predictions: Predictions
    measure: Measure

    def frames(self, sample: VideoSample) -> int:
        """Returns the number of a sample's masks whose pixels are looked at."""
        return len(self.dataset.gt_frames(sample))

    def score(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        """Returns the outcome by sample key, for samples of one video."""
        outcomes: dict[str, Outcome] = {}
        tracks: dict[tuple[int | str, ...], Track] = {}
        """By the annotation ids of a target: expressions about the same objects share them."""
        gt_frames: dict[str, frozenset[int]] = {}
        try:
            foreground = None if self.measure == "jf" else self.dataset.foreground(samples[0].video)
        except DataError as error:
            return {sample.key: str(error) for sample in samples}
        for sample in samples:
            try:
                if sample.anno_ids not in tracks:
                    tracks[sample.anno_ids] = self.dataset.object_rles(sample)
                gt_frames[sample.key] = frozenset(self.dataset.gt_frames(sample))
            except DataError as error:
                outcomes[sample.key] = str(error)
        frames = {sample.key: _FrameScores() for sample in samples}
        for t in range(len(samples[0])):
            alive = [s for s in samples if s.key not in outcomes and t in gt_frames[s.key]]
            targets = {ids: self._target(tracks[ids], t, alive[0].size) for ids in {s.anno_ids for s in alive}}
            pixels = masks.area(foreground[t]) if foreground else None
            for sample in alive:
                try:
                    pred = self.predictions.read(sample, t)
                except DataError as error:
                    outcomes[sample.key] = str(error)
                    continue
                frames[sample.key].add(pred, targets[sample.anno_ids], pixels, binary=self.measure == "binary")
        return {s.key: outcomes[s.key] if s.key in outcomes else frames[s.key].mean() for s in samples}

    def _target(self, track: Track, t: int, size: Size) -> np.ndarray:
        """Draws the target of frame t: (H, W) uint8, row-major; the number of objects over each pixel, or 0 and 1."""
        rles = [one[t] for one in track]
        if self.measure == "visa":
            present = [masks.decode(rle, size).view(np.uint8) for rle in rles if rle is not None]
            target = functools.reduce(np.add, present) if present else np.zeros(size, np.uint8, order="F")
        else:
            target = masks.union(rles, size).view(np.uint8)
        return cv2.transpose(target.T)  # row-major, ten times as fast as NumPy


@dataclass
class _FrameScores:
    """The frame scores of one expression so far."""

    rows: list[tuple[float, ...]] = field(default_factory=list)
    """J and F, or J, F, A and R, of each frame."""
    values: set[int] = field(default_factory=set)

    def add(self, pred: np.ndarray, gt: np.ndarray, foreground: int | None, *, binary: bool) -> None:
        """Scores one frame of row-major uint8 (H, W) masks.

        foreground: its annotated pixels, None for J and F alone. binary: A and R are computed on {0, 1}.
        """
        *row, part = metrics.j_f_and_part(pred, gt)
        pixels, pred, gt = pred.size, pred[part], gt[part]
        self.values |= predictions.values(pred)
        if foreground is not None:
            pred = (pred != 0).view(np.uint8) if binary else pred
            row += (accuracy(pred, gt, pixels), robustness(pred, gt, foreground))
        self.rows.append(tuple(row))

    def mean(self) -> Score:
        columns = np.ascontiguousarray(np.array(self.rows).T)  # (M, T): each mean sums one contiguous row, pairwise
        j, f, *others = (float(column.mean()) for column in columns)
        a, r = others or (math.nan, math.nan)
        return Score(j, f, a, r, values=tuple(sorted(self.values)))


@dataclass(frozen=True)
class ScoredExpression:
    """One expression with its score."""

    sample: VideoSample
    score: Score
    problem: str | None = None
    """The missing part of the prediction; the score is zero then."""


@dataclass(frozen=True)
class ScoredExpressions:
    """The expressions of a data set, scored one by one."""

    scored: tuple[ScoredExpression, ...]
    """In the order of the data set; without those that are left out, and without those of `errors`."""
    missing: tuple[Problem, ...]
    """Expressions with a file missing: they are scored as zero, or left out."""
    errors: tuple[Problem, ...]
    """Expressions with a broken prediction or ground truth."""


def score_expressions(
    scorer: Scorer, *, missing: Missing, published: Published | None, workers: int
) -> ScoredExpressions:
    """Scores every expression of the scorer's data set.

    published: what the benchmark's script makes of a missing prediction, None where there is no script. Raises
    DataError as `survey` and `score_all` do; a single broken prediction is one of the errors.
    """
    dataset = scorer.dataset
    found = survey(dataset, scorer.predictions, missing=missing, published=published)
    outcomes: dict[str, Outcome] = {**found.broken}
    outcomes |= score_all(scorer, found.present, workers=workers)
    log_warnings(dataset)
    check_not_all_alike(outcomes)
    scored, errors = [], []
    for sample in dataset:
        outcome = outcomes.get(sample.key)
        if isinstance(outcome, Score):
            scored.append(ScoredExpression(sample, outcome))
        elif outcome is not None:
            errors.append(Problem(sample.key, outcome))
        elif sample.key not in found.left_out:
            scored.append(ScoredExpression(sample, Score(0.0, 0.0, 0.0, 0.0), found.absences[sample.key]))
    return ScoredExpressions(
        tuple(scored), tuple(Problem(key, reason) for key, reason in found.absences.items()), tuple(errors)
    )


def score_all(scorer: VideoScorer[T], videos: Mapping[str, Sequence[VideoSample]], *, workers: int) -> dict[str, T]:
    """Returns the outcome of every sample of `videos`, by sample key.

    More than one worker starts processes, so a script that calls this needs its ``if __name__ == "__main__"``.
    """
    if workers < 1:
        raise DataError(f"workers must be at least 1, found {workers}")
    outcomes: dict[str, T] = {}
    for _, scored in score_videos(scorer, videos, workers=workers):
        outcomes |= scored
    return outcomes


def score_videos(
    scorer: VideoScorer[T], videos: Mapping[str, Sequence[VideoSample]], *, workers: int
) -> Iterator[tuple[str, dict[str, T]]]:
    """Yields (video, outcomes of its samples) as they are done; the longest videos start first."""

    def pixels(video: str) -> int:
        sample = videos[video][0]
        return len(videos[video]) * len(sample) * sample.size[0] * sample.size[1]

    order = sorted(videos, key=pixels, reverse=True)
    frames = sum(len(samples) * scorer.frames(samples[0]) for samples in videos.values())
    start = functools.partial(_use_compiled, frames >= COMPILE_FROM * workers)
    if workers > 1:
        done = _in_pool(scorer, {video: videos[video] for video in order}, workers=workers, start=start)
    else:
        start()
        done = ((video, _score(scorer, videos[video])) for video in order)
    if sys.stderr.isatty():
        from tqdm import tqdm  # takes a third as long to load as NumPy

        done = iter(tqdm(done, total=len(order), unit="video", desc="scoring"))
    yield from done


def _in_pool(
    scorer: VideoScorer[T],
    videos: Mapping[str, Sequence[VideoSample]],
    *,
    workers: int,
    start: Callable[[], None],
) -> Iterator[tuple[str, dict[str, T]]]:
    from concurrent.futures import as_completed  # with the modules of processes, which one worker does not need

    from veason.worker_pool import WorkerPool

    tolerance = _tolerance(scorer)
    with WorkerPool(_score_in_worker, scorer, workers=min(workers, len(videos)) or 1, start=start) as pool:
        futures = {pool.submit(samples): video for video, samples in videos.items()}
        for future in as_completed(futures):
            outcomes, notes = future.result()
            if tolerance is not None:
                for note in notes:
                    tolerance.note(*note)
            yield futures[future], outcomes


def _tolerance(scorer: VideoScorer[Any]) -> Tolerance | None:
    """Returns the place where the scorer's data set, if it has one, notes what it lets through."""
    return getattr(getattr(scorer, "dataset", None), "tolerance", None)


def _score_in_worker(
    scorer: VideoScorer[T], samples: Sequence[VideoSample]
) -> tuple[dict[str, T], list[tuple[str, str]]]:
    """Returns (outcomes, what the data set let through meanwhile), for the process that logs it."""
    tolerance = _tolerance(scorer)
    if tolerance is None:
        return _score(scorer, samples), []
    tolerance.take()  # noted when the data set was opened, where it is known
    return _score(scorer, samples), tolerance.take()


def _use_compiled(wanted: bool) -> None:
    metrics.use_compiled(wanted)
    mask_png.use_compiled(wanted)


def _score(scorer: VideoScorer[T], samples: Sequence[VideoSample]) -> dict[str, T]:
    """Scores a video; the exception of a defect names it."""
    try:
        return scorer.score(samples)
    except Exception as error:
        error.add_note(f"while scoring the video {samples[0].video}")
        raise
