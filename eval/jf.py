"""J&F of MeViS, ReasonVOS, Ref-YouTube-VOS and Ref-DAVIS17's binary form: one binary mask a frame, plain means.

- every frame that has ground truth counts, first and last too; a mask is where its PNG is not zero;
- J and F of an expression are means over its frames, those of a data set means over its expressions: videos with many
  expressions weigh more; J&F is the mean of the two; nothing is rounded before it is printed;
- a missing prediction is zero unless ``--missing`` says otherwise; ``--missing published`` does what the benchmark's
  own script does (`Protocol.published`). What a run folder says is done and lacks its masks, a mask of another size and
  a damaged file are never zero: they are listed at the end, the rest is scored, and the exit status is 2.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.predictions import Predictions
from eval.results import Missing, Problem, count_encodings, encodings_text, sample_counts, versions
from eval.scoring import Outcome, Score, Scorer, score_all
from eval.survey import PUBLISHED_TEXT, Published, Survey, check_not_all_alike, print_warnings, survey
from veason import atomic
from veason.datasets.base import Dataset, sha256
from veason.tables import aligned
from veason.types import VideoSample

CSV_HEADER = ("video_name", "exp_id", "exp", "J", "F", "JF", "group")


@dataclass(frozen=True)
class Protocol:
    """What tells one benchmark's J&F from another's. Two results are comparable if these are equal."""

    benchmark: str
    """Name in print, ``MeViS``."""
    name: str
    """``mevis``; unique for every way to score."""
    frames: str
    """Which frames count, in words."""
    published: Published | None = None
    """What the benchmark's own script makes of a missing prediction; None where there is no such script."""


@dataclass(frozen=True)
class Row:
    """One expression's scores in per cent, unrounded."""

    sample: VideoSample
    j: float
    f: float
    group: str | None = None
    """Part of the data set that has its own means, ``long`` say."""
    problem: str | None = None
    """What of the prediction was missing; the scores are zero then."""
    extra: object = None
    """What the benchmark's scorer measured beside (`Score.extra`)."""

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class JFResults:
    """Everything an evaluation found. `summary` is what ``results.json`` holds."""

    protocol: Protocol
    dataset: str
    split: str
    missing_policy: Missing
    rows: tuple[Row, ...]
    """Scored expressions in the order of the data set."""
    missing: tuple[Problem, ...]
    """Expressions with a file missing: rows of zeros, or left out."""
    errors: tuple[Problem, ...]
    """Expressions with a broken prediction or ground truth; they have no row."""
    expected: int
    videos: int
    """In the data set, scored or not."""
    encodings: dict[str, int]
    """Number of expressions by the grey values of their masks, ``0/255`` say."""
    gt_sha256: dict[str, str]
    """Hashes of the ground truth, by role."""
    details: Mapping[str, str]
    """Further choices that were made, such as the layout of the predictions."""

    @property
    def complete(self) -> bool:
        """No expression was lost to an error."""
        return not self.errors

    def groups(self) -> dict[str, list[Row]]:
        """Rows of "overall" and of each named group."""
        named = sorted({row.group for row in self.rows if row.group is not None})
        return {
            "overall": list(self.rows),
            **{name: [row for row in self.rows if row.group == name] for name in named},
        }

    def counts(self) -> dict[str, int]:
        counts = sample_counts(self.expected, self.missing, self.errors, len(self.rows))
        return {"videos": self.videos, **counts}

    def summary(self) -> dict[str, Any]:
        """The content of ``results.json``: the same for the same inputs, whatever the workers."""
        return {
            "benchmark": self.protocol.benchmark,
            "dataset": self.dataset,
            "split": self.split,
            "complete": self.complete,
            **{name: means(rows) for name, rows in self.groups().items()},
            "groups": {name: len(rows) for name, rows in self.groups().items()},
            "counts": self.counts(),
            "protocol": {
                "name": self.protocol.name,
                "frames": self.protocol.frames,
                "mean": "frames, then expressions, unweighted; J&F is the mean of J and F",
                "rounding": "none",
                "missing": self.missing_policy,
                **published_rule(self.missing_policy, self.protocol.published),
                "prediction_values": self.encodings,
                **self.details,
            },
            "missing": [problem.record() for problem in self.missing],
            "errors": [problem.record() for problem in self.errors],
            "ground_truth_sha256": self.gt_sha256,
            "versions": versions(),
        }


def published_rule(missing: Missing, published: Published | None) -> dict[str, str]:
    """The script's rule in words, for ``results.json``, where it was followed."""
    return {"published": PUBLISHED_TEXT[published]} if missing == "published" and published is not None else {}


