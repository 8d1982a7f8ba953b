"""What the unsupervised protocol found on Ref-DAVIS17: a row an object and annotator; as CSV, JSON and table."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.proposals import MAX_PROPOSALS, ObjectScore
from eval.results import Missing, Problem, sample_counts, versions
from veason import atomic
from veason.tables import aligned

CSV_HEADER = ("annotator", "video_name", "object", "exp_id", "J", "F", "JF")
COLUMNS = ("J", "F", "JF")


@dataclass(frozen=True)
class Run:
    """One annotator's expressions about one video, scored."""

    annotator: int
    video: str
    objects: tuple[ObjectScore, ...]
    expressions: int


@dataclass(frozen=True)
class ProposalResults:
    """Everything an evaluation found. `summary` is what ``results.json`` holds."""

    split: str
    missing_policy: Missing
    annotators: tuple[int, ...]
    """Those whose expressions the data set holds; their four means are averaged."""
    runs: tuple[Run, ...]
    """Scored runs, by annotator, then in the order of the data set."""
    missing: tuple[Problem, ...]
    """Expressions with a file missing."""
    skipped: tuple[str, ...]
    """Keys of the runs that were left out for a missing expression."""
    errors: tuple[Problem, ...]
    """Runs with a broken prediction or ground truth."""
    expressions: int
    videos: int
    gt_sha256: dict[str, str]

    @property
    def complete(self) -> bool:
        """No run was lost to an error."""
        return not self.errors

    def annotator_means(self, annotator: int) -> tuple[float, float, float]:
        """J, F, J&F in per cent, plain means over the annotator's objects; NaN where there is none."""
        objects = [one for run in self.runs if run.annotator == annotator for one in run.objects]
        if not objects:
            return (math.nan,) * 3
        j, f = (100 * float(np.mean([getattr(one, column) for one in objects])) for column in ("j", "f"))
        return j, f, (j + f) / 2

    def means(self) -> tuple[float, float, float]:
        """J, F, J&F in per cent: means of the annotators' means."""
        columns = zip(*(self.annotator_means(annotator) for annotator in self.annotators), strict=True)
        return tuple(float(np.mean(column)) for column in columns)  # type: ignore[return-value]

    def counts(self) -> dict[str, int]:
        """Of expressions as in every ``results.json``, but that errors are runs: an annotator's video each."""
        scored = sum(run.expressions for run in self.runs)
        return {
            "videos": self.videos,
            **sample_counts(
                self.expressions, self.missing, self.errors, scored, len(self.missing) if self.skipped else 0
            ),
            "runs": len(self.runs) + len(self.skipped) + len(self.errors),
            "runs_scored": len(self.runs),
            "runs_skipped": len(self.skipped),
            "objects_scored": sum(len(run.objects) for run in self.runs),
        }

    def summary(self) -> dict[str, Any]:
        """The content of ``results.json``: the same for the same inputs, whatever the workers."""
        return {
            "benchmark": "Ref-DAVIS17",
            "dataset": "refdavis",
            "split": self.split,
            "complete": self.complete,
            "overall": _columns(self.means()),
            "annotators": {str(a): _columns(self.annotator_means(a)) for a in self.annotators},
            "counts": self.counts(),
            "protocol": {
                "name": "refdavis-unsupervised",
                "frames": "all frames of the video, void pixels left out",
                "objects": "each pixel goes to the first expression whose mask covers it; binary scores, background .1",
                "matching": f"Hungarian on (J + F) / 2, objects of the first frame, at most {MAX_PROPOSALS} proposals",
                "mean": "frames, then objects, for each annotator; then annotators; J&F is the mean of J and F",
                "rounding": "none",
                "missing": self.missing_policy,
            },
            "missing": [problem.record() for problem in self.missing],
            "skipped": list(self.skipped),
            "errors": [problem.record() for problem in self.errors],
            "ground_truth_sha256": self.gt_sha256,
            "versions": versions(),
        }


def _columns(values: tuple[float, float, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(v) else v for name, v in zip(COLUMNS, values, strict=True)}


def csv_text(results: ProposalResults) -> str:
    """A row an object and annotator; scores in per cent, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for run in results.runs:
        for one in run.objects:
            j, f = 100 * one.j, 100 * one.f
            writer.writerow([run.annotator, run.video, one.number, one.exp_id or "", j, f, (j + f) / 2])
    return text.getvalue()


def table(results: ProposalResults) -> str:
    """What the command prints: the annotators and their mean, and how they came about."""
    counts = results.counts()
    lines = []
    for annotator in results.annotators:
        objects = sum(len(run.objects) for run in results.runs if run.annotator == annotator)
        lines.append((f"annotator {annotator}", objects, *results.annotator_means(annotator)))
    lines.append(("mean", counts["objects_scored"], *results.means()))
    head = "" if results.complete else f"INCOMPLETE: {len(results.errors)} runs could not be scored\n"
    hashes = ", ".join(f"{name} {digest[:12]}" for name, digest in results.gt_sha256.items())
    return (
        f"{head}Ref-DAVIS17 {results.split}, protocol refdavis-unsupervised (never to be mixed with refdavis-binary)\n"
        f"expected {counts['expected']} expressions, found {counts['found']}, missing {counts['missing']} "
        f"(--missing {results.missing_policy}), skipped {counts['skipped']}\n"
        f"runs {counts['runs']} (an annotator's video each): scored {counts['runs_scored']}, "
        f"skipped {counts['runs_skipped']}, errors {counts['errors']}\n"
        f"data: {counts['videos']} videos; sha256 {hashes}\n\n" + aligned(("", "objects", "J", "F", "J&F"), lines)
    )


def write(results: ProposalResults, out: Path) -> None:
    """Write ``results.csv`` and ``results.json`` below `out`."""
    atomic.write_bytes(out / "results.csv", csv_text(results).encode("utf-8", "replace"))
    atomic.write_json(out / "results.json", results.summary())
