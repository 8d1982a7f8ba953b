"""Score a prediction folder on ReVOS, equal to the benchmark's own script to the printed digit.

Usage: ``python -m eval.revos --gt ROOT --pred RUN --out DIR``. The protocol, quirks included:

- every frame of a video counts; J, F, A, R of an expression are means over its frames, in per cent, rounded to two
  digits *before* they are averaged; so is the expression's JF = (J + F) / 2;
- referring (type 0) and reasoning (type 1) are means over their expressions, JF the mean of their J and F;
- overall is the plain mean of the two, whatever their numbers, and undefined if either has no expression;
- expressions without a target (type 2) stand apart, in ``absent``: the published table leaves them out, and their R is
  our own figure, not the benchmark's;
- A and R are computed on stored grey values (see `eval.robustness`); ``--robustness binary`` maps them to {0, 1} first.

What the benchmark scores as zero and we do not: a mask of another size or a damaged file. Both are errors, listed at
the end, with the rest scored and a nonzero exit status. A missing prediction is zero, as there, unless ``--missing``
says otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from eval import predictions
from eval.results import GROUPS, Missing, Problem, Results, Robustness, Row, table, write
from eval.scoring import Outcome, Score, Scorer, score_videos
from veason.datasets import open_dataset
from veason.datasets.base import Dataset, sha256
from veason.errors import DataError
from veason.types import VideoSample

_LISTED = 100  # missing predictions named in an error message


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid",
    meta: str | Path | None = None,
    robustness: Robustness = "visa",
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Score the predictions in `pred` on one split of the ReVOS below `gt_root`.

    `pred` is a run folder (with ``Annotations``) or holds ``<video>/<exp_id>/<frame>.png`` itself; `meta` replaces the
    split's expression file by a subset. Raises DataError for what a user can put right before anything is scored; a
    single broken prediction is listed in the results. More than one worker starts processes, so a script that calls
    this needs its ``if __name__ == "__main__"``.
    """
    _check_choice("robustness", robustness, Robustness)
    _check_choice("missing", missing, Missing)
    if workers < 1:
        raise DataError(f"workers must be at least 1, found {workers}")
    dataset = open_dataset("revos", gt_root, split=split, meta=meta)
    root = predictions.locate(Path(pred))
    absences = {s.key: reason for s in dataset if (reason := predictions.absence(root, s)) is not None}
    if absences and missing == "error":
        raise DataError(_missing_message(root, absences, len(dataset)))
    if len(absences) == len(dataset):
        print(f"warning: {root} holds no complete prediction for any of {len(dataset)} expressions", file=sys.stderr)
    videos: dict[str, list[VideoSample]] = {}
    for sample in dataset:
        if sample.key not in absences:
            videos.setdefault(sample.video, []).append(sample)
    scorer = Scorer(dataset, root, binary=robustness == "binary")
    outcomes: dict[str, Outcome] = {}
    for _, scored in score_videos(scorer, videos, workers=workers):
        outcomes |= scored
    return _collect(dataset, absences, outcomes, robustness=robustness, missing=missing)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise DataError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}")


def _missing_message(root: Path, absences: dict[str, str], expected: int) -> str:
    listed = [f"  {key}: {reason}" for key, reason in list(absences.items())[:_LISTED]]
    if len(absences) > _LISTED:
        listed.append(f"  … and {len(absences) - _LISTED} more")
    head = f"{root}: predictions are missing for {len(absences)} of {expected} expressions; predict them"
    return "\n".join([f"{head}, or score the rest with --missing zero or skip:", *listed])


def _collect(
    dataset: Dataset,
    absences: dict[str, str],
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
        elif missing == "zero":
            rows.append(_row(sample, Score(0.0, 0.0, 0.0, 0.0, values=()), problem=absences[sample.key]))
    names = {type_id: name for name, type_id in GROUPS.items()}
    expected = Counter(names[sample.type_id] for sample in dataset)
    encodings = Counter(_encoding(o.values) for o in outcomes.values() if isinstance(o, Score))
    return Results(
        split=dataset.split,
        robustness=robustness,
        missing_policy=missing,
        rows=tuple(rows),
        missing=tuple(Problem(sample, reason) for sample, reason in absences.items()),
        errors=tuple(errors),
        expected={name: expected[name] for name in GROUPS},
        encodings=dict(sorted(encodings.items())),
        gt_sha256={name: sha256(path) for name, path in dataset.files.items() if path.is_file()},
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


def _encoding(values: Sequence[int]) -> str:
    return "/".join(str(value) for value in (0, *values)) if len(values) <= 3 else f"{len(values)} values"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.revos", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gt", type=Path, required=True, help="ReVOS root: mask_dict.json, meta_expressions_*_.json")
    parser.add_argument("--pred", type=Path, required=True, help="run folder, or a folder of <video>/<exp_id>/*.png")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.csv and results.json")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--meta", type=Path, help="another expression file, such as a subset that was predicted")
    parser.add_argument("--robustness", choices=get_args(Robustness), default="visa")
    parser.add_argument("--missing", choices=get_args(Missing), default="zero")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default: cores")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        results = evaluate(
            args.gt,
            args.pred,
            split=args.split,
            meta=args.meta,
            robustness=args.robustness,
            missing=args.missing,
            workers=args.workers,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(results, args.out)
    print(table(results))
    for problem in results.errors:
        print(f"error: {problem.sample}: {problem.reason}", file=sys.stderr)
    return 0 if results.complete else 2


if __name__ == "__main__":
    sys.exit(main())
