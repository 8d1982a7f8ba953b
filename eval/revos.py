"""Score a prediction folder on ReVOS, equal to the benchmark's own script to the printed digit.

Usage: ``python -m eval.revos --gt ROOT --pred RUN --out DIR``. The protocol, quirks included:

- every frame of a video counts; J, F, A, R of an expression are means over its frames, in per cent, rounded to two
  digits *before* they are averaged; so is the expression's JF = (J + F) / 2;
- referring (type 0) and reasoning (type 1) are means over their expressions, JF the mean of their J and F;
- overall is the plain mean of the two, whatever their numbers, and undefined if either has no expression;
- expressions without a target (type 2) stand apart, in ``absent``: the published table leaves them out, and their R is
  our own figure, not the benchmark's;
- A and R are computed on stored grey values (see `eval.robustness`); ``--robustness binary`` maps them to {0, 1} first.
  An RLE has no grey value: it counts as 255, as a PNG, or as 1 with ``--rle-value 1``, as in Sa2VA's evaluation.

What the benchmark scores as zero and we do not: a mask of another size, a damaged file, and masks that are gone from a
run folder whose ``predictions.jsonl`` says they are done. These are errors, listed at the end, with the rest scored and
a nonzero exit status. A missing prediction is zero, as there, unless ``--missing`` says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from eval import command
from eval.predictions import open_predictions
from eval.results import GROUPS, Missing, Problem, Results, Robustness, Row, count_encodings, table, write
from eval.scoring import Outcome, Score, Scorer, score_all
from eval.survey import Survey, check_choice, check_not_all_alike, print_warnings, survey
from veason.datasets import open_dataset
from veason.datasets.base import Dataset, sha256
from veason.types import VideoSample

_RLE_VALUE_HELP = "grey value inside a mask of an RLE file; 1 gives A and R on the scale of Sa2VA's own evaluation"


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
    """Score the predictions in `pred` on one split of the ReVOS below `gt_root`.

    `pred` is a run folder, a folder of ``<video>/<exp_id>/<frame>.png`` or a file of RLEs; `meta` replaces the split's
    expression file by a subset; `rle_value` is explained at `eval.predictions.open_predictions`. Raises DataError for
    what a user can put right before anything is scored; a single broken prediction is listed in the results. More than
    one worker starts processes, so a script that calls this needs its ``if __name__ == "__main__"``.
    """
    check_choice("robustness", robustness, Robustness)
    dataset = open_dataset("revos", gt_root, split=split, meta=meta, scoring=True)
    predicted = open_predictions(Path(pred), rle_value=rle_value)
    found = survey(dataset, predicted, missing=missing, published="zero")
    outcomes: dict[str, Outcome] = {**found.broken}
    outcomes |= score_all(Scorer(dataset, predicted, robustness), found.present, workers=workers)
    print_warnings(dataset)
    check_not_all_alike(outcomes)
    return _collect(dataset, found, outcomes, robustness=robustness, missing=missing)


def _collect(
    dataset: Dataset,
    found: Survey,
    outcomes: dict[str, Outcome],
    *,
    robustness: Robustness,
    missing: Missing,
) -> Results:
    """Results in the order of the data set."""
    rows: list[Row] = []
    errors: list[Problem] = []
    for sample in dataset:
        outcome = outcomes.get(sample.key)
        if isinstance(outcome, Score):
            rows.append(_row(sample, outcome))
        elif outcome is not None:
            errors.append(Problem(sample.key, outcome))
        elif sample.key not in found.left_out:
            rows.append(_row(sample, Score(0.0, 0.0, 0.0, 0.0), problem=found.absences[sample.key]))
    names = {type_id: name for name, type_id in GROUPS.items()}
    expected = Counter(names[sample.type_id] for sample in dataset)
    return Results(
        split=dataset.split,
        robustness=robustness,
        missing_policy=missing,
        rows=tuple(rows),
        missing=tuple(Problem(sample, reason) for sample, reason in found.absences.items()),
        errors=tuple(errors),
        expected={name: expected[name] for name in GROUPS},
        encodings=count_encodings(o.values for o in outcomes.values() if isinstance(o, Score)),
        gt_sha256={name: sha256(path) for name, path in dataset.files.items() if path.is_file()},
        videos=len({sample.video for sample in dataset}),
    )


def _row(sample: VideoSample, score: Score, problem: str | None = None) -> Row:
    return Row(
        video=sample.video,
        exp_id=sample.exp_id,
        expression=sample.expression,
        type_id=sample.type_id,
        j=_percent(score.j),
        f=_percent(score.f),
        jf=_percent((score.j + score.f) / 2),  # of the unrounded J and F, as the benchmark's own row
        a=_percent(score.a),
        r=_percent(score.r),
        problem=problem,
    )


def _percent(share: float) -> float:
    return float(np.round(100 * np.float64(share), 2))  # NumPy's rounding, as the benchmark's; Python's differs at ties


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(
        "eval.revos",
        __doc__,
        gt="ReVOS root: mask_dict.json, meta_expressions_*_.json",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument(
        "--robustness", choices=get_args(Robustness), default="visa", help="A and R on stored values, or on {0, 1}"
    )
    parser.add_argument("--rle-value", type=int, choices=(255, 1), default=255, help=_RLE_VALUE_HELP)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    return command.run(
        lambda: evaluate(
            args.gt,
            args.pred,
            split=args.split,
            meta=args.meta,
            robustness=args.robustness,
            rle_value=args.rle_value,
            missing=args.missing,
            workers=args.workers,
        ),
        write=write,
        table=table,
        out=args.out,
    )


if __name__ == "__main__":
    sys.exit(main())
