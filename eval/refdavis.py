"""Scores predictions on Ref-DAVIS17 in one of two protocols, whose numbers must never be mixed, or maps as DAVIS does.

    python -m eval.refdavis --protocol unsupervised    --gt REFDAVIS --pred RUN  --out RUN/scores
    python -m eval.refdavis --protocol binary          --gt REFDAVIS --pred RUN  --out RUN/scores
    python -m eval.refdavis --protocol unsupervised    --gt REFDAVIS --pred MAPS --out SCORES
    python -m eval.refdavis --protocol semi-supervised --gt REFDAVIS --pred MAPS --out SCORES

unsupervised (ReferFormer, VideoLISA): a run for each of the four annotators; in each, a pixel goes to the object whose
mask covers it (of several the first; masks are binary, stored scores between 0 and 1 are not supported), and DAVIS's
unsupervised evaluation matches these objects to the true ones by (J + F) / 2. Mean over objects, then annotators.

binary (VISA, GLUS): each expression's mask against its object; means over expressions.

MAPS is a folder of maps of object numbers, ``<video>/<frame>.png``, as trackers write them for DAVIS 2017 and
ReferFormer for each annotator; they are scored as DAVIS's own code does (`eval.davis_maps`), means over objects.

Each protocol writes to a folder of its own name below --out. With --missing skip, binary leaves out a missing
expression; unsupervised leaves out that annotator's whole video, since its objects compete for pixels. With --missing
published, binary counts a missing video as zero and leaves out any other missing expression, as that script does;
DAVIS's evaluation breaks off, and so does unsupervised.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from eval import command, davis_maps, jf
from eval.predictions import open_predictions
from eval.proposals import MAX_PROPOSALS, ObjectScore, ProposalScorer, RunScore, run_key
from eval.results import (
    COLUMNS,
    OVERALL,
    Layout,
    Missing,
    Problem,
    Results,
    Row,
    ground_truth_sha256,
    sample_counts,
    sha256_of_files,
)
from eval.scoring import score_all
from eval.survey import Survey, log_warnings, survey
from veason.datasets import open_dataset
from veason.datasets.refvos import RefDAVIS17

ProtocolName = Literal["unsupervised", "binary", "semi-supervised"]

BINARY = jf.Protocol("Ref-DAVIS17", "refdavis-binary", frames="all frames of the video", published="video zero")


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    protocol: ProtocolName,
    split: str = "valid",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Scores `pred` by one of the protocols: a run folder, a folder of ``<video>/<exp_id>/<frame>.png`` or RLEs.

    Or, in all but ``binary``, a folder of maps ``<video>/<frame>.png`` (see `eval.davis_maps`). Raises DataError as
    `survey` and `score_all` do.
    """
    dataset = open_dataset("refdavis", gt_root, split=split, meta=meta, scoring=True)
    assert isinstance(dataset, RefDAVIS17)
    first = [samples[0] for samples in dataset.by_video.values()]
    paths = [dataset.annotation_path(sample, t) for sample in first for t in range(len(sample))]
    # A file that is missing is left out here and listed when its video is scored.
    annotations = sha256_of_files(dataset.root, [path for path in paths if path.is_file()])
    hashes = ground_truth_sha256(dataset) | {"annotations": annotations}
    pred = Path(pred)
    if protocol == "binary":
        return jf.evaluate(
            dataset, open_predictions(pred), protocol=BINARY, missing=missing, workers=workers, gt_sha256=hashes
        )
    if protocol == "semi-supervised" or davis_maps.are_maps(pred, dataset):
        return davis_maps.evaluate(dataset, pred, task=protocol, missing=missing, workers=workers, gt_sha256=hashes)
    return _unsupervised(dataset, pred, missing=missing, workers=workers, gt_sha256=hashes)


def _unsupervised(
    dataset: RefDAVIS17, pred: Path, *, missing: Missing, workers: int, gt_sha256: dict[str, str]
) -> Results:
    """Scores each annotator's expressions about a video as one run; means over objects, then over annotators."""
    predicted = open_predictions(pred)
    found = survey(dataset, predicted, missing=missing, published="error")
    skipped = {run_key(s.video, dataset.annotator(s)): None for s in dataset if s.key in found.left_out}  # in order
    kept = {
        video: [s for s in samples if run_key(video, dataset.annotator(s)) not in skipped]
        for video, samples in dataset.by_video.items()
    }
    scorer = ProposalScorer(dataset, predicted, absent=frozenset(found.absences))
    outcomes = score_all(scorer, {video: samples for video, samples in kept.items() if samples}, workers=workers)
    log_warnings(dataset)
    return _unsupervised_results(dataset, found, tuple(skipped), outcomes, missing=missing, gt_sha256=gt_sha256)


