"""One page that lays several runs over the same samples side by side: base, SFT, GRPO, or the steps of a training.

    python -m inference.compare runs/base runs/sft runs/grpo --gt ROOT --names base SFT GRPO \\
        --out runs/compared --curves runs/grpo/curves.png

writes ``comparison.html``, a single file that needs no network, and ``comparison.json``, and prints the table. Every
run must be scored first by the evaluator of its benchmark, such as ``python -m eval.revos --gt ROOT --pred RUN --out
RUN/scores``. Differences are to the first run; the examples are those on which the last run gains most over it, some
typical ones, and some on which it loses.

    python -m inference.compare runs/step_* --gt ROOT --out runs/steps --steps --training runs/grpo

takes runs of checkpoints of one training, in the order of their steps, and writes ``steps.html`` and ``steps.json``:
scores by step as curves, beside those of ``metrics.jsonl``, and each example as the policy answered it at every step.

Two runs are comparable if they were predicted from and scored on the same ground truth (its hashes say so), by the
same protocol, and over the same expressions.
"""

from __future__ import annotations

import argparse
import base64
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from eval import answers, scores_file
from eval.predictions import open_predictions
from eval.results import Row
from inference.report import pictures, render, tables
from inference.report.pictures import FrameStyles, Picture
from inference.report.run import Outcome, Run, find_sample, known_frames, open_run, read_lines, read_scores
from inference.report.tables import Entry, Example, ScoredRun
from veason import atomic
from veason.datasets.base import Dataset, sha256
from veason.errors import DataError
from veason.files import check_regular
from veason.safe_text import printable
from veason.types import Box, VideoSample

