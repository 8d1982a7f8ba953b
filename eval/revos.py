"""Scores a prediction folder on ReVOS, equal to the benchmark's own script to the printed digit.

Usage: ``python -m eval.revos --gt ROOT --pred RUN --out DIR``. The protocol, quirks included:

- every frame of a video counts; J, F, A, R of an expression are means over its frames, in per cent, rounded to two
  digits *before* they are averaged; so is the expression's JF = (J + F) / 2;
- referring (type 0) and reasoning (type 1) are means over their expressions, JF the mean of their J and F;
- overall is the plain mean of the two, whatever their numbers, and undefined if either has no expression;
- expressions without a target (type 2) stand apart, in ``absent``: the published table leaves them out, and their R is
  our own figure, not the benchmark's;
- A and R are computed on stored grey values (see `eval.metrics`); ``--robustness binary`` maps them to {0, 1} first.
  An RLE has no grey value: it counts as 255, as a PNG, or as 1 with ``--rle-value 1``, as in Sa2VA's evaluation.

The benchmark scores a mask of another size, a damaged file, and lost masks of a run folder whose ``predictions.jsonl``
lists them as finished as zero. Here they are errors, listed at the end; the other samples are scored, and the exit
status is nonzero. A missing prediction scores zero, as in the benchmark, unless ``--missing`` says otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from eval import command
from eval.predictions import open_predictions
from eval.results import (
    COLUMNS,
    OVERALL,
    REVOS_TYPES,
    Layout,
    Missing,
    Results,
    Row,
    count_encodings,
    encodings_text,
    ground_truth_sha256,
    means,
    sample_counts,
)
from eval.scoring import ScoredExpressions, Scorer, score_expressions
from eval.survey import check_choice
from veason.datasets import open_dataset
from veason.datasets.base import Dataset

Robustness = Literal["visa", "binary"]

MEASURES = (*COLUMNS, "A", "R")


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid",
    meta: str | Path | None = None,
    robustness: Robustness = "visa",
    rle_value: int = 255,
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Scores the predictions in `pred` on one split of the ReVOS below `gt_root`.

    `pred` is a run folder, a folder of ``<video>/<exp_id>/<frame>.png`` or a file of RLEs; `meta` replaces the split's
    expression file by a subset; `rle_value` is explained at `eval.predictions.open_predictions`. Raises DataError for
    what a user can put right before anything is scored; a single broken prediction is listed in the results. More than
    one worker starts processes, so a script that calls this needs its ``if __name__ == "__main__"``.
    """
    check_choice("robustness", robustness, Robustness)
    dataset = open_dataset("revos", gt_root, split=split, meta=meta, scoring=True)
    predicted = open_predictions(Path(pred), rle_value=rle_value)
    expressions = score_expressions(
        Scorer(dataset, predicted, robustness), missing=missing, published="zero", workers=workers
    )
    return _results(expressions, dataset, robustness=robustness, missing=missing)


def _results(expressions: ScoredExpressions, dataset: Dataset, *, robustness: Robustness, missing: Missing) -> Results:
    """Makes the record: percentages rounded as the benchmark rounds them, the means of its groups."""

    def percent(share: float) -> float:
        return float(np.round(100 * np.float64(share), 2))  # NumPy's rounding, as there; Python's differs at ties

    names: dict[int | None, str] = {type_id: name for name, type_id in REVOS_TYPES.items()}
    rows = []
    for one in expressions.scored:
        sample, score = one.sample, one.score
        assert sample.type_id is not None  # the data set has checked it
        rows.append(
            Row(
                sample.video,
                sample.exp_id,
                sample.expression,
                j=percent(score.j),
                f=percent(score.f),
                jf=percent((score.j + score.f) / 2),  # of the unrounded J and F, as the benchmark's own row
                group=names[sample.type_id],
                extra={"A": percent(score.a), "R": percent(score.r), "type_id": sample.type_id},
                problem=one.problem,
            )
        )
    groups = {name: means([row for row in rows if row.group == name], MEASURES) for name in REVOS_TYPES}
    groups[OVERALL] = {c: (groups["referring"][c] + groups["reasoning"][c]) / 2 for c in MEASURES}
    expected, scored = Counter(names[sample.type_id] for sample in dataset), Counter(row.group for row in rows)
    counts = {
        "videos": len({sample.video for sample in dataset}),
        **sample_counts(len(dataset), expressions.missing, expressions.errors, len(rows)),
        "by_type": {name: {"expected": expected[name], "scored": scored[name]} for name in REVOS_TYPES},
    }
    encodings = count_encodings(one.score.values for one in expressions.scored if one.problem is None)
    r_absent = groups["absent"]["R"]
    return Results(
        benchmark="ReVOS",
        dataset="revos",
        split=dataset.split,
        missing_policy=missing,
        rows=tuple(rows),
        groups=groups,
        missing=expressions.missing,
        errors=expressions.errors,
        counts=counts,
        protocol={
            "frames": "all frames of the video",
            "rounding": "frame means of an expression in per cent, rounded to 2 digits before averaging",
            "overall": "unweighted mean of referring and reasoning",
            "absent": "apart, in no other mean",
            "robustness": robustness,
            "missing": missing,
            "prediction_values": encodings,
        },
        gt_sha256=ground_truth_sha256(dataset),
        csv_columns=("video_name", "exp_id", "exp", *MEASURES, "type_id"),
        further={"ours": {"R_type2": None if np.isnan(r_absent) else r_absent}},
        layout=Layout(
            heading=(
                f"ReVOS {dataset.split}: {counts['scored']} of {counts['expected']} expressions, "
                f"{counts['missing']} missing ({missing}), {counts['errors']} errors; "
                f"robustness {robustness}; grey values {encodings_text(encodings)}"
            ),
            footnote="overall is the plain mean of referring and reasoning; absent (no target) stands apart",
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.revos",
        __doc__,
        gt="ReVOS root: mask_dict.json, meta_expressions_*_.json",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument(
        "--robustness",
        choices=get_args(Robustness),
        default="visa",
        help="compute A and R on stored values, or on {0, 1}",
    )
    parser.add_argument(
        "--rle-value",
        type=int,
        choices=(255, 1),
        default=255,
        help="grey value inside a mask of an RLE file; 1 gives A and R on the scale of Sa2VA's own evaluation",
    )
    return command.run(evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
