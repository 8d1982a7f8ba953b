"""Scores predictions on ViCaS: track mAP as the benchmark publishes it and, where asked for, J&F under its own name.

    python -m eval.vicas --gt VICAS --split v1.0/test --pred RUN --out RUN/scores [--j-and-f]

Only frames annotated by people count. mAP compares tracks by the intersection over union of all scored frames
together, with precision and recall over all referrals in the order of sorted videos (`eval.vicas_map`). J&F compares
the union of a referral's tracks frame by frame. It is our own metric: the benchmark defines no such number, though
papers print one. It needs every pixel, whereas mAP needs only run lengths, and takes about ten times as long;
--j-and-f computes it. A run folder holds one track per referral, the union of its objects, which cannot match a
referral that has several tracks. The benchmark's own files, one JSON file per video, keep the tracks apart.

All predicted tracks have the same confidence, so their order decides the curve. The published script sorts them with
NumPy's default sort, which does not keep the order of equal values, so its mAP differs from one NumPy build to the
next. This evaluator keeps them in the order of the videos and their referrals, as a stable sort would.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import command, jf, vicas_map
from eval.results import COLUMNS, OVERALL, Missing, Results, ground_truth_sha256, sha256_of_files
from eval.scoring import Outcome, Score, Scorer, Track, score_expressions
from eval.vicas_files import TrackFiles, TrackPredictions, open_tracks
from veason import masks
from veason.datasets import open_dataset
from veason.datasets.vicas import ViCaS
from veason.errors import DataError
from veason.tables import aligned
from veason.types import Size, VideoSample

COMPILE_FROM = 15_000
"""Predicted frames a worker must have to score before reading their tracks by numba pays for loading it."""


@dataclass(frozen=True)
class Referral:
    """The part of one referral in mAP."""

    found: np.ndarray
    """(10, P) bool: `vicas_map.hits`."""
    true: int
    """Number of true tracks."""


@dataclass(frozen=True)
class TrackScorer(Scorer):
    """Scores the tracks of a video's referrals and, where asked for, their unions frame by frame in the same pass."""

    predictions: TrackPredictions
    j_and_f: bool = False
    """Score the unions, too. If False, only masks that are stored as PNGs are decoded."""
    read_compiled: bool = False
    """Read the tracks with numba (`veason.masks.use_compiled`)."""

    def frames(self, sample: VideoSample) -> int:
        return super().frames(sample) if self.j_and_f or not isinstance(self.predictions, TrackFiles) else 0

    def score(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        masks.use_compiled(self.read_compiled)
        not_computed: dict[str, Outcome] = {sample.key: Score(math.nan, math.nan) for sample in samples}
        outcomes = super().score(samples) if self.j_and_f else not_computed
        for sample in samples:
            outcome = outcomes[sample.key]
            if isinstance(outcome, str):
                continue
            try:
                scored = self.dataset.gt_frames(sample)
                true = [[rles[t] for t in scored] for rles in self.dataset.object_rles(sample)]
                found = vicas_map.hits(vicas_map.track_ious(self.predictions.tracks(sample), true))
            except DataError as error:
                outcomes[sample.key] = str(error)
                continue
            outcomes[sample.key] = dataclasses.replace(outcome, extra=Referral(found, len(true)))
        return outcomes

    def _target(self, track: Track, t: int, size: Size) -> np.ndarray:
        return masks.union([one[t] for one in track], size).view(np.uint8)  # column-major, as `TrackFiles` reads


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str,
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
    j_and_f: bool = False,
) -> Results:
    """Scores `pred`, a folder of JSON files a video, a run folder, a folder of PNGs or a file of RLEs.

    split: ``v1.0/test``, version and part. A missing referral has no track (``zero``) or is left out of both numbers.
    j_and_f: compute J and F too; without, their rows and means are NaN and None. workers: processes at most; the tracks
    of JSON files alone are scored in this one unless there are many and four workers.
    """
    dataset = open_dataset("vicas", gt_root, split=split, meta=meta, scoring=True)
    assert isinstance(dataset, ViCaS)
    predicted = open_tracks(Path(pred), dataset)
    protocol = jf.Protocol("ViCaS", f"vicas-{dataset.version}", "frames annotated by people", published="error")
    files = [dataset.annotation_file(video) for video in dataset.by_video]
    frames = sum(len(dataset.gt_frames(sample)) for sample in dataset)
    if isinstance(predicted, TrackFiles) and not j_and_f and (1 < workers < 4 or frames < 4 * COMPILE_FROM):
        workers = min(workers, 1)  # each would parse its annotation files again, which takes as long as scoring them
    compiled = frames >= COMPILE_FROM * max(1, workers)
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter free
        annotations = beside.submit(sha256_of_files, dataset.root, files)
        expressions = score_expressions(
            TrackScorer(dataset, predicted, "jf", j_and_f=j_and_f, read_compiled=compiled),
            missing=missing,
            published=protocol.published,
            workers=workers,
        )
        hashes = ground_truth_sha256(dataset) | {"annotations": annotations.result()}
    results = jf.results_of(
        expressions,
        dataset,
        protocol=protocol,
        missing=missing,
        gt_sha256=hashes,
        details={"predictions": predicted.form},
        looked_at=j_and_f,
    )
    referrals = {}
    for one in expressions.scored:
        nothing = Referral(vicas_map.hits(np.zeros((0, 0), np.float32)), len(one.sample.anno_ids))
        referrals[one.sample.key] = one.score.extra if isinstance(one.score.extra, Referral) else nothing
    return _with_tracks(results, referrals, version=dataset.version, j_and_f=j_and_f)


