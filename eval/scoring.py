"""Score every expression of a video in one pass over its frames, and many videos in a pool of processes.

Frame by frame, each distinct target is decoded once for all expressions that share it, and a video of any length takes
the memory of a few frames.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eval import metrics, predictions
from eval.robustness import accuracy, robustness
from veason import masks
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.types import Rle, Size, VideoSample

COMPILE_FROM = 10_000
"""Predicted frames a worker must have to score before loading the compiled dilation pays."""

Track = Sequence[Sequence[Rle | None]]
"""Objects x T frames."""


@dataclass(frozen=True)
class Score:
    """Means over the frames of one expression, unrounded, in 0 … 1."""

    j: float
    f: float
    a: float
    r: float
    values: tuple[int, ...]
    """Nonzero grey values found in the predicted masks, ascending."""


Outcome = Score | str
"""A score, or why there is none."""


@dataclass(frozen=True)
class Scorer:
    """How a video is scored. Pickled once for each worker; the data set opens its files there."""

    dataset: Dataset
    predictions: Path
    """Folder of ``<video>/<exp_id>/<frame>.png``."""
    binary: bool
    """Map masks to {0, 1} before A and R."""

    def score(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        """Outcome by sample key, for samples of one video."""
        outcomes: dict[str, Outcome] = {}
        tracks: dict[tuple[int | str, ...], Track] = {}
        try:
            foreground = self.dataset.foreground(samples[0].video)
        except DataError as error:
            return {sample.key: str(error) for sample in samples}
        for sample in samples:
            try:
                tracks.setdefault(sample.anno_ids, self.dataset.object_rles(sample))
            except DataError as error:
                outcomes[sample.key] = str(error)
        frames = {sample.key: _Frames() for sample in samples}
        for t in range(len(samples[0])):
            alive = [sample for sample in samples if sample.key not in outcomes]
            targets = {ids: self._target(tracks[ids], t, alive[0].size) for ids in {s.anno_ids for s in alive}}
            for sample in alive:
                try:
                    pred = self._prediction(sample, t, frames[sample.key].values)
                except DataError as error:
                    outcomes[sample.key] = str(error)
                    continue
                frames[sample.key].add(pred, targets[sample.anno_ids], masks.area(foreground[t]))
        return {s.key: outcomes[s.key] if s.key in outcomes else frames[s.key].mean() for s in samples}

    def _target(self, track: Track, t: int, size: Size) -> np.ndarray:
        """Number of objects over each pixel of frame t: (H, W) uint8, row-major."""
        count = np.zeros(size, dtype=np.uint8, order="F")  # as RLEs decode
        for rles in track:
            if rles[t] is not None:
                count += masks.decode(rles[t], size)
        count = cv2.transpose(count.T)  # row-major, ten times as fast as NumPy
        return _binary(count) if self.binary else count

    def _prediction(self, sample: VideoSample, t: int, values: set[int]) -> np.ndarray:
        """The predicted mask of frame t: (H, W) uint8, row-major; its grey values are added to `values`."""
        mask = predictions.read_mask(predictions.mask_path(self.predictions, sample, t), sample.size, sample)
        values |= predictions.values(mask)
        return _binary(mask) if self.binary else mask


@dataclass
class _Frames:
    """The frame scores of one expression so far."""

    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    """J, F, A, R of each frame."""
    values: set[int] = field(default_factory=set)

    def add(self, pred: np.ndarray, gt: np.ndarray, foreground: int) -> None:
        j, f = metrics.j_and_f(pred, gt)
        self.rows.append((j, f, accuracy(pred, gt), robustness(pred, gt, foreground)))

    def mean(self) -> Score:
        columns = np.ascontiguousarray(np.array(self.rows).T)  # (4, T): each mean sums one contiguous row, pairwise
        return Score(*(float(column.mean()) for column in columns), values=tuple(sorted(self.values)))


def _binary(mask: np.ndarray) -> np.ndarray:
    return (mask != 0).view(np.uint8)


def score_videos(
    scorer: Scorer, videos: Mapping[str, Sequence[VideoSample]], *, workers: int
) -> Iterator[tuple[str, dict[str, Outcome]]]:
    """(video, outcomes of its samples) as they are done; the longest videos start first."""
    order = sorted(videos, key=lambda video: -_pixels(videos[video]))
    frames = sum(len(samples) * len(samples[0]) for samples in videos.values())
    compiled = frames >= COMPILE_FROM * max(1, workers)
    bar = tqdm(total=len(order), unit="video", desc="scoring", disable=not sys.stderr.isatty())
    with bar:
        metrics.use_compiled(compiled)
        done = _in_pool(scorer, videos, order, workers, compiled) if workers > 1 else _in_turn(scorer, videos, order)
        for video, outcomes in done:
            bar.update()
            yield video, outcomes


def _pixels(samples: Sequence[VideoSample]) -> int:
    height, width = samples[0].size
    return len(samples) * len(samples[0]) * height * width


def _in_turn(
    scorer: Scorer, videos: Mapping[str, Sequence[VideoSample]], order: Sequence[str]
) -> Iterator[tuple[str, dict[str, Outcome]]]:
    for video in order:
        yield video, _score_named(scorer, videos[video])


def _in_pool(
    scorer: Scorer, videos: Mapping[str, Sequence[VideoSample]], order: Sequence[str], workers: int, compiled: bool
) -> Iterator[tuple[str, dict[str, Outcome]]]:
    context = multiprocessing.get_context("spawn")
    start = {"initializer": _start_worker, "initargs": (scorer, compiled)}
    pool = ProcessPoolExecutor(min(workers, len(order)) or 1, context, **start)
    try:
        futures = {pool.submit(_score_in_worker, videos[video]): video for video in order}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError("an evaluation worker died, perhaps out of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _score_named(scorer: Scorer, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
    try:
        return scorer.score(samples)
    except Exception as error:
        error.add_note(f"while scoring the video {samples[0].video}")
        raise


_scorer: Scorer | None = None


def _start_worker(scorer: Scorer, compiled: bool) -> None:
    global _scorer
    metrics.use_compiled(compiled)
    cv2.setNumThreads(0)  # one process a core
    _scorer = scorer


def _score_in_worker(samples: Sequence[VideoSample]) -> dict[str, Outcome]:
    assert _scorer is not None
    return _score_named(_scorer, samples)
