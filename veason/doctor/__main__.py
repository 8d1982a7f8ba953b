"""Checks a copy of a data set and prints its faults with their remedies.

Usage: python -m veason.doctor --dataset revos --data-root ROOT [--split valid]

The following checks decode no picture. Every frame exists and has the annotated size. Lists of masks are as long as
lists of frames, and every RLE is valid. Frames are stored in sorted order. Every expression has a visible target. The
stored foreground is the union of the masks. The data set is as large as published. Every annotation is named by an
expression. The storage is fast.

--deep also decodes a few frames of every target. It gives the true box to a tracker and ranks the expressions by how
badly the tracker's masks and the annotated ones disagree. The J of this oracle is meant for finding drift: it uses up
to six frames of a video, each one with true boxes or next to one. eval scores every frame, tracked from one keyframe,
so eval's J of `--policy oracle` is another number. --contact-sheet draws the worst targets, and --write-exclude lists
the samples that sampling (--exclude) and training (data.exclude) should leave out.

The exit code is 0 if nothing is wrong, 1 for errors or warnings, and 2 if the data set cannot be opened. Notes do not
count as faults.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from veason import atomic, trackers
from veason.command import run_command
from veason.datasets import NAMES, open_dataset
from veason.doctor import examination, index, report, sheet
from veason.doctor.oracle import Oracle
from veason.errors import DataError


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m veason.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=NAMES, required=True, help="benchmark")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", help="default: the one that is scored offline")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of the videos, if elsewhere")
    parser.add_argument("--meta", type=Path, metavar="FILE", help="another expression file (implies --subset)")
    parser.add_argument(
        "--subset", action="store_true", help="the copy is a part or a synthetic data set: do not compare its size"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="number of processes; default: cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every finding, and the ranking, as JSON")
    parser.add_argument("--write-exclude", type=Path, metavar="FILE", help="write the samples to leave out")
    deep = parser.add_argument_group("looking at pixels")
    deep.add_argument("--deep", action="store_true", help="decode frames and rank expressions by disagreement")
    deep.add_argument("--tracker", choices=trackers.TRACKERS, default="grabcut", help="default: %(default)s")
    deep.add_argument("--sam2-config", metavar="NAME|FILE", help="sam2: a config of the package or a YAML file")
    deep.add_argument("--sam2-checkpoint", metavar="FILE", help="sam2: weights that match the config")
    deep.add_argument(
        "--threshold",
        type=float,
        default=0.3,
        metavar="J",
        help="report targets whose J is below this as disagreements (default: %(default)s)",
    )
    deep.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw the worst targets into one PNG")
    deep.add_argument(
        "--worst",
        type=int,
        default=40,
        metavar="N",
        help="number of targets on the contact sheet (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.contact_sheet and not args.deep:
        parser.error("--contact-sheet shows what --deep finds; give both")
    if args.tracker == "sam2" and not (args.sam2_config and args.sam2_checkpoint):
        parser.error("--tracker sam2 needs --sam2-config and --sam2-checkpoint")
    if args.workers < 1 or args.worst < 1:
        parser.error("--workers and --worst must be at least 1")
    return args


def run(args: argparse.Namespace) -> int:
    """Examine, write and print; returns the exit code. DataError if the data set cannot be opened."""
    try:
        dataset = open_dataset(
            args.dataset, args.data_root, split=args.split, image_root=args.image_root, meta=args.meta
        )
    except DataError:
        if disorder := index.frame_order(args.data_root, args.meta):
            print(report.findings_text(disorder) + "\n")
        raise
    options = {"config": args.sam2_config, "checkpoint": args.sam2_checkpoint} if args.tracker == "sam2" else {}
    oracle = Oracle(args.tracker, options) if args.deep else None
    examiner = examination.Examiner(dataset, part=args.subset or args.meta is not None, oracle=oracle)
    found = examination.examine(examiner, workers=args.workers, threshold=args.threshold)
    print(report.text(found))
    if args.json:
        atomic.write_json(args.json, report.document(found))
    if args.write_exclude:
        print(f"\n{args.write_exclude}: {report.write_exclude(args.write_exclude, found)} samples to leave out")
    if args.contact_sheet:
        worst = examination.worst_targets(found, args.worst)
        sheet.write(args.contact_sheet, examination.tiles(examiner, worst, workers=args.workers))
        print(f"\n{args.contact_sheet}: the {len(worst)} worst targets (blue: annotated, orange: the oracle's)")
    return 1 if any(finding.severity != "note" for finding in found.findings) else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
