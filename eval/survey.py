"""Looks up which predictions are there, before anything is scored."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from eval.predictions import DONE, PNGS, Predictions, done_samples, run_folder, run_settings
from eval.results import Missing
from veason import mask_lines
from veason.datasets import NAMES
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.types import VideoSample

_log = logging.getLogger(__name__)

LISTED = 100
"""Missing predictions named in an error message."""


Published = Literal["zero", "skip", "video zero", "error"]
"""The treatment of a missing prediction by a benchmark's own script: it counts as zero; it is left out of the means; it
is left out unless the whole video is missing, which counts as zero; the script stops with an error."""

PUBLISHED_TEXT: dict[Published, str] = {
    "zero": "a missing prediction counts as zero",
    "skip": "a missing prediction is left out",
    "video zero": "a missing video counts as zero, a missing expression or frame leaves the expression out",
    "error": "nothing may be missing",
}


@dataclass(frozen=True)
class Survey:
    """The samples of a data set, sorted by whether they can be scored."""

    present: dict[str, list[VideoSample]]
    """Samples to score, by video."""
    absences: dict[str, str]
    """Key of a sample -> what of its prediction is missing."""
    left_out: frozenset[str]
    """Keys of the absent samples that are in no mean; the other absent ones count as zero."""
    broken: dict[str, str]
    """Key of a sample -> what is wrong with its ground truth or with its run folder: an error, never a zero."""


def survey(
    dataset: Dataset, predicted: Predictions, *, missing: Missing, published: Published | None = "zero"
) -> Survey:
    """Looks up every sample.

    published: the rule of the benchmark's script, None where it has none. Raises DataError if the predictions are of
    another data set, if there is none at all and, with all absences listed, if one is missing where none may be.
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
            # Frames without ground truth need no predicted mask.
            frames = tuple(sample.frames[t] for t in dataset.gt_frames(sample))
            reason = predicted.absence(dataclasses.replace(sample, frames=frames))
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
        run = run_folder(predicted.root)
        if run is not None and (run / "shards").is_dir():
            raise DataError(
                f"{run}: the shards of the run are not joined yet; run the commands of all shards to their ends"
            )
        raise DataError(
            f"{predicted.root}: holds no complete prediction for any of {len(dataset)} expressions (the first: "
            f"{next(iter(absences.values()))}); is it the right folder, and of this data set and split?"
        )
    if absences and rule == "error":
        script = f" (the benchmark's script: {PUBLISHED_TEXT[rule]})" if missing == "published" else ""
        lacking = DataError(
            f"{predicted.root}: predictions are missing for {len(absences)} of {len(dataset)} expressions{script}; "
            "predict them, or score the rest with --missing zero or skip:"
        )
        for key, reason in list(absences.items())[:LISTED]:
            lacking.add_note(f"{key}: {reason}")
        if len(absences) > LISTED:
            lacking.add_note(f"… and {len(absences) - LISTED} more")
        raise lacking
    return Survey(present, absences, frozenset(left_out & absences.keys()), broken)


def check_run(dataset: Dataset, predicted: Predictions) -> None:
    """Raises DataError if the masks are of a run on another data set or split; masks from elsewhere pass."""
    settings, run = run_settings(predicted.root), run_folder(predicted.root)
    name, split = settings.get("dataset"), settings.get("split")
    if name is not None and name != dataset.name:
        protocol = " --protocol unsupervised" if name == "refdavis" else ""
        command = (
            f"`python -m eval.{name}{protocol} --gt ROOT --pred {run} --out {run}/scores`, ROOT the folder of {name}"
        )
        raise DataError(
            f"{predicted.root}: the run predicted {str(name)[:80]!r} (its run.json says so), not {dataset.name!r}; "
            f"score it with {command if name in NAMES else 'the evaluator of its own data set'}"
        )
    if split is not None and split != dataset.split and settings.get("meta") is None:
        raise DataError(
            f"{predicted.root}: the run predicted the split {str(split)[:80]!r} (its run.json says so), not "
            f"{dataset.split!r}; say --split {str(split)[:80]}"
        )


def lost_samples(predicted: Predictions, absences: Mapping[str, str]) -> dict[str, str]:
    """Returns the absent samples that the run folder says are done, each with its problem: the folder is damaged.

    Raises DataError if that holds for every sample that is done: then the masks as a whole are gone.
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


def log_warnings(dataset: Dataset) -> None:
    """Logs what a data set that was opened for scoring let through; once, when everything has been read."""
    for line in dataset.warnings:
        _log.warning("%s", line)


def check_not_all_alike(outcomes: Mapping[str, object]) -> None:
    """Raises DataError if all of several samples failed for one and the same reason: the cause is a file they share."""
    reasons = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    if 1 < len(reasons) == len(outcomes) and len(set(reasons)) == 1:
        raise DataError(reasons[0])


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raises DataError unless `value` is one of a Literal's `choices`."""
    if value not in get_args(choices):
        raise DataError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}")