def means(rows: Sequence[Row]) -> dict[str, float | None]:
    """J, F and JF over expressions, in per cent, unrounded; None where there is no expression, or no J and F."""
    if not rows:
        return {"J": None, "F": None, "JF": None}
    j, f = (float(np.mean([getattr(row, column) for row in rows])) for column in ("j", "f"))
    if math.isnan(j):  # they were not asked for
        return {"J": None, "F": None, "JF": None}
    return {"J": j, "F": f, "JF": (j + f) / 2}


def evaluate(
    dataset: Dataset,
    predicted: Predictions,
    *,
    protocol: Protocol,
    missing: Missing = "zero",
    workers: int = 1,
    group_of: Callable[[VideoSample], str | None] = lambda sample: None,
    gt_sha256: Mapping[str, str] | None = None,
    details: Mapping[str, str] | None = None,
    scorer: Callable[..., Scorer] = Scorer,
) -> JFResults:
    """Score every expression of `dataset`.

    scorer: of a benchmark that measures more than J and F in the same pass. group_of: the part of the data set that an
    expression belongs to. gt_sha256, details: further hashes of ground truth and further choices, for the record.
    DataError as `survey` and `score_all` raise it; a single broken prediction is listed in the results.
    """
    found = survey(dataset, predicted, missing=missing, published=protocol.published)
    outcomes: dict[str, Outcome] = {**found.broken}
    outcomes |= score_all(scorer(dataset, predicted, "jf"), found.present, workers=workers)
    print_warnings(dataset)
    check_not_all_alike(outcomes)
    scored = [outcome.values for outcome in outcomes.values() if isinstance(outcome, Score)]
    return JFResults(
        protocol=protocol,
        dataset=dataset.name,
        split=dataset.split,
        missing_policy=missing,
        rows=tuple(_rows(dataset, found, outcomes, group_of=group_of)),
        missing=tuple(Problem(key, reason) for key, reason in found.absences.items()),
        errors=tuple(Problem(s.key, outcome) for s in dataset if isinstance(outcome := outcomes.get(s.key), str)),
        expected=len(dataset),
        videos=len({sample.video for sample in dataset}),
        encodings=count_encodings(scored),
        gt_sha256={name: sha256(path) for name, path in dataset.files.items() if path.is_file()}
        | dict(gt_sha256 or {}),
        details=dict(details or {}),
    )


def _rows(
    dataset: Dataset,
    found: Survey,
    outcomes: Mapping[str, Outcome],
    *,
    group_of: Callable[[VideoSample], str | None],
) -> Iterator[Row]:
    for sample in dataset:
        outcome = outcomes.get(sample.key)
        if isinstance(outcome, Score):
            yield Row(sample, 100 * outcome.j, 100 * outcome.f, group_of(sample), extra=outcome.extra)
        elif outcome is None and sample.key not in found.left_out:
            yield Row(sample, 0.0, 0.0, group_of(sample), problem=found.absences[sample.key])


def csv_text(rows: Sequence[Row]) -> str:
    """The per-expression table, ``results.csv``; scores unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        sample = row.sample
        writer.writerow([sample.video, sample.exp_id, sample.expression, row.j, row.f, row.jf, row.group or ""])
    return text.getvalue()


def table(results: JFResults) -> str:
    """What the command prints: the means, and how they came about."""
    counts = results.counts()
    lines = [
        (name, len(rows), *(math.nan if value is None else value for value in means(rows).values()))
        for name, rows in results.groups().items()
    ]
    head = "" if results.complete else f"INCOMPLETE: {len(results.errors)} predictions could not be scored\n"
    details = "".join(f"; {name} {value}" for name, value in results.details.items())
    hashes = ", ".join(f"{name} {digest[:12]}" for name, digest in results.gt_sha256.items())
    return (
        f"{head}{results.protocol.benchmark} {results.split}, protocol {results.protocol.name}: "
        f"{counts['scored']} of {counts['expected']} expressions scored\n"
        f"expected {counts['expected']}, found {counts['found']}, missing {counts['missing']} "
        f"(--missing {results.missing_policy}), skipped {counts['skipped']}, errors {counts['errors']}\n"
        f"{results.protocol.frames}; grey values {encodings_text(results.encodings)}{details}\n"
        f"data: {counts['videos']} videos, {counts['expected']} expressions; sha256 {hashes}\n\n"
        + aligned(("", "n", "J", "F", "J&F"), lines)
    )


def write(results: JFResults, out: Path) -> None:
    """Write ``results.csv`` and ``results.json`` below `out`."""
    atomic.write_bytes(out / "results.csv", csv_text(results.rows).encode("utf-8", "replace"))
    atomic.write_json(out / "results.json", results.summary())
