"""Stores the same predicted masks in another form: 8-bit PNGs, 1-bit PNGs, or one file of RLEs.

Usage: ``python -m eval.convert PRED OUT --to png|png1|rle [--gt ROOT]``. PRED is anything that `eval.revos` reads: a
run folder, a folder of ``<video>/<exp_id>/<frame>.png``, our ``masks.jsonl``, Sa2VA's JSON. OUT is a run folder with
``Annotations`` or ``masks.jsonl``; the other files of a run folder (``predictions.jsonl`` …) come along.

- No pixel changes: to another form and back gives the same masks. The grey value inside a mask becomes 255 (an RLE has
  none), so masks stored as 0/1 keep J and F, while A and R of ReVOS move to the scale of 255. A note says so.
- A file of RLEs knows no frame names: to turn one into PNGs, give the data set (``--gt``). With it exactly its samples
  are converted, and those that are missing are listed; without it, whatever the folder holds.
- Stopped or killed, the same command goes on; OUT is locked meanwhile. Masks that have changed since they were
  converted are an error: the rest would be of another prediction. A damaged mask, and one that is gone although
  the run folder says it is done, is named and its sample left out: exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eval.command import log_problems
from eval.predictions import DONE, PngFolder, Predictions, done_samples, open_predictions, png_size, run_folder, values
from eval.results import Problem
from eval.rle_predictions import RleFile
from eval.survey import check_run, lost_samples
from veason import atomic, mask_lines, mask_png, masks
from veason.command import run_command
from veason.datasets import NAMES, open_dataset
from veason.datasets.base import check_name
from veason.errors import DataError
from veason.files import load_json
from veason.types import VideoSample
from veason.worker_pool import map_in_order

Form = Literal["png", "png1", "rle"]
_ALONG = (DONE, "timings.jsonl", "run.json")
_SETTINGS, _VERSIONS = "convert.json", "convert.jsonl"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one sample."""

    sample: str
    values: tuple[int, ...] = ()
    """Nonzero grey values it was stored with."""
    line: dict[str, Any] | None = None
    """Its line of RLEs, where that is the form."""
    problem: str | None = None


@dataclass(frozen=True)
class Converter:
    """Converts a sample. Pickled once for each worker."""

    predicted: PngFolder | RleFile
    out: Path
    form: Form

    def convert(self, sample: VideoSample) -> Outcome:
        """Reads a sample's masks and writes them; RLEs go back to the one process that writes their file."""
        try:
            found: set[int] = set()
            if self.form == "rle":
                line = mask_lines.record(sample, [masks.encode(mask) for mask in self._masks(sample, found)])
                return Outcome(sample.key, tuple(sorted(found)), line)
            target = _folder(self.out) / sample.video / sample.exp_id
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")  # the folder of a sample is whole or not there
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir()
            for name, mask in zip(sample.frames, self._masks(sample, found), strict=True):
                (partial / f"{name}.png").write_bytes(mask_png.encode(mask, bits=1 if self.form == "png1" else 8))
            if target.exists():  # a mask of it was lost
                shutil.rmtree(target)
            os.replace(partial, target)
            return Outcome(sample.key, tuple(sorted(found)))
        except DataError as error:
            return Outcome(sample.key, problem=str(error))

    def _masks(self, sample: VideoSample, found: set[int]) -> Iterator[Any]:
        """Yields the (H, W) uint8 masks in frame order; their grey values are added to `found`."""
        for t in range(len(sample)):
            mask = self.predicted.read(sample, t)
            here = values(mask)
            if len(here) > 1:
                raise DataError(
                    f"{self.predicted.root}: {sample.key}, frame {sample.frames[t]} holds several grey values "
                    f"({', '.join(map(str, sorted(here)[:5]))}, …); "
                    "a mask of one target has one, and the others would be lost"
                )
            found |= here
            yield mask


