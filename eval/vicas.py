"""Score predictions on ViCaS: track mAP as the benchmark publishes it and, where asked for, J&F under its own name.

    python -m eval.vicas --gt VICAS --split v1.0/test --pred RUN --out RUN/scores [--j-and-f]

Only frames annotated by people count. mAP compares tracks: intersection over union of all scored frames together,
precision and recall over all referrals in the order of sorted videos (`eval.vicas_map`). J&F compares the union of a
referral's tracks, frame by frame, and is ours: the benchmark has no such number, though papers print one. It needs
every pixel where mAP needs run lengths alone, and some ten times as long: say --j-and-f for it. A run folder has one
track a referral, the union of its objects, which cannot win where a referral has several: the benchmark's own files, a
JSON a video, keep them apart.

All predicted tracks have the same confidence, so their order decides the curve. The published script sorts them with
NumPy's default sort, which does not keep the order of equal values: its mAP differs from one NumPy build to the next.
Ours keeps them in the order of the videos and their referrals, as a stable sort would.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import command, data_version, jf, vicas_map
from eval.results import Missing, Problem
from eval.scoring import Outcome, Score, Scorer, Track
from eval.vicas_files import TrackFiles, open_tracks
from veason import atomic, masks
from veason.datasets import open_dataset
from veason.datasets.vicas import ViCaS
from veason.errors import DataError
from veason.tables import aligned
from veason.types import Size, VideoSample

CSV_HEADER = (*jf.CSV_HEADER[:-1], "true_tracks", "predicted_tracks", *(f"found_{name}" for name in vicas_map.NAMED))

COMPILE_FROM = 15_000
"""Predicted frames a worker must have to score before reading their tracks by numba pays for loading it."""


@dataclass(frozen=True)
class Referral:
    """What mAP needs of one referral."""

    found: np.ndarray
    """(10, P) bool: `vicas_map.hits`."""
    true: int
    """Number of true tracks."""


@dataclass(frozen=True)
class TrackScorer(Scorer):
    """Scores the unions of a video's referrals frame by frame and, in the same pass over its files, their tracks."""

    read_compiled: bool = False
    """Whether numba reads the tracks (`veason.masks.use_compiled`)."""

    def score(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        masks.use_compiled(self.read_compiled)
        outcomes = self._unions(samples)
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

    def _unions(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        return super().score(samples)

    def _target(self, track: Track, t: int, size: Size) -> np.ndarray:
        return masks.union([one[t] for one in track], size).view(np.uint8)  # column-major, as `TrackFiles` reads


class MapScorer(TrackScorer):
    """Scores the tracks alone: no mask is decoded, but those that come as PNGs."""

    def frames(self, sample: VideoSample) -> int:
        return 0 if isinstance(self.predictions, TrackFiles) else super().frames(sample)

    def _unions(self, samples: Sequence[VideoSample]) -> dict[str, Outcome]:
        return {sample.key: Score(math.nan, math.nan) for sample in samples}


@dataclass(frozen=True)
class VicasResults:
    """mAP and, where asked for, J and F of the same referrals."""

    version: str
    jf: jf.JFResults
    referrals: dict[str, Referral]
    """By sample key, in the order of the data set."""
    form: str
    """What the predictions were, in words."""
    j_and_f: bool
    """Whether J and F were computed; the rows of `jf` hold NaN where not."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return self.jf.errors

    def average_precisions(self) -> dict[str, float]:
        """mAP and AP at the named thresholds, in per cent; NaN where no referral was scored."""
        if not self.referrals:
            return dict.fromkeys(("mAP", *vicas_map.NAMED), math.nan)
        found = np.concatenate([referral.found for referral in self.referrals.values()], axis=1)
        aps = vicas_map.average_precisions(found, sum(referral.true for referral in self.referrals.values()))
        return {"mAP": float(np.mean(aps)), **{name: float(aps[i]) for name, i in vicas_map.NAMED.items()}}

    def tracks(self) -> dict[str, int]:
        return {
            "true": sum(referral.true for referral in self.referrals.values()),
            "predicted": sum(referral.found.shape[1] for referral in self.referrals.values()),
        }

    def summary(self) -> dict[str, Any]:
        """The content of ``results.json``: the same for the same inputs, whatever the workers."""
        summary = self.jf.summary()
        columns = {name: None if math.isnan(ap) else ap for name, ap in self.average_precisions().items()}
        return summary | {
            "version": self.version,
            "overall": columns | summary["overall"],
            "tracks": self.tracks(),
            "protocol": summary["protocol"]
            | {
                "mAP": "track IoU over all scored frames, thresholds .50:.05:.95, all confidences equal, video order",
                "JF": "union of a referral's tracks; not the benchmark's own number",
            },
        }


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str,
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
    j_and_f: bool = False,
) -> VicasResults:
    """Score `pred`, a folder of JSON files a video, a run folder, a folder of PNGs or a file of RLEs.

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
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter free
        annotations = beside.submit(data_version.of_files, dataset.root, files)
        results = jf.evaluate(
            dataset,
            predicted,
            protocol=protocol,
            missing=missing,
            workers=workers,
            details={"predictions": predicted.form},
            scorer=functools.partial(
                TrackScorer if j_and_f else MapScorer, read_compiled=frames >= COMPILE_FROM * max(1, workers)
            ),
        )
        hashes = results.gt_sha256 | {"annotations": annotations.result()}
    results = dataclasses.replace(results, gt_sha256=hashes)
    if not j_and_f:
        rows = tuple(dataclasses.replace(row, j=math.nan, f=math.nan) for row in results.rows)  # missing ones, too
        results = dataclasses.replace(results, rows=rows, encodings={"not looked at": len(rows)})
    referrals = {}
    for row in results.rows:
        nothing = Referral(vicas_map.hits(np.zeros((0, 0), np.float32)), len(row.sample.anno_ids))
        referrals[row.sample.key] = row.extra if isinstance(row.extra, Referral) else nothing
    return VicasResults(dataset.version, results, referrals, form=predicted.form, j_and_f=j_and_f)


def csv_text(results: VicasResults) -> str:
    """A row a referral; J, F in per cent, unrounded; how many predicted tracks were found right at each threshold."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in results.jf.rows:
        referral, sample = results.referrals[row.sample.key], row.sample
        right = [int(referral.found[level].sum()) for level in vicas_map.NAMED.values()]
        scores = ("" if math.isnan(score) else score for score in (row.j, row.f, row.jf))
        counts = (referral.true, referral.found.shape[1], *right)
        writer.writerow([sample.video, sample.exp_id, sample.expression, *scores, *counts])
    return text.getvalue()


def table(results: VicasResults) -> str:
    """What the command prints."""
    tracks, aps = results.tracks(), results.average_precisions()
    header = ("track mAP", "n", "predicted", "true", *aps)
    line = ("overall", len(results.referrals), tracks["predicted"], tracks["true"], *aps.values())
    tracks_text, text = aligned(header, [line]), jf.table(results.jf)
    if not results.j_and_f:
        head, _, _ = text.partition("\n\n")  # without the means of J and F
        return f"{head}\n\n{tracks_text}\n\nJ&F, which is ours and not the benchmark's: --j-and-f"
    return f"{text}\n\n{tracks_text}\n\nJ&F is of unions and ours; the benchmark's is mAP"


def write(results: VicasResults, out: Path) -> None:
    """Write ``results.csv`` and ``results.json`` below `out`."""
    atomic.write_bytes(out / "results.csv", csv_text(results).encode("utf-8", "replace"))
    atomic.write_json(out / "results.json", results.summary())


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.vicas",
        __doc__,
        gt="ViCaS root, the folder that holds annotations and splits",
        pred="folder of <id>.json, run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", required=True, metavar="VERSION/PART", help="v0.1/test, v1.0/val, …; no default")
    parser.add_argument(
        "--j-and-f", action="store_true", help="J and F of unions, too: ours, and some ten times the time of mAP alone"
    )
    args = parser.parse_args(argv)
    options = {"split": args.split, "meta": args.meta, "missing": args.missing, "workers": args.workers}
    options["j_and_f"] = args.j_and_f
    return command.run(lambda: evaluate(args.gt, args.pred, **options), write=write, table=table, out=args.out)


if __name__ == "__main__":
    sys.exit(main())