def _unsupervised_results(
    dataset: RefDAVIS17,
    found: Survey,
    skipped: tuple[str, ...],
    outcomes: Mapping[str, RunScore],
    *,
    missing: Missing,
    gt_sha256: Mapping[str, str],
) -> Results:
    """Makes the record of the runs' scores; skipped: the runs left out, outcomes: by the name of the run."""
    annotators = sorted({dataset.annotator(sample) for sample in dataset})
    asked = Counter((dataset.annotator(sample), sample.video) for sample in dataset)
    rows, errors, runs_scored, scored = [], [], 0, 0
    objects: dict[int, list[ObjectScore]] = {annotator: [] for annotator in annotators}
    for annotator in annotators:
        for video in dataset.by_video:
            outcome = outcomes.get(run_key(video, annotator))
            if isinstance(outcome, str):
                errors.append(Problem(run_key(video, annotator), outcome))
            elif outcome is not None:
                runs_scored, scored = runs_scored + 1, scored + asked[annotator, video]
                objects[annotator] += outcome
                for one in outcome:
                    j, f, extra = 100 * one.j, 100 * one.f, {"annotator": annotator, "object": one.number}
                    rows.append(
                        Row(video, one.exp_id or "", "", j, f, (j + f) / 2, f"annotators/{annotator}", extra=extra)
                    )
    of_annotator = {f"annotators/{annotator}": _means(objects[annotator]) for annotator in annotators}
    overall = {c: float(np.mean([means[c] for means in of_annotator.values()])) for c in COLUMNS}
    missed = tuple(Problem(key, reason) for key, reason in found.absences.items())
    counts = {
        "videos": len(dataset.by_video),
        **sample_counts(len(dataset), missed, errors, scored, len(missed) if skipped else 0),
        "runs": runs_scored + len(skipped) + len(errors),
        "runs_scored": runs_scored,
        "runs_skipped": len(skipped),
        "objects_scored": len(rows),
    }
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in gt_sha256.items())
    return Results(
        benchmark="Ref-DAVIS17",
        dataset="refdavis",
        split=dataset.split,
        missing_policy=missing,
        rows=tuple(rows),
        groups={OVERALL: overall, **of_annotator},
        missing=missed,
        errors=tuple(errors),
        counts=counts,
        protocol={
            "name": "refdavis-unsupervised",
            "frames": "all frames of the video, void pixels left out",
            "objects": "each pixel goes to the first expression whose mask covers it; binary scores, background .1",
            "matching": f"Hungarian on (J + F) / 2, objects of the first frame, at most {MAX_PROPOSALS} proposals",
            "mean": "frames, then objects, for each annotator; then annotators; J&F is the mean of J and F",
            "rounding": "none",
            "missing": missing,
        },
        gt_sha256=gt_sha256,
        csv_columns=("annotator", "video_name", "object", "exp_id", *COLUMNS),
        further={"skipped": list(skipped)},
        layout=Layout(
            heading=(
                f"Ref-DAVIS17 {dataset.split}, protocol refdavis-unsupervised "
                "(never to be mixed with refdavis-binary)\n"
                f"expected {counts['expected']} expressions, found {counts['found']}, missing {counts['missing']} "
                f"(--missing {missing}), skipped {counts['skipped']}\n"
                f"runs {counts['runs']} (an annotator's video each): scored {counts['runs_scored']}, "
                f"skipped {counts['runs_skipped']}, errors {counts['errors']}\n"
                f"data: {counts['videos']} videos; sha256 {digests}"
            ),
            labels={**{name: name.replace("annotators/", "annotator ") for name in of_annotator}, OVERALL: "mean"},
            unit="objects",
            items="runs",
        ),
    )


def _means(objects: Sequence[ObjectScore]) -> dict[str, float]:
    """Takes J, F and J&F in per cent as plain means over an annotator's objects; NaN where there is none."""
    if not objects:
        return dict.fromkeys(COLUMNS, math.nan)
    j, f = (100 * float(np.mean([getattr(one, column) for one in objects])) for column in ("j", "f"))
    return {"J": j, "F": f, "JF": (j + f) / 2}


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.refdavis",
        __doc__,
        gt="Ref-DAVIS17 root, the folder that holds meta_expressions and valid",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--protocol", choices=get_args(ProtocolName), required=True, help="no default")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    args = parser.parse_args(argv)
    args.out = args.out / args.protocol
    return command.run(evaluate, args)


if __name__ == "__main__":
    sys.exit(main())
