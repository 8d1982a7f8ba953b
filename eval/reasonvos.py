"""Scores predictions on ReasonVOS: J, F and J&F over every annotated frame, means over expressions.

    python -m eval.reasonvos --gt REASONVOS --pred RUN --out RUN/scores

Where a prediction lies below PRED (or PRED/Annotations) is its layout:

    object    <source>_<video>_<obj_id>/<exp_id>/<frame>.png   as VideoLISA and Veason-R1 write
    position  <video>/<i>/<frame>.png, i the place in the list of expressions, from 0: as GLUS and `inference.predict`

`--layout auto` looks which is there and says so. The published script leaves out whatever is missing, and 458
expressions become fewer without a word: that is `--missing published`; here a missing prediction is zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal, get_args

from eval import command, jf
from eval.predictions import Layout, open_predictions, run_folder
from eval.results import Missing, Results, ground_truth_sha256, sha256_of_files
from eval.survey import check_choice, check_run
from veason.datasets import open_dataset
from veason.datasets.reasonvos import ReasonVOS
from veason.errors import DataError
from veason.types import VideoSample

LayoutName = Literal["auto", "object", "position"]

PROTOCOL = jf.Protocol("ReasonVOS", "reasonvos", frames="frames with an annotation PNG, at its size", published="skip")


def evaluate(
    gt_root: str | Path,
    pred: str | Path,
    *,
    meta: str | Path | None = None,
    layout: LayoutName = "auto",
    missing: Missing = "zero",
    workers: int = 1,
) -> Results:
    """Scores `pred`, a run folder, a folder in one of the layouts, or a file of RLEs by video and position."""
    check_choice("layout", layout, LayoutName)
    dataset = open_dataset("reasonvos", gt_root, meta=meta, scoring=True)
    assert isinstance(dataset, ReasonVOS)
    chosen = _detect(dataset, Path(pred)) if layout == "auto" else layout

    def length(sample: VideoSample) -> str | None:
        sentence = dataset.origin(sample).sentence
        return None if sentence is None else "long" if sentence else "short"

    folders = {dataset.origin(sample).annotation for sample in dataset}
    annotations = [path for folder in folders for path in (dataset.root / "Annotations" / folder).glob("*.png")]
    return jf.evaluate(
        dataset,
        open_predictions(Path(pred), layout=_layouts(dataset)[chosen]),
        protocol=PROTOCOL,
        missing=missing,
        workers=workers,
        group_of=length,
        gt_sha256=ground_truth_sha256(dataset) | {"annotations": sha256_of_files(dataset.root, annotations)},
        details={"layout": f"{chosen} (found)" if layout == "auto" else chosen},
    )


def _layouts(dataset: ReasonVOS) -> dict[str, Layout]:
    return {"object": dataset.object_folder, "position": attrgetter("key")}


def _detect(dataset: ReasonVOS, pred: Path) -> str:
    """Finds the layout of the folders in `pred`; raises DataError if there are folders of both or of neither."""
    predicted = open_predictions(pred)
    check_run(dataset, predicted)
    found: dict[str, int] = {}  # layout -> number of expressions that have something there
    for name, place in _layouts(dataset).items():
        placed = open_predictions(pred, layout=place)
        if placed.root.is_dir():
            found[name] = sum((placed.root / place(sample)).is_dir() for sample in dataset)
        elif name == "position":  # RLEs go by video and exp_id
            found[name] = sum(placed.absence(sample) is None for sample in dataset)
        else:
            found[name] = 0
    present = [name for name, number in found.items() if number]
    if len(present) == 1:
        return present[0]
    if not present and run_folder(predicted.root) is not None:
        return "position"  # the masks are gone, which the survey tells
    if present:
        raise DataError(
            f"{pred}: folders of both layouts are there ({', '.join(f'{n} {name}' for name, n in found.items())}); "
            "name one with --layout"
        )
    sample = dataset[0]
    names = " nor ".join(place(sample) for place in _layouts(dataset).values())
    raise DataError(f"{pred}: holds no prediction of any expression: neither {names}, say; is it the right folder?")


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "eval.reasonvos",
        __doc__,
        gt="ReasonVOS root, the folder that holds meta_expressions.json",
        pred="run folder, folder of masks in one of the layouts, or file of RLEs",
    )
    parser.add_argument("--layout", choices=get_args(LayoutName), default="auto", help="default: the one that exists")
    return command.run(evaluate, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