LISTED = 5
"""The number of samples that an error message names."""
FURTHER_FRAMES = 3
"""The number of frames beside the keyframe, which are the same for every run."""
LARGEST = 8_000_000
"""Bytes of a page; examples end where the next one would go beyond."""
LONGEST_REPLY = 8_000
"""Characters of a reply that are shown."""
LARGEST_CURVES = 600_000
"""Bytes of a picture of curves that is taken as it is; a larger one is shrunk to `CURVES_WIDTH`."""
CURVES_WIDTH = 1600
LAST_STEP = 10**9
"""A step beyond any training."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders with scores, two or more")
    parser.add_argument("--gt", type=Path, required=True, metavar="ROOT", help="data set with ground truth")
    parser.add_argument("--split", help="default: the split of the first run")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="names of the runs, in order; default: the names of their folders"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="output folder of the HTML and the JSON file"
    )
    parser.add_argument(
        "--curves", type=Path, nargs="+", default=[], metavar="PNG", help="pictures of curves that verl.plot drew"
    )
    parser.add_argument(
        "--examples", type=int, default=12, metavar="N", help="number of examples (default: %(default)s)"
    )
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if it has moved since the runs"
    )
    steps = parser.add_argument_group("steps of one training run")
    steps.add_argument(
        "--steps",
        type=int,
        nargs="*",
        metavar="N",
        help="compare checkpoints of one training run, saved after these steps, in order; without numbers the steps "
        "are taken from the names of the checkpoints or the run folders, such as step_000120",
    )
    steps.add_argument(
        "--training", type=Path, metavar="FOLDER", help="folder of the training run whose metrics.jsonl is shown, too"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if len(args.runs) < 2:
        raise DataError(f"a comparison wants two runs or more, found {len(args.runs)}; inference.report shows one")
    if args.examples < 0:
        raise DataError(f"--examples must be 0 or more, found {args.examples}")
    if args.training and args.steps is None:
        raise DataError("--training goes with --steps: its metrics stand beside runs of its checkpoints")
    runs = [open_run(path) for path in args.runs]
    steps: list[int | None] = [None] * len(runs)
    if args.steps is not None:
        given: list[int] = args.steps or [step_of(run) for run in runs]
        if not all(0 <= step <= LAST_STEP for step in given):
            raise DataError(f"--steps must be from 0 to {LAST_STEP}, found {', '.join(map(str, given))}")
        steps = [*given]
        check_count("--steps", steps, runs)
    names = args.names or [
        run.path.resolve().name if step is None else f"step {step}" for run, step in zip(runs, steps, strict=True)
    ]
    check_count("--names", names, runs)
    split = args.split or runs[0].settings.get("split")
    for run in runs:
        for name, wanted in (("dataset", runs[0].settings.get("dataset")), ("split", split)):
            if run.settings.get(name) != wanted:
                raise DataError(
                    f"{run.path}: the run is of the {name} {run.settings.get(name)!r}, not {wanted!r}; compare runs "
                    "of one data set and one split (--split)"
                )
    scored_runs = [
        ScoredRun(name, run, read_scores(run, gt=args.gt), step)
        for name, run, step in zip(names, runs, steps, strict=True)
    ]
    if args.steps is not None:
        scored_runs.sort(key=lambda scored_run: scored_run.step or 0)
    curves = [_curves(path) for path in args.curves]
    training = read_metrics(args.training) if args.training else {}
    dataset = runs[0].open_data(args.gt, split=split, image_root=args.image_root)
    check_same(scored_runs, dataset)
    count = len(scored_runs[0].results.rows)
    found = list(tqdm(entries(scored_runs, dataset), total=count, unit="exp", disable=None))
    if not found:
        raise DataError(f"{args.runs[0]}: the run has no predictions yet; finish it")
    examples = tables.choose(found, args.examples)
    with_target = sum(entry.targets > 0 for entry in found)
    names = [scored_run.name for scored_run in scored_runs]
    page = "comparison" if args.steps is None else "steps"
    parts = render(
        page,
        largest=LARGEST,
        longest_reply=LONGEST_REPLY,
        title=f"{args.training.resolve().name}: {names[0]} to {names[-1]}" if args.training else " → ".join(names),
        subtitle=(
            f"{scored_runs[0].results.benchmark} · {split} · {len(found)} expressions, "
            f"{with_target} of them with a target"
        ),
        curves=curves,
        charts=[] if args.steps is None else tables.step_charts(scored_runs, found, training),
        cards=make_cards(scored_runs, dataset, examples, further=FURTHER_FRAMES if args.steps is None else 0),
        **tables.page_tables(scored_runs, found),
    )
    output = args.out / f"{page}.html"
    atomic.write_parts(output, parts)
    shown = [{"sample": e.entry.sample.key, "kind": e.kind, "jf": [row.jf for row in e.entry.rows]} for e in examples]
    atomic.write_json(args.out / f"{page}.json", {**tables.document(scored_runs, found), "examples": shown})
    print(tables.text(scored_runs, found))
    print(f"\n{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")


def check_count(option: str, values: Sequence[Any], runs: Sequence[Run]) -> None:
    """Checks that an option gives each run a value of its own."""
    if len(values) != len(runs):
        raise DataError(f"{option} has {len(values)} {option[2:]} for {len(runs)} runs; give one for each")
    if len(set(values)) < len(values):
        told = ", ".join(map(str, values))
        raise DataError(f"two runs have the same {option[2:-1]} among {told}; give different {option}")


def step_of(run: Run) -> int:
    """Reads the training step of a run from the name of its checkpoint or, failing that, of its folder."""
    model = run.settings.get("model")
    for name in (Path(model).name if isinstance(model, str) else "", run.path.resolve().name):
        found = re.search(r"step[_-]?(\d{1,9})(?!\d)", name)
        if found:
            return int(found[1])
    raise DataError(
        f"{run.path}: neither the model {str(model)[:80]!r} nor the folder names a step, such as step_000120; give "
        "--steps a number for each run"
    )


def read_metrics(training: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the curves of a training folder's ``metrics.jsonl``: (step, value) by name, in order of steps.

    Values that are no finite numbers are left out.
    """
    path = training / "metrics.jsonl"
    if not path.exists():
        raise DataError(f"{path}: no such file; --training takes the run folder of verl.trainer.main")
    records = {}
    for number, record in enumerate(read_lines(path, remedy="copy it again from the training"), start=1):
        step = record.get("step")
        if type(step) is not int or not 0 <= step <= LAST_STEP:
            raise DataError(
                f"{path}:{number}: expected a step, a whole number, found {str(step)[:80]!r}; copy the file again from "
                "the training"
            )
        records[step] = record
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(records):
        for name, value in records[step].items():
            if name != "step" and type(value) in (int, float) and abs(value) <= pictures.Chart.LARGEST:
                curves.setdefault(name, []).append((step, float(value)))
    return curves


