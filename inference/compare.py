"""One page that lays several runs over the same samples side by side: base, SFT, GRPO.

    python -m inference.compare runs/base runs/sft runs/grpo --gt ROOT --names base SFT GRPO \\
        --out runs/compared --curves runs/grpo/curves.png

writes ``comparison.html``, a single file that needs no network, and ``comparison.json``, and prints the table. Every
run must be scored first: ``python -m eval.revos --gt ROOT --pred RUN --out RUN/scores``. Differences are to the first
run; the examples are those on which the last run gains most over it, some typical ones, and some on which it loses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from eval.predictions import Predictions, open_predictions
from inference import compare_page as page
from inference import compare_tables, report
from inference.compare_examples import Example, choose
from inference.compare_runs import Contender, check_same, entries, open_contenders
from inference.report_cards import picture, true_boxes
from inference.report_pictures import Album
from inference.report_run import Outcome
from veason import atomic
from veason.command import run_command
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.files import check_regular
from veason.safe_text import printable

FURTHER_FRAMES = 3
"""Frames beside the keyframe, the same ones for every run."""
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
    contenders = open_contenders(args.runs, names, gt=args.gt, split=args.split)
    dataset = report.open_data(contenders[0].run, args)
    check_same(contenders, dataset)
    found = list(tqdm(entries(contenders, dataset), total=len(contenders[0].results.rows), unit="exp", disable=None))
    if not found:
        raise DataError(f"{args.runs[0]}: the run has no predictions yet; finish it")
    examples = choose(found, args.examples)
    parts = page.page(
        " → ".join(names),
        _subtitle(contenders[0], sum(entry.targets > 0 for entry in found), len(found)),
        page.summary(contenders, found, curves),
        _cards(contenders, dataset, examples),
    )
    output = args.out / "comparison.html"
    atomic.write_parts(output, (part.encode("utf-8", "replace") for part in parts))
    shown = [{"sample": e.entry.sample.key, "kind": e.kind, "jf": [row.jf for row in e.entry.rows]} for e in examples]
    atomic.write_json(args.out / "comparison.json", {**compare_tables.document(contenders, found), "examples": shown})
    print(compare_tables.text(names, compare_tables.measures(contenders, found), len(found)))
    print(f"\n{printable(output)}: {output.stat().st_size / 1e6:.1f} MB")


def _names(args: argparse.Namespace) -> list[str]:
    """The name of each run, once the options are found to make sense."""
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


def _subtitle(first: Contender, with_target: int, count: int) -> str:
    return f"ReVOS · {first.results.split} · {count} expressions, {with_target} of them with a target"


def _curves(path: Path) -> str:
    """A PNG as a data URI, smaller if it is large."""
    check_regular(path, hint="--curves takes what verl.plot wrote")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --curves takes what verl.plot wrote") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data.startswith(b"\x89PNG") else None
    if image is None:
        raise DataError(f"{path}: not a PNG file; --curves takes what verl.plot wrote")
    if len(data) <= LARGEST_CURVES:
        return page.data_uri(data, "png")
    scale = min(1.0, CURVES_WIDTH / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ok, packed = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 80])
    if not ok:
        raise DataError(f"{path}: a picture of {image.shape[1]} x {image.shape[0]} pixels is too large for the page")
    return page.data_uri(packed.tobytes(), "webp")


def _cards(contenders: Sequence[Contender], dataset: Dataset, examples: Sequence[Example]) -> Iterator[str]:
    """The HTML of the examples, each with the frames that none before it has shown."""
    wanted = {example.entry.sample.key for example in examples}
    said = [{o.key: o for o in contender.run.outcomes() if o.key in wanted} for contender in contenders]
    drawn_from = [open_predictions(contender.run.path) for contender in contenders]
    albums: dict[str, Album] = {}
    for number, example in enumerate(examples):
        sample = example.entry.sample
        album = albums.setdefault(sample.video, Album(sample, len(albums)))
        outcomes = [outcomes[sample.key] for outcomes in said]
        runs = _shown(contenders, drawn_from, dataset, example, outcomes, album)
        frame_ids = [p.frame_id for run in runs for p in (run.keyframe, *run.frames) if p is not None]
        rules = album.new_rules(sorted(set(frame_ids)))
        style = f"<style>{rules}</style>\n" if rules else ""
        yield style + page.card(example, number, runs)


def _shown(
    contenders: Sequence[Contender],
    drawn_from: Sequence[Predictions],
    dataset: Dataset,
    example: Example,
    outcomes: Sequence[Outcome],
    album: Album,
) -> list[page.Shown]:
    """What each run made of an example, drawn."""
    entry = example.entry
    sample, track = entry.sample, dataset.object_rles(entry.sample)
    further = further_frames(len(sample))
    runs = []
    for i, (contender, outcome) in enumerate(zip(contenders, outcomes, strict=True)):
        notes: list[str] = []
        drawn = {
            t: picture(drawn_from[i], sample, t, album=album, track=track, notes=notes)
            for t in dict.fromkeys((*further, *([] if outcome.keyframe is None else [outcome.keyframe])))
        }
        runs.append(
            page.Shown(
                name=contender.name,
                outcome=outcome,
                row=entry.rows[i],
                quality=entry.answers[i],
                change=entry.rows[i].jf - entry.rows[0].jf if i else None,
                keyframe=None if outcome.keyframe is None else drawn[outcome.keyframe],
                true_boxes=true_boxes(track, outcome.keyframe),
                frames=tuple(drawn[t] for t in further),
                notes=tuple(dict.fromkeys(notes)),
            )
        )
    return runs


def further_frames(length: int) -> tuple[int, ...]:
    """Frame ids at the middles of equal parts of a video of `length` frames; fewer where it has fewer."""
    n = min(FURTHER_FRAMES, length)
    return tuple((2 * i + 1) * length // (2 * n) for i in range(n))


if __name__ == "__main__":
    sys.exit(run_command(main))