def _with_tracks(results: Results, referrals: Mapping[str, Referral], *, version: str, j_and_f: bool) -> Results:
    """Adds mAP, AP at the named thresholds and the numbers of tracks to the results on unions; by sample key."""
    tracks = {
        "true": sum(referral.true for referral in referrals.values()),
        "predicted": sum(referral.found.shape[1] for referral in referrals.values()),
    }
    precisions = dict.fromkeys(("mAP", *vicas_map.NAMED), math.nan)
    if referrals:
        found = np.concatenate([referral.found for referral in referrals.values()], axis=1)
        aps = vicas_map.average_precisions(found, tracks["true"])
        precisions = {"mAP": float(np.mean(aps)), **{name: float(aps[i]) for name, i in vicas_map.NAMED.items()}}
    rows = []
    for row in results.rows:
        referral = referrals[row.key]
        right = {f"found_{name}": int(referral.found[level].sum()) for name, level in vicas_map.NAMED.items()}
        extra = {"true_tracks": referral.true, "predicted_tracks": referral.found.shape[1], **right}
        rows.append(dataclasses.replace(row, extra=extra))
    header = ("track mAP", "n", "predicted", "true", *precisions)
    line = ("overall", len(referrals), tracks["predicted"], tracks["true"], *precisions.values())
    note = (
        "J&F is of unions and ours; the benchmark's is mAP"
        if j_and_f
        else "J&F, which is ours and not the benchmark's: --j-and-f"
    )
    return dataclasses.replace(
        results,
        rows=tuple(rows),
        groups={OVERALL: {**precisions, **results.groups[OVERALL]}},
        protocol={
            **results.protocol,
            "mAP": "track IoU over all scored frames, thresholds .50:.05:.95, all confidences equal, video order",
            "JF": "union of a referral's tracks; not the benchmark's own number",
        },
        csv_columns=(
            *("video_name", "exp_id", "exp", *COLUMNS, "true_tracks", "predicted_tracks"),
            *(f"found_{name}" for name in vicas_map.NAMED),
        ),
        further={**results.further, "version": version, "tracks": tracks},
        layout=dataclasses.replace(
            results.layout,
            footnote=f"{aligned(header, [line])}\n\n{note}",
            columns=COLUMNS if j_and_f else (),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.vicas",
        __doc__,
        gt="ViCaS root, the folder that holds annotations and splits",
        pred="folder of <id>.json, run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", required=True, metavar="VERSION/PART", help="v0.1/test, v1.0/val, …; no default")
    parser.add_argument(
        "--j-and-f",
        action="store_true",
        help="also compute J and F of unions, which is our own metric and takes about ten times as long",
    )
    return command.run(evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
