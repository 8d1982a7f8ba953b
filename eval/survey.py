"""What of a prediction is there, looked up before anything is scored."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from eval.predictions import DONE, PNGS, Predictions, done_samples, run_folder, run_settings
from eval.results import Missing
from veason import mask_lines
from veason.datasets import NAMES
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.safe_text import printable
from veason.types import VideoSample

LISTED = 100
"""Missing predictions named in an error message."""


Published = Literal["zero", "skip", "video zero", "error"]
"""What a benchmark's own script makes of a missing prediction: it counts as zero; it is left out of the means; it is
left out unless the whole video is missing, which counts as zero; the script breaks off."""

PUBLISHED_TEXT: dict[Published, str] = {
    "zero": "a missing prediction counts as zero",
    "skip": "a missing prediction is left out",
    "video zero": "a missing video counts as zero, a missing expression or frame leaves the expression out",
    "error": "nothing may be missing",
}


@dataclass(frozen=True)
class Survey:
    """The samples of a data set, told apart by whether they can be scored."""

    present: dict[str, list[VideoSample]]
    """Samples to score, by video."""
    absences: dict[str, str]
    """Key of a sample -> what of its prediction is missing."""
    left_out: frozenset[str]
    """Keys of those absent ones that are in no mean; the others count as zero."""
    broken: dict[str, str]
    """Key of a sample -> what is wrong with its ground truth or with its run folder: an error, never a zero."""


def survey(
    dataset: Dataset, predicted: Predictions, *, missing: Missing, published: Published | None = "zero"
) -> Survey:
    """Look up every sample.

    published: the rule of the benchmark's script, None where it has none. DataError if the predictions are another data
    set's, if there is none at all, and, with all absences listed, if there are any where nothing may be missing.
    """
    check_choice("missing", missing, Missing)
    if missing == "published" and published is None:
        raise DataError(f"{dataset.name} has no published script to follow; say --missing zero, skip or error")
    rule = published if missing == "published" else missing
    check_run(dataset, predicted)
    present: dict[str, list[VideoSample]] = {}
    absences: dict[str, str] = {}
    broken: dict[str, str] = {}
    left_out = set()
    for sample in dataset:
        try:
            reason = predicted.absence(_scored_part(dataset, sample))
        except DataError as error:
            broken[sample.key] = str(error)
            continue
        if reason is None:
            present.setdefault(sample.video, []).append(sample)
            continue
        absences[sample.key] = reason
        if rule == "skip" or (rule == "video zero" and predicted.has_video(sample)):
            left_out.add(sample.key)
    lost = lost_samples(predicted, absences)
    broken |= lost
    absences = {key: reason for key, reason in absences.items() if key not in lost}
    if not present and not broken:
        raise DataError(_nothing(predicted, absences, len(dataset)))
    if absences and rule == "error":
        raise _listed(predicted, absences, len(dataset), published if missing == "published" else None)
    return Survey(present, absences, frozenset(left_out & absences.keys()), broken)


def check_run(dataset: Dataset, predicted: Predictions) -> None:
    """DataError if the masks are a run's on another data set or split than `dataset`; masks from elsewhere pass."""
    settings = run_settings(predicted.root)
    name, split = settings.get("dataset"), settings.get("split")
    if name is not None and name != dataset.name:
        raise DataError(
            f"{predicted.root}: the run predicted {str(name)[:80]!r} (its run.json says so), not {dataset.name!r}; "
            f"score it with {_scoring_command(str(name), predicted)}"
        )
    if split is not None and split != dataset.split and settings.get("meta") is None:
        raise DataError(
            f"{predicted.root}: the run predicted the split {str(split)[:80]!r} (its run.json says so), not "
            f"{dataset.split!r}; say --split {str(split)[:80]}"
        )


def _scoring_command(name: str, predicted: Predictions) -> str:
    """What scores a run on the data set `name`; the root of the data is left for the user to fill in."""
    run = run_folder(predicted.root)
    if name not in NAMES:
        return "the evaluator of its own data set"
    protocol = " --protocol unsupervised" if name == "refdavis" else ""
    return f"`python -m eval.{name}{protocol} --gt ROOT --pred {run} --out {run}/scores`, ROOT the folder of {name}"


def lost_samples(predicted: Predictions, absences: Mapping[str, str]) -> dict[str, str]:
    """Those of the absent samples that the run folder says are done, each with what is wrong: the folder is damaged.

    DataError if that is so of every sample it says is done: then the masks as a whole are gone.
    """
    done = done_samples(predicted.root) if absences else set()
    file = f"{run_folder(predicted.root)}/{DONE}"
    lost = {
        key: f"{file} says that it is done, but {reason}; its masks were lost: run the command that predicted it "
        "again, or restore them"
        for key, reason in absences.items()
        if key in done
    }
    if lost and len(lost) == len(done):
        raise DataError(
            f"{file}: {len(done)} samples are done according to this file, and the masks of none are there: "
            f"{PNGS} or {mask_lines.FILE} beside it is missing or emptied; restore it, or predict again"
        )
    return lost


def _nothing(predicted: Predictions, absences: Mapping[str, str], expected: int) -> str:
    run = run_folder(predicted.root)
    if run is not None and (run / "shards").is_dir():
        return f"{run}: the shards of the run are not joined yet; run the commands of all shards to their ends"
    return (
        f"{predicted.root}: holds no complete prediction for any of {expected} expressions (the first: "
        f"{next(iter(absences.values()))}); is it the right folder, and of this data set and split?"
    )


def print_warnings(dataset: Dataset) -> None:
    """Say on stderr what a data set that was opened for scoring let through; once, when everything has been read."""
    for line in dataset.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr)


def check_not_all_alike(outcomes: Mapping[str, object]) -> None:
    """DataError if all of several samples failed for one and the same reason: a file that they share is to blame."""
    reasons = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    if 1 < len(reasons) == len(outcomes) and len(set(reasons)) == 1:
        raise DataError(reasons[0])


def _scored_part(dataset: Dataset, sample: VideoSample) -> VideoSample:
    """The sample with the frames that have ground truth: no other needs a predicted mask."""
    return dataclasses.replace(sample, frames=tuple(sample.frames[t] for t in dataset.gt_frames(sample)))


def _listed(
    predicted: Predictions, absences: Mapping[str, str], expected: int, published: Published | None
) -> DataError:
    """The error that names what is missing, a note for each."""
    script = "" if published is None else f" (the benchmark's script: {PUBLISHED_TEXT[published]})"
    error = DataError(
        f"{predicted.root}: predictions are missing for {len(absences)} of {expected} expressions{script}; predict "
        "them, or score the rest with --missing zero or skip:"
    )
    for key, reason in list(absences.items())[:LISTED]:
        error.add_note(f"{key}: {reason}")
    if len(absences) > LISTED:
        error.add_note(f"… and {len(absences) - LISTED} more")
    return error


def check_choice(name: str, value: str, choices: Any) -> None:
    """DataError unless `value` is one of a Literal's `choices`."""
    if value not in get_args(choices):
        raise DataError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}")
