"""What of a prediction is there, looked up before anything is scored."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, get_args

from eval.predictions import Predictions
from eval.results import Missing
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.types import VideoSample

LISTED = 100
"""Missing predictions named in an error message."""


@dataclass(frozen=True)
class Survey:
    """The samples of a data set, told apart by whether they can be scored."""

    present: dict[str, list[VideoSample]]
    """Samples to score, by video."""
    absences: dict[str, str]
    """Key of a sample -> what of its prediction is missing."""
    broken: dict[str, str]
    """Key of a sample -> what is wrong with its ground truth."""


def survey(dataset: Dataset, predicted: Predictions, *, missing: Missing) -> Survey:
    """Look up every sample; DataError that lists the absences if there are any and `missing` is "error"."""
    found = Survey({}, {}, {})
    for sample in dataset:
        try:
            reason = predicted.absence(_scored_part(dataset, sample))
        except DataError as error:
            found.broken[sample.key] = str(error)
            continue
        if reason is None:
            found.present.setdefault(sample.video, []).append(sample)
        else:
            found.absences[sample.key] = reason
    if found.absences and missing == "error":
        raise DataError(_message(predicted, found.absences, len(dataset)))
    if len(found.absences) == len(dataset):
        warning = f"{predicted.root} holds no complete prediction for any of {len(dataset)} expressions"
        print(f"warning: {warning}", file=sys.stderr)
    return found


def _scored_part(dataset: Dataset, sample: VideoSample) -> VideoSample:
    """The sample with the frames that have ground truth: no other needs a predicted mask."""
    return dataclasses.replace(sample, frames=tuple(sample.frames[t] for t in dataset.gt_frames(sample)))


def _message(predicted: Predictions, absences: dict[str, str], expected: int) -> str:
    listed = [f"  {key}: {reason}" for key, reason in list(absences.items())[:LISTED]]
    if len(absences) > LISTED:
        listed.append(f"  … and {len(absences) - LISTED} more")
    head = f"{predicted.root}: predictions are missing for {len(absences)} of {expected} expressions; predict them"
    return "\n".join([f"{head}, or score the rest with --missing zero or skip:", *listed])


def check_choice(name: str, value: str, choices: Any) -> None:
    """DataError unless `value` is one of a Literal's `choices`."""
    if value not in get_args(choices):
        raise DataError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}")