def convert(
    predicted: PngFolder | RleFile, samples: Sequence[VideoSample], out: Path, form: Form, *, workers: int = 1
) -> Iterator[Outcome]:
    """Writes the masks of `samples` that are not yet below `out`; yields an outcome for each of them.

    ``convert.jsonl`` notes for each sample which masks are converted, before they are. `out` is locked until the last
    outcome. Raises DataError if another process holds the lock, if the folder holds something else, or if masks have
    changed since they were converted.
    """
    settings = {"from": str(predicted.root.resolve()), "to": form}
    _check_settings(out, settings)  # before anything of ours is put into a folder that is not ours
    with atomic.Lock(out / ".lock"), contextlib.ExitStack() as closing:
        _check_settings(out, settings)
        for name in (_SETTINGS, *_ALONG):
            atomic.remove_leftovers(out / name)
        atomic.write_json(out / _SETTINGS, settings)
        notes = closing.enter_context(atomic.Journal(out / _VERSIONS))
        lines = closing.enter_context(atomic.Journal(out / mask_lines.FILE)) if form == "rle" else None
        if form != "rle":
            _folder(out).mkdir(parents=True, exist_ok=True)
        there = open_predictions(out)
        rest = []
        for sample in samples:
            whole = there.absence(sample) is None
            if whole and isinstance(there, PngFolder):  # a machine that went down may have emptied a mask
                whole = all(there.path(sample, t).stat().st_size for t in range(len(sample)))
            if not whole:
                rest.append(sample)
        _note_versions(notes, predicted, samples, rest)
        converter = Converter(predicted, out, form)
        for outcome in map_in_order(
            Converter.convert, converter, rest, workers=workers, label="converting", unit="sample"
        ):
            if lines is not None and outcome.line is not None:
                lines.append(outcome.line)
            yield outcome


