"""Scores maps of object numbers as DAVIS 2017 does: a palette or grey PNG a frame, ``<video>/<frame>.png``.

unsupervised: every frame counts, void pixels do not; the map's objects are matched to the true ones by (J + F) / 2.
semi-supervised: an object is the true one of its number; the first and the last frame do not count, void pixels are
background. In both an object's J and F are means over frames, and the printed ones means over all objects; the mean
over sequences stands beside it, since both are quoted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval import metrics
from eval.proposals import MAX_PROPOSALS, ObjectScore, RunScore, Tally
from eval.results import COLUMNS, OVERALL, Layout, Missing, Problem, Results, Row, sample_counts
from eval.scoring import score_all
from eval.survey import check_choice, log_warnings
from veason import masks
from veason.datasets.pictures import read_indices
from veason.datasets.refvos import RefDAVIS17
from veason.errors import DataError
from veason.types import VideoSample

Task = Literal["unsupervised", "semi-supervised"]


def are_maps(pred: Path, dataset: RefDAVIS17) -> bool:
    """Tells whether `pred` holds maps: PNGs where the folders of expressions would be."""
    first = (samples[0] for samples in dataset.by_video.values())
    return any((pred / sample.video / f"{sample.frames[0]}.png").exists() for sample in first)


@dataclass(frozen=True)
class MapScorer:
    """Scores the maps of a video. Pickled once for each worker."""

    dataset: RefDAVIS17
    root: Path
    task: Task

    def frames(self, sample: VideoSample) -> int:
        return len(sample)

    def score(self, samples: Sequence[VideoSample]) -> dict[str, RunScore]:
        """Returns the score by the name of the video, for any sample of it."""
        sample = samples[0]
        try:
            truth, void = self.dataset.objects(sample), self.dataset.void(sample)
            maps = [read_indices(self.root / sample.video / f"{frame}.png", sample.size) for frame in sample.frames]
        except DataError as error:
            return {sample.video: str(error)}
        highest = max(int(numbers.max()) for numbers in maps)
        if self.task == "semi-supervised":
            return {sample.video: self._by_number(sample, truth, maps, highest)}
        if highest > MAX_PROPOSALS:
            fault = f"{self.root / sample.video}: {highest} objects are predicted; DAVIS allows {MAX_PROPOSALS}"
            return {sample.video: fault}
        tally = Tally(highest, len(truth), len(sample))
        for t, numbers in enumerate(maps):
            counted = ~masks.decode(void[t], sample.size)
            tally.add(t, numbers, [masks.decode(track[t], sample.size) & counted for track in truth], counted)
        return {sample.video: tally.match([str(number) for number in range(1, highest + 1)])}

    def _by_number(
        self, sample: VideoSample, truth: Sequence[Sequence[Any]], maps: Sequence[np.ndarray], highest: int
    ) -> RunScore:
        if highest > len(truth):
            return f"{self.root / sample.video}: object {highest} is predicted; the video has {len(truth)}"
        frames = range(1, len(sample) - 1)
        if not frames:
            return f"{sample.video}: {len(sample)} frames; the first and the last do not count, so none is left"
        found = []
        for number, track in enumerate(truth, start=1):
            rows = [
                metrics.j_and_f(maps[t] == number, np.ascontiguousarray(masks.decode(track[t], sample.size)))
                for t in frames
            ]
            j, f = np.mean(rows, axis=0)
            found.append(ObjectScore(number, str(number), float(j), float(f)))
        return tuple(found)


def evaluate(
    dataset: RefDAVIS17, pred: Path, *, task: Task, missing: Missing, workers: int, gt_sha256: Mapping[str, str]
) -> Results:
    """Scores the maps in `pred` on every video of `dataset`; a video is missing if one of its frames is.

    Raises DataError if no video is there, and for a missing one where none may be missing (``error``, and
    ``published``, since the script breaks off).
    """
    check_choice("missing", missing, Missing)
    absences = {}
    for video, samples in dataset.by_video.items():
        lacking = [name for name in samples[0].frames if not (pred / video / f"{name}.png").exists()]
        if lacking:
            absences[video] = f"{len(lacking)} of {len(samples[0])} frames are missing, first {video}/{lacking[0]}.png"
    if len(absences) == len(dataset.by_video):
        raise DataError(f"{pred}: holds no <video>/<frame>.png of any of {len(absences)} videos; is it the folder?")
    if absences and missing in ("error", "published"):
        video, reason = next(iter(absences.items()))
        raise DataError(
            f"{pred}: {len(absences)} of {len(dataset.by_video)} videos are missing, first {video}: {reason}"
        )
    present = {video: samples for video, samples in dataset.by_video.items() if video not in absences}
    outcomes = score_all(MapScorer(dataset, pred, task), present, workers=workers)
    log_warnings(dataset)
    scored: dict[str, tuple[ObjectScore, ...]] = {}
    for video, samples in dataset.by_video.items():
        outcome = outcomes.get(video)
        if isinstance(outcome, tuple):
            scored[video] = outcome
        elif outcome is None and missing == "zero":
            count = len(dataset.objects(samples[0]))
            scored[video] = tuple(ObjectScore(number, None, 0.0, 0.0) for number in range(1, count + 1))
    return _results(
        dataset,
        scored,
        missing=tuple(Problem(*pair) for pair in absences.items()),
        errors=tuple(Problem(video, reason) for video, reason in outcomes.items() if isinstance(reason, str)),
        task=task,
        policy=missing,
        gt_sha256=gt_sha256,
    )


def _results(
    dataset: RefDAVIS17,
    scored: Mapping[str, tuple[ObjectScore, ...]],
    *,
    missing: tuple[Problem, ...],
    errors: tuple[Problem, ...],
    task: Task,
    policy: Missing,
    gt_sha256: Mapping[str, str],
) -> Results:
    """Makes the record of the scored videos: rows of objects, means over objects and over sequences."""
    videos = {video: [(one.j, one.f) for one in objects] for video, objects in scored.items()}
    counts = {
        "videos": len(dataset.by_video),
        **sample_counts(len(dataset.by_video), missing, errors, len(scored)),
        "objects_scored": sum(map(len, scored.values())),
    }
    semi = task == "semi-supervised"
    hashes = ", ".join(f"{name} {digest[:12]}" for name, digest in gt_sha256.items())
    return Results(
        benchmark="DAVIS 2017",
        dataset="refdavis",
        split=dataset.split,
        missing_policy=policy,
        rows=tuple(
            Row(video, "", "", 100 * one.j, 100 * one.f, 50 * (one.j + one.f), extra={"object": one.number})
            for video, objects in scored.items()
            for one in objects
        ),
        groups={  # over all objects, as DAVIS prints it; and over videos, each the mean of its objects
            OVERALL: _means([pair for pairs in videos.values() for pair in pairs]),
            "sequences": _means([np.mean(pairs, axis=0) for pairs in videos.values()]),
        },
        missing=missing,
        errors=errors,
        counts=counts,
        protocol={
            "name": f"davis-{task}",
            "frames": "all but the first and the last" if semi else "all frames of the video, void pixels left out",
            "objects": "by number" if semi else f"Hungarian on (J + F) / 2, at most {MAX_PROPOSALS} proposals",
            "mean": "frames, then objects; J&F is the mean of J and F",
            "unit": "maps of object numbers",
            "rounding": "none",
            "missing": policy,
        },
        gt_sha256=gt_sha256,
        csv_columns=("video_name", "object", *COLUMNS),
        layout=Layout(
            heading=(
                f"DAVIS 2017 {dataset.split}, protocol davis-{task}: maps of object numbers\n"
                f"expected {counts['expected']} videos, found {counts['found']}, missing {counts['missing']} "
                f"(--missing {policy}), skipped {counts['skipped']}, errors {counts['errors']}\n"
                f"data: sha256 {hashes}"
            ),
            labels={OVERALL: "mean over objects", "sequences": "mean over sequences"},
            lines_above=tuple((video, len(pairs), *_means(pairs).values()) for video, pairs in videos.items()),
            items="videos",
        ),
    )


def _means(pairs: Sequence[Any]) -> dict[str, float]:
    """Takes J, F and J&F in per cent over pairs of (J, F) in 0 … 1; NaN where there is none."""
    if not pairs:
        return dict.fromkeys(COLUMNS, math.nan)
    j, f = (100 * float(value) for value in np.mean(pairs, axis=0))
    return {"J": j, "F": f, "JF": (j + f) / 2}
