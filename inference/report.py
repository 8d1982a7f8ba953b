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
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from inference import report_page as page
from inference import report_scores
from inference.report_cards import CardMaker
from inference.report_run import Run, open_run
from inference.report_scores import Scores
from inference.report_summary import summarise
from veason import atomic, datasets
from veason.command import run_command
from veason.errors import DataError
from veason.safe_text import printable


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder; cards are made of the first")
    parser.add_argument("--gt", type=Path, metavar="ROOT", help="data set with the truth; without it nothing is scored")
    parser.add_argument("--split", help="default: the split of the run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the (first) run folder")
    parser.add_argument("--limit", type=int, metavar="N", help="cards for the first N expressions; scores are of all")
    parser.add_argument("--frames-per-card", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--missing",
        choices=("zero", "skip", "error"),
        default="zero",
        help="expressions of the split without a prediction (default: %(default)s)",
    )
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos, if not where the run had it"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that score; default: cores"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.frames_per_card < 1 or args.workers < 1 or (args.limit is not None and args.limit < 1):
        raise DataError("--frames-per-card, --workers and --limit must be at least 1")
    runs = [open_run(path) for path in args.runs]
    dataset = open_data(runs[0], args)
    scores = [_evaluate(run, args) for run in runs] if args.gt else [None] * len(runs)
    cards = _cards(runs[0], dataset, scores[0], args)
    output = args.output or runs[0].path / "report.html"
    parts = page.page(summarise(runs, scores, cards=args.limit), cards)
    atomic.write_parts(output, (part.encode("utf-8", "replace") for part in parts))
    print(f"{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")


def open_data(run: Run, args: argparse.Namespace) -> datasets.Dataset:
    """The data set that a run was made of, below ``--gt`` or where the run found it."""
    settings = run.settings
    wanted = {name: settings.get(name) for name in ("dataset", "data_root", "split")}
    if not all(isinstance(value, str) for value in wanted.values()):
        raise DataError(f"{run.path / 'run.json'}: settings must name {', '.join(wanted)}, found {wanted}")
    images = args.image_root or settings.get("image_root")
    return datasets.open_dataset(
        wanted["dataset"],
        args.gt or wanted["data_root"],
        split=args.split or wanted["split"],
        image_root=images,
        meta=_subset(run),
    )


def _subset(run: Run) -> str | None:
    """The expression file that the run was given, if it is still there."""
    meta = run.settings.get("meta")
    return meta if isinstance(meta, str) and Path(meta).is_file() else None


def _evaluate(run: Run, args: argparse.Namespace) -> Scores:
    split = args.split or run.settings.get("split")
    options = {"split": split, "meta": _subset(run), "missing": args.missing, "workers": args.workers}
    return report_scores.evaluate(run, gt=args.gt, **options)


def _cards(run: Run, dataset: datasets.Dataset, scores: Scores | None, args: argparse.Namespace) -> Iterator[str]:
    """The HTML of the cards, each with the frames that no card before it has shown."""
    maker = CardMaker(run, dataset, scores, frames_per_card=args.frames_per_card)
    total = min(sum(run.problems().values()), args.limit or sys.maxsize)
    with tqdm(total=total, unit="exp", disable=None, desc="cards") as bar:
        for number, outcome in enumerate(run.outcomes()):
            if number == total:
                return
            made, rules = maker.make(number, outcome)
            yield f"<style>{rules}</style>\n" if rules else ""
            yield page.card(made)
            bar.update()


if __name__ == "__main__":
    sys.exit(run_command(main))