def _note_versions(
    notes: atomic.Journal,
    predicted: PngFolder | RleFile,
    samples: Sequence[VideoSample],
    rest: Sequence[VideoSample],
) -> None:
    """Notes which masks of `rest` will be converted; raises DataError if those of other samples have changed since."""
    try:
        known = {line["sample"]: line["version"] for line in atomic.read_journal(notes.path)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{notes.path}: damaged ({error}); remove the folder and convert again") from error
    todo, versions = {sample.key for sample in rest}, {}
    for sample in samples:
        with contextlib.suppress(DataError):  # what cannot be read is named where it is converted
            versions[sample.key] = predicted.version(sample)
    changed = [key for key, found in versions.items() if key not in todo and known.get(key, found) != found]
    if changed:
        raise DataError(
            f"{notes.path.parent}: the masks of {len(changed)} samples, first {changed[0]}, have changed in "
            f"{predicted.root} since they were converted; remove the folder, or choose another OUT"
        )
    for key, found in versions.items():
        if key in todo and known.get(key) != found:
            notes.append({"sample": key, "version": found})


def _folder(out: Path) -> Path:
    return out / "Annotations"


def _check_settings(out: Path, settings: dict[str, str]) -> None:
    """Raises DataError unless `out` is new, empty but for hidden files, or holds the same conversion."""
    path = out / _SETTINGS
    if path.exists():
        before = load_json(path)
        if before != settings:
            raise DataError(f"{path}: the folder holds another conversion ({before}); choose another OUT")
    elif out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise DataError(f"{out}: the folder is not empty and no conversion; choose another OUT")


def folder_samples(folder: PngFolder) -> Iterator[VideoSample | Problem]:
    """Yields the samples in a folder of ``<video>/<exp_id>/<frame>.png``, sorted, with their frames by name.

    Yields a problem instead for a sample whose first PNG does not tell its size.
    """
    for place, folders, files in os.walk(folder.root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        frames = tuple(sorted(name.removesuffix(".png") for name in files if name.endswith(".png")))
        if not frames:
            continue
        video, _, exp_id = Path(place).relative_to(folder.root).as_posix().rpartition("/")
        where = f"{place}: PNGs belong into <video>/<exp_id>/"
        video, exp_id = check_name(video, where, slashes=True), check_name(exp_id, where)
        try:
            size = png_size(Path(place) / f"{frames[0]}.png")
        except DataError as error:
            yield Problem(f"{video}/{exp_id}", str(error))
            continue
        yield VideoSample(
            dataset="", video=video, exp_id=exp_id, expression="", frames=frames, frame_dir=Path(place), size=size
        )


def _samples(args: argparse.Namespace, predicted: Predictions) -> tuple[list[VideoSample], list[Problem]]:
    """Returns (samples to convert, problems of the others)."""
    if args.gt is not None:
        dataset = open_dataset(args.dataset, args.gt, split=args.split, meta=args.meta)
        check_run(dataset, predicted)
        reasons = {sample.key: predicted.absence(sample) for sample in dataset}
        absences = {key: reason for key, reason in reasons.items() if reason is not None}
        absences |= lost_samples(predicted, absences)
        return [s for s in dataset if s.key not in absences], [Problem(*pair) for pair in absences.items()]
    if not isinstance(predicted, PngFolder):
        raise DataError(f"{predicted.root}: a file of RLEs knows no frame names; give the data set with --gt")
    found = list(folder_samples(predicted))
    samples = [one for one in found if isinstance(one, VideoSample)]
    problems = [one for one in found if isinstance(one, Problem)]
    seen = {one.key if isinstance(one, VideoSample) else one.sample for one in found}
    lost = dict.fromkeys(sorted(done_samples(predicted.root) - seen), "it has no folder of masks")
    problems += [Problem(*pair) for pair in lost_samples(predicted, lost).items()]
    if not found:
        raise DataError(f"{predicted.root}: holds no <video>/<exp_id>/<frame>.png; is it the right folder?")
    return samples, problems


def run(args: argparse.Namespace) -> int:
    """Converts and prints the counts; returns the exit status: 2 if a sample was missing or broken."""
    predicted = open_predictions(args.pred)
    samples, missing = _samples(args, predicted)
    done = convert(predicted, samples, args.out, args.to, workers=args.workers)
    outcomes = [dataclasses.replace(outcome, line=None) for outcome in done]  # a whole data set of lines is large
    run_of = run_folder(predicted.root)
    for name in _ALONG:
        if run_of is not None and (run_of / name).is_file():
            atomic.write_bytes(args.out / name, (run_of / name).read_bytes())
    broken = [Problem(outcome.sample, outcome.problem) for outcome in outcomes if outcome.problem is not None]
    status = log_problems([*missing, *broken])
    print(
        f"{args.out}: {len(outcomes) - len(broken)} samples converted to {args.to}, "
        f"{len(samples) - len(outcomes)} were there, {len(missing)} missing, {len(broken)} broken"
    )
    others = sorted({value for outcome in outcomes for value in outcome.values} - {255})
    if others:
        print(
            f"note: masks were stored as 0/{others[0]} and are 0/255 now: A and R of ReVOS depend on it, J and F do not"
        )
    return status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pred", type=Path, help="run folder, <video>/<exp_id>/*.png, or file of RLEs")
    parser.add_argument("out", type=Path, help="output folder: a new one, or that of the same conversion")
    parser.add_argument("--to", choices=get_args(Form), required=True, help="8-bit PNGs, 1-bit PNGs, or RLEs")
    parser.add_argument("--gt", type=Path, metavar="ROOT", help="folder of the data set that was predicted")
    parser.add_argument("--dataset", choices=NAMES, default="revos", help="benchmark of --gt (default: %(default)s)")
    parser.add_argument("--split", help="split of --gt (default: the one that is scored offline)")
    parser.add_argument("--meta", type=Path, help="another expression file of --gt, such as a predicted subset")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes; default: cores")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