def _curves(path: Path) -> str:
    """Encodes a PNG file as a data URI; a large one is shrunk."""
    check_regular(path, hint="--curves takes what verl.plot wrote")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --curves takes what verl.plot wrote") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data.startswith(b"\x89PNG") else None
    if image is None:
        raise DataError(f"{path}: not a PNG file; --curves takes what verl.plot wrote")
    if len(data) <= LARGEST_CURVES:
        return "data:image/png;base64," + base64.b64encode(data).decode()
    scale = min(1.0, CURVES_WIDTH / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ok, packed = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 80])
    if not ok:
        raise DataError(f"{path}: a picture of {image.shape[1]} x {image.shape[0]} pixels is too large for the page")
    return "data:image/webp;base64," + base64.b64encode(packed.tobytes()).decode()


def check_same(scored_runs: Sequence[ScoredRun], dataset: Dataset) -> None:
    """Raises a DataError that says in what the runs differ, unless they are over the same samples of `dataset`."""
    truth = {name: sha256(path) for name, path in dataset.files.items() if path.is_file()}
    first_keys: list[str] = []
    for scored_run in scored_runs:
        path, scored = scored_run.run.path, scored_run.results.gt_sha256
        for name, digest in truth.items():
            if scored.get(name) != digest:
                raise DataError(
                    f"{path}: scored on another data set: the hash of {dataset.files[name].name} is "
                    f"{_short(scored.get(name))} in its scores and {_short(digest)} in --gt"
                )
        predicted_from = scored_run.run.settings.get("meta_sha256")
        if predicted_from is not None and predicted_from != truth["meta"]:
            raise DataError(
                f"{path}: predicted from another expression file than {dataset.files['meta']}: its hash is "
                f"{_short(predicted_from)} in run.json and {_short(truth['meta'])} there"
            )
        if scored_run.results.split != dataset.split:
            raise DataError(f"{path}: its scores are of the split {scored_run.results.split!r}, not {dataset.split!r}")
        predicted = [outcome.key for outcome in scored_run.run.outcomes()]
        rows = [row.key for row in scored_run.results.rows]
        absent = {problem.sample for problem in scored_run.results.missing} & set(predicted)
        if absent:
            raise DataError(
                f"{path}: {len(absent)} predictions had no masks when they were scored, such as {min(absent)}; put the "
                "masks back or predict again, and score again"
            )
        if rows != predicted:
            raise DataError(
                f"{path}: its scores are not of its predictions: {_difference(predicted, rows)}; finish the run and "
                "score it again (with --missing skip if it is of a part of the split)"
            )
        first_keys = first_keys or predicted
        if predicted != first_keys:
            raise DataError(
                f"{path}: not over the same samples as {scored_runs[0].run.path}: {_difference(first_keys, predicted)}"
            )
    scores_file.check_comparable([scores_file.Scores(one.name, one.run.path, one.results) for one in scored_runs])


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Says in words what two lists of samples do not share."""
    more, less = sorted({*theirs} - {*ours}), sorted({*ours} - {*theirs})
    if not more and not less:
        return "the same samples in another order, or some twice"
    parts = [f"{len(keys)} {what} ({', '.join(keys[:LISTED])})" for what, keys in (("more", more), ("missing", less))]
    return ", ".join(part for part, keys in zip(parts, (more, less), strict=True) if keys)


def entries(scored_runs: Sequence[ScoredRun], dataset: Dataset) -> Iterator[Entry]:
    """Joins what the runs made of each expression, in data-set order; the runs have passed `check_same`."""
    samples = {sample.key: sample for sample in dataset}
    rows = zip(*(scored_run.results.rows for scored_run in scored_runs), strict=True)
    outcomes = zip(*(scored_run.run.outcomes() for scored_run in scored_runs), strict=True)
    for scores, said in zip(rows, outcomes, strict=True):
        for scored_run, outcome in zip(scored_runs, said, strict=True):
            sample = find_sample(samples, outcome, run=scored_run.run.path, dataset=dataset)
        tracks = dataset.object_rles(sample)
        known = known_frames(dataset, sample, tracks)
        qualities = []
        for outcome in said:
            quality = answers.judge(
                tracks,
                frame_ids=outcome.frame_ids,
                keyframe=outcome.keyframe,
                boxes=outcome.boxes,
                reply=outcome.reply,
            )
            if quality.usable and outcome.keyframe not in known:
                quality = replace(quality, keyframe_ratio=math.nan, box_iou=math.nan)
            qualities.append(quality)
        yield Entry(sample, scores, tuple(qualities), tuple(outcome.problem for outcome in said))


@dataclass(frozen=True)
class Answer:
    """The part of an example that shows one run."""

    name: str
    outcome: Outcome
    row: Row
    quality: answers.Quality
    change: float | None
    """J&F less that of the first run; None for the first."""
    keyframe: Picture | None
    """The keyframe with masks; None without a usable answer."""
    true_boxes: tuple[Box, ...]
    """Boxes on the keyframe, in video pixels."""
    truth_known: bool
    """True if the keyframe has ground truth."""
    frames: tuple[Picture, ...]
    notes: tuple[str, ...]
    """Messages about files that could not be read."""


@dataclass(frozen=True)
class Card:
    """The part of the page that shows one example."""

    number: int
    sample: VideoSample
    group: str | None
    """The part of the data set that the expression is in."""
    kind: str
    change: float
    runs: tuple[Answer, ...]
    rules: str
    """CSS rules of the frames that no earlier card has shown."""


def make_cards(
    scored_runs: Sequence[ScoredRun], dataset: Dataset, examples: Sequence[Example], *, further: int
) -> Iterator[Card]:
    """Draws the examples one at a time; `further`: the number of frames beside the keyframe."""
    wanted = {example.entry.sample.key for example in examples}
    outcomes = [{o.key: o for o in scored_run.run.outcomes() if o.key in wanted} for scored_run in scored_runs]
    predictions = [open_predictions(scored_run.run.path) for scored_run in scored_runs]
    styles_by_video: dict[str, FrameStyles] = {}
    for number, example in enumerate(examples):
        entry, sample = example.entry, example.entry.sample
        tracks = dataset.object_rles(sample)
        known = known_frames(dataset, sample, tracks)
        styles = styles_by_video.setdefault(sample.video, FrameStyles(sample, len(styles_by_video)))
        others = further_frames(len(sample), further)
        runs, shown = [], set(others)
        for i, scored_run in enumerate(scored_runs):
            outcome = outcomes[i][sample.key]
            notes: list[str] = []
            frame_ids = dict.fromkeys((*others, *([] if outcome.keyframe is None else [outcome.keyframe])))
            drawn = {
                t: pictures.picture(
                    predictions[i], sample, t, styles=styles, tracks=tracks if t in known else None, notes=notes
                )
                for t in frame_ids
            }
            shown |= drawn.keys()
            runs.append(
                Answer(
                    name=scored_run.name,
                    outcome=outcome,
                    row=entry.rows[i],
                    quality=entry.answers[i],
                    change=entry.rows[i].jf - entry.rows[0].jf if i else None,
                    keyframe=None if outcome.keyframe is None else drawn[outcome.keyframe],
                    true_boxes=pictures.true_boxes(tracks, outcome.keyframe),
                    truth_known=outcome.keyframe in known,
                    frames=tuple(drawn[t] for t in others),
                    notes=tuple(dict.fromkeys(notes)),
                )
            )
        yield Card(
            number=number,
            sample=sample,
            group=entry.rows[0].group,
            kind=example.kind,
            change=entry.change,
            runs=tuple(runs),
            rules=styles.new_rules(sorted(shown)),
        )


def further_frames(length: int, n: int) -> tuple[int, ...]:
    """Takes `n` frame ids at the middles of equal parts of a video of `length` frames; fewer where it has fewer."""
    n = min(n, length)
    return tuple((2 * i + 1) * length // (2 * n) for i in range(n))
