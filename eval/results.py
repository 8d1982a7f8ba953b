"""What an evaluation on ReVOS found: rows, means, counts; as a CSV file, a JSON file and a table."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from veason import atomic
from veason.tables import aligned

Robustness = Literal["visa", "binary"]
Missing = Literal["zero", "skip", "error", "published"]
"""What a missing prediction is: zeros; left out of the means; the end of the run; what the benchmark's script does."""

GROUPS = {"referring": 0, "reasoning": 1, "absent": 2}
"""Name of a group of expressions -> type_id."""
CSV_HEADER = ("video_name", "exp_id", "exp", "J", "F", "JF", "A", "R", "type_id")


@dataclass(frozen=True)
class Row:
    """One expression's scores in per cent, rounded to two digits."""

    video: str
    exp_id: str
    expression: str
    type_id: int
    j: float
    f: float
    jf: float
    a: float
    r: float
    problem: str | None = None
    """What of the prediction was missing; the scores are zero then."""


@dataclass(frozen=True)
class Problem:
    """A sample that was not scored as it should be, and why."""

    sample: str
    """``video/exp_id``"""
    reason: str

    def record(self) -> dict[str, str]:
        """As ``results.json`` lists it."""
        return {"sample": self.sample, "reason": self.reason}


@dataclass(frozen=True)
class Means:
    """Means of one group of expressions, in per cent, unrounded; NaN where there is none."""

    j: float
    f: float
    jf: float
    a: float
    r: float

    def columns(self) -> dict[str, float | None]:
        """By column name, None for NaN: JSON knows no NaN."""
        values = {"J": self.j, "F": self.f, "JF": self.jf, "A": self.a, "R": self.r}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class Results:
    """Everything an evaluation found. `summary` is what ``results.json`` holds."""

    split: str
    robustness: Robustness
    missing_policy: Missing
    rows: tuple[Row, ...]
    """Scored expressions in the order of the data set."""
    missing: tuple[Problem, ...]
    """Expressions with a file missing: rows of zeros, or left out."""
    errors: tuple[Problem, ...]
    """Expressions with a broken prediction or ground truth; they have no row."""
    expected: dict[str, int]
    """Expressions in the data set, by group."""
    encodings: dict[str, int]
    """Number of expressions by the grey values of their masks, ``0/255`` say."""
    gt_sha256: dict[str, str]
    """Hashes of the ground-truth files."""
    videos: int | None = None
    """In the data set, scored or not; None for results read back from a file that does not say."""

    @property
    def complete(self) -> bool:
        """No expression was lost to an error."""
        return not self.errors

    def group(self, name: str) -> Means:
        """Means of ``referring``, ``reasoning`` or ``absent``, or ``overall``: the plain mean of the first two."""
        if name == "overall":
            first, second = self.group("referring"), self.group("reasoning")
            return Means(*((getattr(first, c) + getattr(second, c)) / 2 for c in ("j", "f", "jf", "a", "r")))
        rows = [row for row in self.rows if row.type_id == GROUPS[name]]
        if not rows:
            return Means(*[math.nan] * 5)
        j, f, a, r = (float(np.mean([getattr(row, column) for row in rows])) for column in ("j", "f", "a", "r"))
        return Means(j=j, f=f, jf=(j + f) / 2, a=a, r=r)

    def counts(self) -> dict[str, Any]:
        """How many expressions were expected, found, missing, skipped, broken, scored; by group too."""
        scored = Counter(row.type_id for row in self.rows)
        return {
            **({} if self.videos is None else {"videos": self.videos}),
            **sample_counts(sum(self.expected.values()), self.missing, self.errors, len(self.rows)),
            "by_type": {
                name: {"expected": self.expected[name], "scored": scored[type_id]} for name, type_id in GROUPS.items()
            },
        }

    def summary(self) -> dict[str, Any]:
        """The content of ``results.json``: the same for the same inputs, whatever the workers."""
        return {
            "benchmark": "ReVOS",
            "dataset": "revos",
            "split": self.split,
            "complete": self.complete,
            **{name: self.group(name).columns() for name in ("referring", "reasoning", "absent", "overall")},
            "ours": {"R_type2": self.group("absent").columns()["R"]},
            "counts": self.counts(),
            "protocol": self._protocol(),
            "missing": [p.record() for p in self.missing],
            "errors": [p.record() for p in self.errors],
            "ground_truth_sha256": self.gt_sha256,
            "versions": versions(),
        }

    def _protocol(self) -> dict[str, Any]:
        return {
            "frames": "all frames of the video",
            "rounding": "frame means of an expression in per cent, rounded to 2 digits before averaging",
            "overall": "unweighted mean of referring and reasoning",
            "absent": "apart, in no other mean",
            "robustness": self.robustness,
            "missing": self.missing_policy,
            "prediction_values": self.encodings,
        }


def sample_counts(
    expected: int, missing: Sequence[Problem], errors: Sequence[Problem], scored: int, skipped: int | None = None
) -> dict[str, int]:
    """What became of the expected samples, as every ``results.json`` counts them.

    skipped: left out for a missing prediction; unless given, whatever is neither scored nor an error.
    """
    return {
        "expected": expected,
        "found": expected - len(missing),
        "missing": len(missing),
        "skipped": expected - scored - len(errors) if skipped is None else skipped,
        "errors": len(errors),
        "scored": scored,
    }


def count_encodings(found: Iterable[Sequence[int]]) -> dict[str, int]:
    """Number of expressions by their masks' grey values; `found` holds the nonzero values of each."""
    names = ("/".join(map(str, (0, *values))) if len(values) <= 3 else f"{len(values)} values" for values in found)
    return dict(sorted(Counter(names).items()))


def encodings_text(encodings: Mapping[str, int]) -> str:
    """`count_encodings` in a line of text."""
    return ", ".join(f"{name} in {n}" for name, n in encodings.items()) or "none"


def versions() -> dict[str, str]:
    """Versions of what a score depends on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pycocotools": importlib.metadata.version("pycocotools"),
    }


def csv_text(rows: Sequence[Row]) -> str:
    """The per-expression table, ``results.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        writer.writerow([row.video, row.exp_id, row.expression, row.j, row.f, row.jf, row.a, row.r, row.type_id])
    return text.getvalue()


def table(results: Results) -> str:
    """What the command prints: the four groups, and how they came about."""
    counts = results.counts()
    scored = {name: count["scored"] for name, count in counts["by_type"].items()}
    lines = []
    for name in ("referring", "reasoning", "overall", "absent"):
        number = scored["referring"] + scored["reasoning"] if name == "overall" else scored[name]
        means = results.group(name)
        lines.append((name, number, means.j, means.f, means.jf, means.a, means.r))
    head = "" if results.complete else f"INCOMPLETE: {len(results.errors)} predictions could not be scored\n"
    return (
        f"{head}ReVOS {results.split}: {counts['scored']} of {counts['expected']} expressions, "
        f"{counts['missing']} missing ({results.missing_policy}), {counts['errors']} errors; "
        f"robustness {results.robustness}; grey values {encodings_text(results.encodings)}\n\n"
        + aligned(("", "n", "J", "F", "J&F", "A", "R"), lines)
        + "\n\noverall is the plain mean of referring and reasoning; absent (no target) stands apart"
    )


def write(results: Results, out: Path) -> None:
    """Write ``results.csv`` and ``results.json`` below `out`."""
    atomic.write_bytes(out / "results.csv", csv_text(results.rows).encode("utf-8", "replace"))
    atomic.write_json(out / "results.json", results.summary())
