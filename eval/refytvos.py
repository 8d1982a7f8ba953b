"""Scores predictions on Ref-YouTube-VOS valid, whose ground truth was published in March 2026: plain J, F and J&F.

    python -m eval.refytvos --gt REFYTVOS --pred RUN --out RUN/scores

Every frame of the 202 videos counts, each expression's mask against its object, means over the 834 expressions, as the
benchmark's server computes them. `test` is still the server's alone (`python -m eval.submit --dataset refytvos`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from eval import command, jf
from eval.predictions import open_predictions
from eval.results import Missing, Results, ground_truth_sha256, sha256_of_files
from veason.datasets import open_dataset
from veason.datasets.refvos import RefYouTubeVOS
from veason.errors import DataError

PROTOCOL = jf.Protocol("Ref-YouTube-VOS", "refytvos", frames="all frames of the video")


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Scores `pred`: a run folder, a folder of ``<video>/<exp_id>/<frame>.png`` or a file of RLEs. See `jf.evaluate`.

    Raises DataError for a split without ground truth: ``test``, or a copy of ``valid`` from before its publication.
    """
    dataset = open_dataset("refytvos", gt_root, split=split, meta=meta, scoring=True)
    assert isinstance(dataset, RefYouTubeVOS)
    annotations = dataset.root / split / "Annotations"
    if not annotations.is_dir() or not any(sample.anno_ids for sample in dataset):
        raise DataError(
            f"{dataset.root}: no ground truth of {split!r}: it is a folder {annotations} and an obj_id with every "
            "expression. That of valid was published in March 2026: fetch it, or pack a submission with "
            "`python -m eval.submit --dataset refytvos`"
        )
    paths = [path for video in dataset.by_video for path in (annotations / video).rglob("*.png")]
    return jf.evaluate(
        dataset,
        open_predictions(Path(pred)),
        protocol=PROTOCOL,
        missing=missing,
        workers=workers,
        gt_sha256=ground_truth_sha256(dataset) | {"annotations": sha256_of_files(dataset.root, paths)},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.refytvos",
        __doc__,
        gt="Ref-YouTube-VOS root, the folder that holds meta_expressions and valid",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--split", default="valid", help="valid or train (default: %(default)s)")
    return command.run(evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
