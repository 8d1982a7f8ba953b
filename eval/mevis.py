"""Scores predictions on MeViS: J, F and J&F over every frame, means over expressions.

    python -m eval.mevis --gt MEVIS --split valid_u --pred RUN --out RUN/scores

`train` and `valid_u` have masks; `valid` and `test` are scored by the benchmark's server (`python -m eval.submit`).

The published script counts a missing video as zero, and leaves an expression out without a word if its folder or a
frame of it is missing: that is `--missing published`; here each missing prediction is zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from eval import command, jf
from eval.predictions import open_predictions
from eval.results import Missing, Results
from veason.datasets import open_dataset
from veason.datasets.mevis import WITH_MASKS
from veason.errors import DataError

PROTOCOL = jf.Protocol("MeViS", "mevis", frames="all frames of the video", published="video zero")


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid_u",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Scores `pred`: a run folder, a folder of ``<video>/<exp_id>/<frame>.png`` or a file of RLEs."""
    if split not in WITH_MASKS:
        raise DataError(
            f"MeViS {split!r} cannot be scored here: masks come with {' and '.join(WITH_MASKS)} only; "
            "pack a submission with `python -m eval.submit`"
        )
    dataset = open_dataset("mevis", gt_root, split=split, meta=meta, scoring=True)
    return jf.evaluate(dataset, open_predictions(Path(pred)), protocol=PROTOCOL, missing=missing, workers=workers)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.mevis",
        __doc__,
        gt="MeViS root, the folder that holds valid_u",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", default="valid_u", help="valid_u or train (default: valid_u)")
    return command.run(evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
