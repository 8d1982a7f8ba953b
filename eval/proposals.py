"""DAVIS's unsupervised evaluation of one video: predicted objects without names, matched to the true ones by J and F.

The masks of one annotator's expressions become a map of object numbers; DAVIS then measures how well the objects of the
map match those of the ground truth, in the best assignment. Definition: the DAVIS 2017 evaluation, unsupervised task;
the maps are made as ReferFormer and VideoLISA make them for Ref-DAVIS17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from eval import metrics
from eval.predictions import Predictions
from veason import masks
from veason.datasets.refvos import RefDAVIS17
from veason.errors import DataError
from veason.types import VideoSample

MAX_PROPOSALS = 20
"""Objects a map may hold; DAVIS refuses more."""


@dataclass(frozen=True)
class ObjectScore:
    """A true object and the predicted one that stands for it."""

    number: int
    """The number of the true object in its video, from 1."""
    exp_id: str | None
    """The expression whose mask is matched to it; None for an empty mask, used where the map has too few objects."""
    j: float
    """Mean over the frames, 0 … 1, as f."""
    f: float


RunScore = tuple[ObjectScore, ...] | str
"""The objects of a video as one annotator's expressions found them; or the reason why there is no score."""


def run_key(video: str, annotator: int) -> str:
    """Returns the name of one annotator's run over a video."""
    return f"{video}/annotator {annotator}"


@dataclass(frozen=True)
class ProposalScorer:
    """Scores every annotator's run over a video against the same ground truth. Pickled once for each worker."""

    dataset: RefDAVIS17
    predictions: Predictions
    absent: frozenset[str]
    """Keys of samples without a prediction: their masks are empty."""

    def frames(self, sample: VideoSample) -> int:
        return len(sample)

    def score(self, samples: Sequence[VideoSample]) -> dict[str, RunScore]:
        """Returns the score of each run by `run_key`, for all samples of one video."""
        video = samples[0].video
        runs: dict[int, list[VideoSample]] = {}  # of each annotator, objects in ascending order
        for sample in sorted(samples, key=lambda sample: int(sample.exp_id)):
            runs.setdefault(self.dataset.annotator(sample), []).append(sample)
        try:
            truth, void = self.dataset.objects(samples[0]), self.dataset.void(samples[0])
        except DataError as error:
            return {run_key(video, annotator): str(error) for annotator in runs}
        tallies = {annotator: Tally(len(asked), len(truth), len(samples[0])) for annotator, asked in runs.items()}
        problems: dict[int, str] = {}
        for t in range(len(samples[0])):
            counted = ~masks.decode(void[t], samples[0].size)
            true = [masks.decode(track[t], samples[0].size) & counted for track in truth]
            for annotator in runs.keys() - problems.keys():
                try:
                    index = number_map(
                        [
                            np.zeros(s.size, np.uint8) if s.key in self.absent else self.predictions.read(s, t)
                            for s in runs[annotator]
                        ]
                    )
                except DataError as error:
                    problems[annotator] = str(error)
                    continue
                tallies[annotator].add(t, index, true, counted)
        scores = {
            a: problems[a] if a in problems else tallies[a].match([s.exp_id for s in asked])
            for a, asked in runs.items()
        }
        return {run_key(video, annotator): score for annotator, score in scores.items()}


def number_map(predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the place of the mask over each pixel from 1, of several the first, 0 where there is none; (H, W) uint16.

    predicted: K masks (H, W), nonzero = inside. An inside pixel scores 1 and the background .1, so that the background
    wins where no mask is, and of equal scores the first is taken.
    """
    index = np.zeros(predicted[0].shape, np.uint16)
    for place in reversed(range(len(predicted))):
        index[predicted[place] != 0] = place + 1
    return index


class Tally:
    """J and F of every predicted with every true object of a run, frame by frame."""

    def __init__(self, predicted: int, true: int, length: int) -> None:
        rows = max(predicted, true)  # further proposals are empty
        self.true, self.highest = true, 0
        self.j = np.zeros((rows, true, length))
        self.f = np.zeros((rows, true, length))

    def add(self, t: int, index: np.ndarray, true: Sequence[np.ndarray], counted: np.ndarray) -> None:
        """Adds one frame. index: (H, W) `number_map`. true: N masks (H, W) bool; counted: pixels that are not void."""
        self.highest = max(self.highest, int(index.max()))
        for row in range(len(self.j)):
            mask = (index == row + 1) & counted
            for column, target in enumerate(true):
                self.j[row, column, t], self.f[row, column, t] = metrics.j_and_f(mask, target)

    def match(self, names: Sequence[str]) -> RunScore:
        """Finds the pairs with the largest sum of (J + F) / 2, in the order of the true objects.

        names: those of the predicted objects.
        """
        if self.highest > MAX_PROPOSALS:
            return f"{self.highest} objects are predicted; DAVIS allows {MAX_PROPOSALS}"
        rows = max(self.highest, self.true)  # empty masks behind the highest number are no proposals
        j, f = self.j[:rows].mean(axis=2), self.f[:rows].mean(axis=2)  # (rows, N)
        chosen, columns = linear_sum_assignment(-(j + f) / 2)
        pairs = sorted(zip(columns.tolist(), chosen.tolist(), strict=True))
        return tuple(
            ObjectScore(
                number=column + 1,
                exp_id=names[row] if row < self.highest else None,
                j=float(j[row, column]),
                f=float(f[row, column]),
            )
            for column, row in pairs
        )
