"""One page that lays several runs over the same samples side by side: base, SFT, GRPO.

    python -m inference.compare runs/base runs/sft runs/grpo --gt ROOT --names base SFT GRPO \\
        --out runs/compared --curves runs/grpo/curves.png

writes ``comparison.html``, a single file that needs no network, and ``comparison.json``, and prints the table. Every
run must be scored first: ``python -m eval.revos --gt ROOT --pred RUN --out RUN/scores``. Differences are to the first
run; the examples are those on which the last run gains most over it, some typical ones, and some on which it loses.

ReVOS alone can be compared so far. Two runs are comparable if they were predicted from and scored on the same ground
truth (its hashes say so), by the same protocol, and over the same expressions.
"""

from __future__ import annotations

import argparse
import base64
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eval import answers, scores_file
from eval.predictions import open_predictions
from eval.results import Row
from inference.report import pictures, render, tables
from inference.report.pictures import FrameStyles, Picture
from inference.report.run import Outcome, find_sample, open_run
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders with scores, two or more")
    parser.add_argument("--gt", type=Path, required=True, metavar="ROOT", help="data set with the truth")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs, in order; default: their folders'")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for comparison.html and .json")
    parser.add_argument("--curves", type=Path, nargs="+", default=[], metavar="PNG", help="what verl.plot drew")
    parser.add_argument("--examples", type=int, default=12, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if not where the runs had it"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    names = _names(args)
    curves = [_curves(path) for path in args.curves]
    scored_runs = open_scored_runs(args.runs, names, gt=args.gt, split=args.split)
    dataset = scored_runs[0].run.open_data(args.gt, split=args.split, image_root=args.image_root)
    check_same(scored_runs, dataset)
    found = list(tqdm(entries(scored_runs, dataset), total=len(scored_runs[0].results.rows), unit="exp", disable=None))
    if not found:
        raise DataError(f"{args.runs[0]}: the run has no predictions yet; finish it")
    examples = tables.choose(found, args.examples)
    with_target = sum(entry.targets > 0 for entry in found)
    parts = render(
        "comparison",
        largest=LARGEST,
        longest_reply=LONGEST_REPLY,
        title=" → ".join(names),
        subtitle=f"ReVOS · {args.split} · {len(found)} expressions, {with_target} of them with a target",
        curves=curves,
        cards=make_cards(scored_runs, dataset, examples),
        **tables.page_tables(scored_runs, found),
    )
    output = args.out / "comparison.html"
    atomic.write_parts(output, parts)
    shown = [{"sample": e.entry.sample.key, "kind": e.kind, "jf": [row.jf for row in e.entry.rows]} for e in examples]
    atomic.write_json(args.out / "comparison.json", {**tables.document(scored_runs, found), "examples": shown})
    print(tables.text(names, tables.measures(scored_runs, found), len(found)))
    print(f"\n{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")


def _names(args: argparse.Namespace) -> list[str]:
    """Checks the options, and returns the name of each run."""
    if len(args.runs) < 2:
        raise DataError(f"a comparison wants two runs or more, found {len(args.runs)}; inference.report shows one")
    if args.examples < 0:
        raise DataError(f"--examples must be 0 or more, found {args.examples}")
    names = args.names or [path.resolve().name for path in args.runs]
    if len(names) != len(args.runs):
        raise DataError(f"--names has {len(names)} names for {len(args.runs)} runs; give one for each")
    if len(set(names)) < len(names):
        raise DataError(f"two runs have the same name among {', '.join(names)}; give different --names")
    return names


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


def open_scored_runs(paths: Sequence[Path], names: Sequence[str], *, gt: Path, split: str) -> list[ScoredRun]:
    """Opens the runs with their scores. An error names the command to run, with `gt` and `split`."""
    scored_runs = []
    for path, name in zip(paths, names, strict=True):
        run = open_run(path)
        dataset = run.settings.get("dataset")
        if dataset != "revos":
            raise DataError(
                f"{path}: a run of {dataset!r}, and ReVOS alone can be laid side by side here; several runs of another "
                "benchmark: python -m inference.report RUN RUN --gt ROOT (a page), python -m eval.table (the numbers)"
            )
        if run.settings.get("split") != split:
            raise DataError(
                f"{path}: the run is of the split {run.settings.get('split')!r}, not {split!r}; see --split"
            )
        words = ["python", "-m", "eval.revos", "--gt", gt, "--pred", run.path, "--out", run.path / "scores"]
        if split != "valid":
            words += ["--split", split]
        if run.settings.get("meta") is not None:
            words += ["--meta", run.settings["meta"]]
        scored_runs.append(
            ScoredRun(name, run, scores_file.read(path / "scores", remedy=f"run: {shlex.join(map(str, words))}"))
        )
    return scored_runs


def check_same(scored_runs: Sequence[ScoredRun], dataset: Dataset) -> None:
    """Raises a DataError that says in what the runs differ, unless they are over the same samples of `dataset`."""
    truth = {name: sha256(path) for name, path in dataset.files.items() if path.is_file()}
    first = scored_runs[0]
    for scored_run in scored_runs:
        _check_data(scored_run, truth, dataset)
        ours, theirs = _protocol(scored_run), _protocol(first)
        if ours != theirs:
            raise DataError(
                f"{scored_run.run.path}: scored with {ours}, {first.run.path} with {theirs}; score both the same way"
            )
    keys = [_keys(scored_run) for scored_run in scored_runs]
    for scored_run, found in zip(scored_runs, keys, strict=True):
        if found != keys[0]:
            raise DataError(
                f"{scored_run.run.path}: not over the same samples as {first.run.path}: {_difference(keys[0], found)}"
            )


def _check_data(scored_run: ScoredRun, truth: Mapping[str, str], dataset: Dataset) -> None:
    """Checks that the run was predicted from and scored on the files of `dataset`, whose hashes are `truth`."""
    scored, predicted = scored_run.results.gt_sha256, scored_run.run.settings.get("meta_sha256")
    for name in sorted({*scored, *truth}):
        if scored.get(name) != truth.get(name):
            file = dataset.files[name].name if name in dataset.files else repr(name)
            raise DataError(
                f"{scored_run.run.path}: scored on another data set: the hash of {file} is {_short(scored.get(name))} "
                f"in its scores and {_short(truth.get(name))} in --gt"
            )
    if predicted is not None and predicted != truth["meta"]:
        raise DataError(
            f"{scored_run.run.path}: predicted from another expression file than {dataset.files['meta']}: its hash is "
            f"{_short(predicted)} in run.json and {_short(truth['meta'])} there"
        )
    if scored_run.results.split != dataset.split:
        raise DataError(
            f"{scored_run.run.path / 'scores'}: of the split {scored_run.results.split!r}, not {dataset.split!r}"
        )


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


def _protocol(scored_run: ScoredRun) -> str:
    results = scored_run.results
    return f"--robustness {results.protocol.get('robustness')} --missing {results.missing_policy}"


def _keys(scored_run: ScoredRun) -> list[str]:
    """Lists the keys of the run's samples in data-set order, and checks that its scores are of its predictions."""
    path = scored_run.run.path
    predicted = [outcome.key for outcome in scored_run.run.outcomes()]
    scored = [row.key for row in scored_run.results.rows]
    absent = {problem.sample for problem in scored_run.results.missing} & set(predicted)
    if absent:
        raise DataError(
            f"{path / 'scores'}: {len(absent)} predictions had no masks when they were scored, such as {min(absent)}; "
            "put the masks back or predict again, and score again"
        )
    if scored != predicted:
        raise DataError(
            f"{path}: its scores are not of its predictions: {_difference(predicted, scored)}; finish the run and "
            "score it again (with --missing skip if it is of a part of the split)"
        )
    return predicted


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
        yield Entry(
            sample=sample,
            rows=scores,
            answers=tuple(
                answers.judge(
                    tracks,
                    frame_ids=outcome.frame_ids,
                    keyframe=outcome.keyframe,
                    boxes=outcome.boxes,
                    reply=outcome.reply,
                )
                for outcome in said
            ),
            problems=tuple(outcome.problem for outcome in said),
        )


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
    frames: tuple[Picture, ...]
    notes: tuple[str, ...]
    """What could not be read, in words."""


@dataclass(frozen=True)
class Card:
    """The part of the page that shows one example."""

    number: int
    sample: VideoSample
    kind: str
    change: float
    runs: tuple[Answer, ...]
    rules: str
    """CSS rules of the frames that no earlier card has shown."""


def make_cards(scored_runs: Sequence[ScoredRun], dataset: Dataset, examples: Sequence[Example]) -> Iterator[Card]:
    """Draws the examples one at a time."""
    wanted = {example.entry.sample.key for example in examples}
    outcomes = [{o.key: o for o in scored_run.run.outcomes() if o.key in wanted} for scored_run in scored_runs]
    predictions = [open_predictions(scored_run.run.path) for scored_run in scored_runs]
    styles_by_video: dict[str, FrameStyles] = {}
    for number, example in enumerate(examples):
        entry, sample = example.entry, example.entry.sample
        tracks = dataset.object_rles(sample)
        styles = styles_by_video.setdefault(sample.video, FrameStyles(sample, len(styles_by_video)))
        further = further_frames(len(sample))
        runs, shown = [], set(further)
        for i, scored_run in enumerate(scored_runs):
            outcome, notes = outcomes[i][sample.key], []
            frame_ids = dict.fromkeys((*further, *([] if outcome.keyframe is None else [outcome.keyframe])))
            drawn = {
                t: pictures.picture(predictions[i], sample, t, styles=styles, tracks=tracks, notes=notes)
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
                    frames=tuple(drawn[t] for t in further),
                    notes=tuple(dict.fromkeys(notes)),
                )
            )
        yield Card(number, sample, example.kind, entry.change, tuple(runs), styles.new_rules(sorted(shown)))


def further_frames(length: int) -> tuple[int, ...]:
    """Takes frame ids at the middles of equal parts of a video of `length` frames; fewer where it has fewer."""
    n = min(FURTHER_FRAMES, length)
    return tuple((2 * i + 1) * length // (2 * n) for i in range(n))
