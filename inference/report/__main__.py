"""One page to look at a run: scores, problems, times, and a card per expression with its frames drawn.

    python -m inference.report runs/veason-3b --gt ROOT

writes ``runs/veason-3b/report.html``, a single file that needs no network. Predictions are filled, truth is outlined;
cards can be sorted and filtered. The scores are those of the benchmark's evaluator (``python -m eval.revos`` and so
on), computed when the page is made.
Further run folders are compared in a table; the cards are of the first. Without ``--gt`` there are no scores and no
truth, and the videos are looked for where the run found them.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.predictions import open_predictions
from eval.results import OVERALL, REVOS_TYPES, Results, Row
from inference.report import pictures, render
from inference.report.pictures import FrameStyles, Picture
from inference.report.run import Outcome, Run, evaluator, find_sample, known_frames, open_run
from veason import atomic, datasets
from veason.answer import REPAIRS
from veason.command import run_command
from veason.errors import DataError
from veason.safe_text import printable
from veason.types import Box, VideoSample


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder; the cards show the first one")
    parser.add_argument(
        "--gt", type=Path, metavar="ROOT", help="data set with ground truth; without it there are no scores"
    )
    parser.add_argument("--split", help="default: the split of the run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the (first) run folder")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="show cards for the first N expressions; scores are of all"
    )
    parser.add_argument(
        "--frames-per-card", type=int, default=6, metavar="N", help="number of frames on a card (default: %(default)s)"
    )
    parser.add_argument(
        "--missing",
        choices=("zero", "skip", "error"),
        default="zero",
        help="expressions without a prediction score zero, are left out, or end the command (default: %(default)s)",
    )
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if it has moved since the run"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="number of scoring processes; default: cores"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.frames_per_card < 1 or args.workers < 1 or (args.limit is not None and args.limit < 1):
        raise DataError("--frames-per-card, --workers and --limit must be at least 1")
    runs = [open_run(path) for path in args.runs]
    dataset = runs[0].open_data(args.gt, split=args.split, image_root=args.image_root)
    scores: list[Results | None] = [None] * len(runs)
    if args.gt:
        scores = [
            evaluator(run, remedy="leave out --gt").evaluate(
                args.gt,
                run.path,
                split=args.split or run.settings.get("split"),
                meta=run.meta,
                missing=args.missing,
                workers=args.workers,
            )
            for run in runs
        ]
    values = summarise(runs, scores, cards=args.limit)
    total = min(values["count"], args.limit or sys.maxsize)
    cards = make_cards(runs[0], dataset, scores[0], total=total, frames_per_card=args.frames_per_card)
    output = args.output or runs[0].path / "report.html"
    progress = tqdm(cards, total=total, unit="exp", disable=None, desc="cards")
    atomic.write_parts(output, render("run", cards=progress, **values))
    print(f"{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")


def summarise(runs: Sequence[Run], scores: Sequence[Results | None], *, cards: int | None) -> dict[str, Any]:
    """Gathers what the template shows above the cards, which are of the first run: its first `cards`, or all."""
    run, found = runs[0], scores[0]
    settings, problems = run.settings, run.problems()
    count = problems.total()

    warnings: list[tuple[str, list[str]]] = []
    planned = settings.get("samples")
    if isinstance(planned, int) and planned > count:
        warnings.append((f"The run is not finished: {count} of {planned} expressions are predicted.", []))
    if found is not None and found.missing:
        effect = "left out" if found.missing_policy == "skip" else "scored as zero"
        text = f"Expressions of the split without a complete prediction, {effect}: {len(found.missing)}"
        warnings.append((text, [f"{p.sample}: {p.reason}" for p in found.missing]))
    if found is not None and found.errors:
        text = f"Expressions that could not be scored and are in no mean: {len(found.errors)}"
        warnings.append((text, [f"{p.sample}: {p.reason}" for p in found.errors]))

    table = None
    if found is not None:
        measures = [column for column in ("JF", "J", "F", "A", "R") if column in found.columns]
        words = {
            name.replace("_", " "): ", ".join(f"{k} in {n}" for k, n in value.items())
            if isinstance(value, dict)
            else value
            for name, value in found.protocol.items()
        }
        table = {
            "header": ("", "n", *("J&F" if column == "JF" else column for column in measures)),
            "rows": [
                (group, len(found.members(group)), *(found.mean(group, column) for column in measures))
                for group in sorted(found.groups, key=lambda group: group == "absent")
            ],
            "protocol": "; ".join(f"{name}: {value}" for name, value in words.items()),
        }

    listed = [("none", problems[None]), *((name, n) for name, n in problems.most_common() if name is not None)]
    facts = {
        name: "–" if value is None else " × ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in {**settings, **run.versions}.items()
    }
    named = (settings.get(name) for name in ("dataset", "split", "policy", "model", "tracker"))
    subtitle = [*(str(value) for value in named if value is not None), f"{count} expressions"]
    if cards is not None and cards < count:
        subtitle.append(f"the first {cards} shown")
    return {
        "title": run.path.resolve().name,
        "subtitle": " · ".join(subtitle),
        "warnings": warnings,
        "compared": _compare(runs, scores) if len(runs) > 1 else None,
        "scores": table,
        "problem_rows": [(name, n, f"{100 * n / count:.1f} %" if count else None) for name, n in listed],
        "repairs": [(REPAIRS.get(name, name), n) for name, n in run.repairs().most_common()],
        "seconds": {stage: float(mean) for stage, mean in run.seconds().items()},
        "facts": facts,
        "type_names": list(REVOS_TYPES) if settings.get("dataset") == "revos" else [],
        "count": count,
        "problem_counts": problems,
    }


def _compare(runs: Sequence[Run], scores: Sequence[Results | None]) -> tuple[list[str], list[list[Any]]]:
    """Makes the (header, rows) of the table of runs: J&F of the groups with a target, and R of all if there is one."""
    columns = []
    if scores[0] is not None:
        columns = [(group, "JF") for group in scores[0].groups if group != "absent"]
        columns += [(OVERALL, "R")] if "R" in scores[0].columns else []
    header = ["run", "expressions", "without a problem", "seconds each"]
    header += [f"{'J&F' if column == 'JF' else column} {group}" for group, column in columns]
    rows: list[list[Any]] = []
    for run, found in zip(runs, scores, strict=True):
        problems, seconds = run.problems(), run.seconds()
        row = [run.path.resolve().name, problems.total(), problems[None]]
        row.append(float(sum(seconds.values())) if seconds else None)
        rows.append([*row, *(None if found is None else found.mean(*place) for place in columns)])
    return header, rows


@dataclass(frozen=True)
class Card:
    """The part of the page that shows one expression."""

    number: int
    """Place in the run, from 0."""
    sample: VideoSample
    outcome: Outcome
    row: Row | None
    """Scores; None where there are none."""
    keyframe: Picture | None
    """The keyframe without masks, for the boxes."""
    true_boxes: tuple[Box, ...]
    """Boxes on the keyframe, in video pixels."""
    frames: tuple[Picture, ...]
    notes: tuple[str, ...]
    """Messages about files and masks that could not be read or scored."""
    rules: str
    """CSS rules of the frames that no earlier card has shown."""


def make_cards(
    run: Run, dataset: datasets.Dataset, scores: Results | None, *, total: int, frames_per_card: int
) -> Iterator[Card]:
    """Makes the first `total` cards of a run one at a time; no pixels are held between two of them."""
    rows = {row.key: row for row in scores.rows} if scores else {}
    predictions = open_predictions(run.path)
    samples = {sample.key: sample for sample in dataset}
    lost = {p.sample: p.reason for p in (*scores.missing, *scores.errors)} if scores else {}
    styles_by_video: dict[str, FrameStyles] = {}
    for number, outcome in zip(range(total), run.outcomes(), strict=False):
        sample = find_sample(samples, outcome, run=run.path, dataset=dataset)
        styles = styles_by_video.setdefault(sample.video, FrameStyles(sample, len(styles_by_video)))
        notes: list[str] = []
        if sample.key in lost:
            notes.append(f"Not scored as predicted: {lost[sample.key]}")
        tracks = pictures.read_or_note(functools.partial(dataset.object_rles, sample), notes) if scores else None
        known = frozenset() if tracks is None else known_frames(dataset, sample, tracks)
        shown = pictures.sample_frames(len(sample), frames_per_card, keyframe=outcome.keyframe)
        drawn = [
            pictures.picture(predictions, sample, t, styles=styles, tracks=tracks if t in known else None, notes=notes)
            for t in shown
        ]
        keyframe = outcome.keyframe
        drawing = pictures.fit(sample.size, pictures.DRAWING)
        yield Card(
            number=number,
            sample=sample,
            outcome=outcome,
            row=rows.get(sample.key),
            keyframe=None if keyframe is None else Picture(keyframe, styles.css_class(keyframe), drawing),
            true_boxes=pictures.true_boxes(tracks, keyframe),
            frames=tuple(drawn),
            notes=tuple(dict.fromkeys(notes)),
            rules=styles.new_rules(shown),
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
