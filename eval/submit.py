"""Pack predictions for a benchmark's server, or check an archive before it is sent.

    python -m eval.submit --dataset refytvos --data-root ROOT --pred RUN --out submission.zip
    python -m eval.submit --dataset mevis --split valid --data-root ROOT --pred RUN --out submission.zip
    python -m eval.submit --dataset mevis --split valid --data-root ROOT --check submission.zip
    python -m eval.submit --dataset vicas --split v1.0/test --data-root ROOT --pred RUN --out FOLDER

mevis: <video>/<exp_id>/<frame>.png at the archive's root; refytvos: the same below Annotations/. Every mask is an 8-bit
grey PNG of 0 and 255 at the video's own size, whatever the predictions were stored as. A packed archive is checked
before it is put in its place. vicas has no server: its form, a JSON file a video, is written to a folder for the
benchmark's own script.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from eval import archive, vicas_files
from eval.command import log_problems
from eval.predictions import open_predictions
from eval.results import Missing, Problem
from eval.scoring import score_all
from eval.survey import LISTED, Survey, survey
from veason import atomic
from veason.command import run_command
from veason.datasets import open_dataset
from veason.datasets.base import Dataset, sha256
from veason.datasets.vicas import ViCaS
from veason.errors import DataError
from veason.types import VideoSample

NAMES = (*archive.PREFIXES, "vicas")


def pack(dataset: Dataset, pred: Path, out: Path, *, missing: Missing, workers: int) -> list[Problem]:
    """Writes the archive `out` and checks it; returns the problems, none if the archive is in place.

    zero: a missing expression gets empty masks. skip: it is left out, which servers may refuse.
    """
    predicted = open_predictions(pred)
    found = survey(dataset, predicted, missing=missing)
    if found.broken:
        return [Problem(key, reason) for key, reason in found.broken.items()]
    videos = _by_video(sample for sample in dataset if sample.key not in found.left_out)
    packer = archive.Packer(archive.PREFIXES[dataset.name], predicted, frozenset(found.absences))
    problems = archive.pack(
        packer,
        list(videos.values()),
        out,
        workers=workers,
        verify=lambda path: check(videos, path, prefix=packer.prefix, workers=workers),
    )
    _print_counts(dataset, found, missing)
    if problems:
        print(f"{out}: not written")
    else:
        print(f"{out}: {out.stat().st_size} bytes, sha256 {sha256(out)}")
    return problems


def check(videos: dict[str, list[VideoSample]], path: Path, *, prefix: str, workers: int) -> list[Problem]:
    """Returns the problems of the archive `path`, which shall hold a mask for every frame of `videos`' samples."""
    samples = [sample for of_video in videos.values() for sample in of_video]
    names = [archive.entry_name(prefix, sample, t) for sample in samples for t in range(len(sample))]
    held = archive.contents(path, names)
    faults = score_all(archive.Checker(path, prefix), videos, workers=workers)
    wrong = {name: fault for name in names if (fault := faults.get(name)) is not None}
    print(
        f"archive: expected {len(names)} files, found {len(faults)}, missing {len(held.missing)}, "
        f"doubled {len(held.doubled)}, extra {len(held.extra)}, wrong {len(wrong)}"
    )
    return [
        *(Problem(name, "it is missing") for name in held.missing),
        *(Problem(name, "it stands there more than once") for name in held.doubled),
        *(Problem(repr(name[:200]), "it does not belong there") for name in held.extra),
        *(Problem(name, fault) for name, fault in wrong.items()),
    ]


def write_vicas(dataset: ViCaS, pred: Path, out: Path, *, missing: Missing) -> list[Problem]:
    """Writes a JSON file a video below `out`; returns a problem for each prediction that cannot be read."""
    if missing == "skip":
        raise DataError("the files of ViCaS have an entry for every referral: --missing zero or error, not skip")
    predicted = vicas_files.open_tracks(pred, dataset)
    found = survey(dataset, predicted, missing=missing)
    problems = [Problem(key, reason) for key, reason in found.broken.items()]
    lost = {sample.video for sample in dataset if sample.key in found.broken}
    with atomic.Lock(out / ".lock"):
        for leftover in out.glob(".*.json." + "[a-z0-9_]" * 8):  # of a process that was killed while writing
            leftover.unlink()
        for samples in tqdm(dataset.by_video.values(), unit="video", desc="writing", disable=None):
            if samples[0].video in lost:
                continue
            try:
                vicas_files.write_video(samples, predicted, dataset, out)
            except DataError as error:
                problems.append(Problem(samples[0].video, str(error)))
                lost.add(samples[0].video)
    _print_counts(dataset, found, missing)
    print(f"{out}: {len(dataset.by_video) - len(lost)} files; {predicted.form}")
    return problems


def _by_video(samples: Iterable[VideoSample]) -> dict[str, list[VideoSample]]:
    videos: dict[str, list[VideoSample]] = {}
    for sample in samples:
        videos.setdefault(sample.video, []).append(sample)
    return videos


def _print_counts(dataset: Dataset, found: Survey, missing: Missing) -> None:
    absent, skipped = len(found.absences), len(found.left_out)
    print(
        f"{dataset.name} {dataset.split}: expected {len(dataset)} expressions, found {len(dataset) - absent}, "
        f"missing {absent} (--missing {missing}), skipped {skipped}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=NAMES, required=True, help="benchmark")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", help="valid or test; vicas: VERSION/PART (default: valid, where there is one)")
    parser.add_argument("--meta", type=Path, metavar="FILE", help="another expression file")
    parser.add_argument("--pred", type=Path, metavar="PATH", help="run folder, folder of PNGs, or file of RLEs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="archive to write; vicas: folder")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check this archive and write nothing")
    parser.add_argument(
        "--missing",
        choices=[choice for choice in get_args(Missing) if choice != "published"],
        default="zero",
        help="a missing expression gets empty masks, is left out, or ends the run (default: zero)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="number of processes; default: cores"
    )
    args = parser.parse_args(argv)

    def problems() -> list[Problem]:
        if args.workers < 1:
            raise DataError(f"workers must be at least 1, found {args.workers}")
        split = args.split or (None if args.dataset == "vicas" else "valid")
        dataset = open_dataset(args.dataset, args.data_root, split=split, meta=args.meta)
        if args.check:
            if args.dataset == "vicas":
                raise DataError("ViCaS has no archive to check; `python -m eval.vicas` reads what was written")
            prefix = archive.PREFIXES[args.dataset]
            return check(_by_video(dataset), args.check, prefix=prefix, workers=args.workers)
        if not (args.pred and args.out):
            raise DataError("packing needs --pred and --out; checking needs --check")
        if isinstance(dataset, ViCaS):
            return write_vicas(dataset, args.pred, args.out, missing=args.missing)
        return pack(dataset, args.pred, args.out, missing=args.missing, workers=args.workers)

    return run_command(lambda: log_problems(problems(), listed=LISTED))


if __name__ == "__main__":
    sys.exit(main())
