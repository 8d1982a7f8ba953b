"""Score predictions on Ref-DAVIS17, in one of two protocols whose numbers must never be mixed, or maps as DAVIS does.

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

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from eval import command, data_version, davis_maps, jf, proposal_results
from eval.predictions import open_predictions
from eval.proposal_results import ProposalResults, Run
from eval.proposals import ProposalScorer, run_key
from eval.results import Missing, Problem
from eval.scoring import score_all
from eval.survey import print_warnings, survey
from veason.datasets import open_dataset
from veason.datasets.base import sha256
from veason.datasets.refvos import RefDAVIS17

ProtocolName = Literal["unsupervised", "binary", "semi-supervised"]

BINARY = jf.Protocol("Ref-DAVIS17", "refdavis-binary", frames="all frames of the video", published="video zero")


def evaluate_binary(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> jf.JFResults:
    """Score `pred`, a run folder, folder of ``<video>/<exp_id>/<frame>.png`` or file of RLEs; see `jf.evaluate`."""
    dataset = _open(gt_root, split, meta)
    return jf.evaluate(
        dataset,
        open_predictions(Path(pred)),
        protocol=BINARY,
        missing=missing,
        workers=workers,
        gt_sha256={"annotations": _annotations_sha256(dataset)},
    )


def evaluate_unsupervised(
    gt_root: str | Path,
    pred: str | Path,
    *,
    split: str = "valid",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> ProposalResults:
    """As `evaluate_binary`, in the other protocol. DataError as `survey` and `score_all` raise it."""
    dataset, predicted = _open(gt_root, split, meta), open_predictions(Path(pred))
    found = survey(dataset, predicted, missing=missing, published="error")
    skipped = {run_key(s.video, dataset.annotator(s)): None for s in dataset if s.key in found.left_out}  # in order
    scorer = ProposalScorer(dataset, predicted, absent=frozenset(found.absences))
    outcomes = score_all(scorer, _videos(dataset, skipped), workers=workers)
    print_warnings(dataset)
    annotators = tuple(sorted({dataset.annotator(sample) for sample in dataset}))
    expressions = Counter((dataset.annotator(sample), sample.video) for sample in dataset)
    keys = {(a, video): run_key(video, a) for a in annotators for video in dataset.by_video}
    scored = {place: outcomes[key] for place, key in keys.items() if isinstance(outcomes.get(key), tuple)}
    return ProposalResults(
        split=dataset.split,
        missing_policy=missing,
        annotators=annotators,
        runs=tuple(Run(*place, objects, expressions[place]) for place, objects in scored.items()),
        missing=tuple(Problem(key, reason) for key, reason in found.absences.items()),
        skipped=tuple(skipped),
        errors=tuple(Problem(key, outcomes[key]) for key in keys.values() if isinstance(outcomes.get(key), str)),
        expressions=len(dataset),
        videos=len(dataset.by_video),
        gt_sha256={
            **{name: sha256(path) for name, path in dataset.files.items()},
            "annotations": _annotations_sha256(dataset),
        },
    )


def evaluate_maps(
    gt_root: str | Path,
    pred: str | Path,
    *,
    task: davis_maps.Task,
    split: str = "valid",
    meta: str | Path | None = None,
    missing: Missing = "zero",
    workers: int = 1,
) -> davis_maps.MapResults:
    """Score `pred`, a folder of maps ``<video>/<frame>.png``; see `eval.davis_maps`."""
    dataset = _open(gt_root, split, meta)
    hashes = {name: sha256(path) for name, path in dataset.files.items() if path.is_file()}
    hashes["annotations"] = _annotations_sha256(dataset)
    return davis_maps.evaluate(dataset, Path(pred), task=task, missing=missing, workers=workers, gt_sha256=hashes)


def _open(gt_root: str | Path, split: str, meta: str | Path | None) -> RefDAVIS17:
    dataset = open_dataset("refdavis", gt_root, split=split, meta=meta, scoring=True)
    assert isinstance(dataset, RefDAVIS17)
    return dataset


def _videos(dataset: RefDAVIS17, skipped: dict[str, None]) -> dict[str, list]:
    """The samples of each video that has any left."""
    kept = {
        video: [s for s in samples if run_key(video, dataset.annotator(s)) not in skipped]
        for video, samples in dataset.by_video.items()
    }
    return {video: samples for video, samples in kept.items() if samples}


def _annotations_sha256(dataset: RefDAVIS17) -> str:
    """Of all annotation files; one that is missing is left out here and listed when its video is scored."""
    first = [samples[0] for samples in dataset.by_video.values()]
    paths = [dataset.annotation_path(sample, t) for sample in first for t in range(len(sample))]
    return data_version.of_files(dataset.root, [path for path in paths if path.is_file()])


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.refdavis",
        __doc__,
        gt="Ref-DAVIS17 root, the folder that holds meta_expressions and valid",
        pred="run folder, folder of <video>/<exp_id>/<frame>.png, or file of RLEs",
    )
    parser.add_argument("--protocol", choices=get_args(ProtocolName), required=True, help="there is no default")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    args = parser.parse_args(argv)
    options = {"split": args.split, "meta": args.meta, "missing": args.missing, "workers": args.workers}

    def evaluate() -> Any:
        maps = args.protocol != "binary" and davis_maps.are_maps(args.pred, _open(args.gt, args.split, args.meta))
        if maps or args.protocol == "semi-supervised":
            return evaluate_maps(args.gt, args.pred, task=args.protocol, **options)
        return {"binary": evaluate_binary, "unsupervised": evaluate_unsupervised}[args.protocol](
            args.gt, args.pred, **options
        )

    forms = {jf.JFResults: jf, ProposalResults: proposal_results, davis_maps.MapResults: davis_maps}
    return command.run(
        evaluate,
        write=lambda results, out: forms[type(results)].write(results, out),
        table=lambda results: forms[type(results)].table(results),
        out=args.out / args.protocol,
    )


if __name__ == "__main__":
    sys.exit(main())
