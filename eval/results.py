"""The results of an evaluation in one record for every benchmark: rows, groups with their means, counts, protocol.

An evaluator returns `Results`, which it writes as ``results.csv`` and ``results.json`` and prints as a table;
`eval.scores_file` reads the two files back.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from veason import atomic
from veason.datasets.base import Dataset, sha256
from veason.tables import Cell, aligned

Missing = Literal["zero", "skip", "error", "published"]
"""The rule for a missing prediction: it scores zero, is left out of the means, ends the run, or follows the benchmark's
script."""

COLUMNS = ("J", "F", "JF")
"""The measures of every protocol, as files name them."""
OVERALL = "overall"
"""The group over everything that has a target."""
REVOS_TYPES = {"referring": 0, "reasoning": 1, "absent": 2}
"""The groups of ReVOS -> type_id of their expressions."""
_LAST = ("counts", "protocol", "missing", "skipped", "errors", "ground_truth_sha256", "versions", "version", "tracks")
"""The last entries of ``results.json``, in order."""


@dataclass(frozen=True)
class Problem:
    """A sample that was not scored as it should be, and the reason."""

    sample: str
    """``video/exp_id``; where whole videos are scored, the video."""
    reason: str

    def record(self) -> dict[str, str]:
        """Returns the entry of ``results.json``."""
        return {"sample": self.sample, "reason": self.reason}


@dataclass(frozen=True)
class Row:
    """The scores of one expression in per cent; where DAVIS's protocols match objects, those of one true object."""

    video: str
    exp_id: str
    """The expression; empty for an object that no expression stands for."""
    expression: str
    """The text of the expression; empty for an object."""
    j: float
    """NaN where J and F were not computed."""
    f: float
    jf: float
    group: str | None = None
    """The part of the data set that has its own means, such as ``reasoning``."""
    extra: Mapping[str, Cell] = field(default_factory=dict)
    """Further columns of ``results.csv`` by name, such as A, R and type_id."""
    problem: str | None = None
    """The missing part of the prediction; the scores are zero then."""

    @property
    def key(self) -> str:
        """The key of the sample, ``video/exp_id``."""
        return f"{self.video}/{self.exp_id}"

    def cells(self) -> dict[str, Cell]:
        """Returns every value by its column of ``results.csv``."""
        return {
            "video_name": self.video,
            "exp_id": self.exp_id,
            "exp": self.expression,
            "J": self.j,
            "F": self.f,
            "JF": self.jf,
            "group": self.group or "",
            **self.extra,
        }


@dataclass(frozen=True)
class Layout:
    """The layout of the printed table of some results; their files do not hold it."""

    heading: str = ""
    """The text above the table."""
    footnote: str = ""
    """The text below it."""
    labels: Mapping[str, str] | None = None
    """The groups with their names in the table, in order; None for all groups, that without a target last."""
    lines_above: tuple[tuple[Cell, ...], ...] = ()
    """Lines above those of the groups."""
    unit: str = "n"
    """The heading of the column of counts."""
    columns: tuple[str, ...] | None = None
    """The measures in the table; None for all that rows have, no table where there is none."""
    items: str = "predictions"
    """The things that could not be scored where there are errors."""


@dataclass(frozen=True)
class Results:
    """The results of one evaluation. `summary` is the content of ``results.json``, `to_csv` that of ``results.csv``."""

    benchmark: str
    """The name in print, ``ReVOS``."""
    dataset: str
    split: str
    missing_policy: Missing
    rows: tuple[Row, ...]
    """In the order of the data set."""
    groups: Mapping[str, Mapping[str, float]]
    """Means in per cent, unrounded: group -> column -> mean, NaN where there is none. `OVERALL` is one of the groups.

    A slash in a name is a level of ``results.json``: ``annotators/0``.
    """
    missing: tuple[Problem, ...]
    """Samples with a file missing: they are rows of zeros, or left out."""
    errors: tuple[Problem, ...]
    """Samples with a broken prediction or ground truth; they have no row."""
    counts: Mapping[str, Any]
    """The numbers of samples expected, found, missing, skipped, scored, and so on (`sample_counts`)."""
    protocol: Mapping[str, Any]
    """The rules of scoring in words."""
    gt_sha256: Mapping[str, str]
    """Hashes of the ground truth, by role."""
    csv_columns: tuple[str, ...] = ("video_name", "exp_id", "exp", *COLUMNS, "group")
    further: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of ``results.json``."""
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    """Versions of the libraries that a score depends on."""
    layout: Layout = field(default_factory=Layout, compare=False)

    @property
    def complete(self) -> bool:
        """True if no sample was lost to an error."""
        return not self.errors

    @property
    def columns(self) -> tuple[str, ...]:
        """The measures that the groups have means of, such as ``J``, ``F``, ``JF``, ``A``, ``R``."""
        return tuple(self.groups[OVERALL])

    def mean(self, group: str, column: str) -> float:
        """Returns a mean in per cent; NaN for a group or a column that the results do not have."""
        return self.groups.get(group, {}).get(column, math.nan)

    def members(self, group: str) -> list[Row]:
        """Returns the rows of a group; `OVERALL` is over all but the expressions without a target in ``absent``."""
        if group == "sequences":
            return list({row.video: row for row in self.rows}.values())  # one of each video
        return [row for row in self.rows if (row.group != "absent" if group == OVERALL else row.group == group)]

    def summary(self) -> dict[str, Any]:
        """Returns the content of ``results.json``: the same for the same inputs, whatever the number of workers."""
        found: dict[str, Any] = {
            "benchmark": self.benchmark,
            "dataset": self.dataset,
            "split": self.split,
            "complete": self.complete,
        }
        for name, means in self.groups.items():
            level, _, last = name.rpartition("/")
            place = found.setdefault(level, {}) if level else found
            place[last] = {column: None if math.isnan(mean) else mean for column, mean in means.items()}
        found |= {
            **self.further,
            "counts": dict(self.counts),
            "protocol": dict(self.protocol),
            "missing": [problem.record() for problem in self.missing],
            "errors": [problem.record() for problem in self.errors],
            "ground_truth_sha256": dict(self.gt_sha256),
            "versions": dict(self.versions),
        }
        return {name: found[name] for name in (*(n for n in found if n not in _LAST), *_LAST) if name in found}

    def to_json(self) -> str:
        """Returns the text of ``results.json``."""
        return json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Returns the text of ``results.csv``, a line a row; a score that was not computed is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.csv_columns)
        for row in self.rows:
            cells = row.cells()
            writer.writerow(["" if cells[name] != cells[name] else cells[name] for name in self.csv_columns])  # NaN
        return text.getvalue()

    def table(self) -> str:
        """Returns the text that a command prints: the means of the groups, and how they came about."""
        layout = self.layout
        columns = [column for column in self.columns if column in self.csv_columns]
        if layout.columns is not None:
            columns = list(layout.columns)
        labels = layout.labels or {name: name for name in sorted(self.groups, key=lambda name: name == "absent")}
        lines: list[Sequence[Cell]] = [
            (label, len(self.members(name)), *(self.mean(name, column) for column in columns))
            for name, label in labels.items()
        ]
        header = ("", layout.unit, *("J&F" if column == "JF" else column for column in columns))
        grid = aligned(header, [*layout.lines_above, *lines]) if columns else ""
        head = "" if self.complete else f"INCOMPLETE: {len(self.errors)} {layout.items} could not be scored\n"
        return head + "\n\n".join(part for part in (layout.heading, grid, layout.footnote) if part)

    def write(self, out: Path) -> None:
        """Writes ``results.csv`` and ``results.json`` into the folder `out`."""
        atomic.write_bytes(out / "results.csv", self.to_csv().encode("utf-8", "replace"))
        atomic.write_bytes(out / "results.json", self.to_json().encode())


def means(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> dict[str, float]:
    """Takes the plain means over rows by column; JF is the mean of those of J and F; NaN without a row."""
    if not rows:
        return dict.fromkeys(columns, math.nan)
    cells = [row.cells() for row in rows]
    found = {column: float(np.mean([cell[column] for cell in cells])) for column in columns if column != "JF"}
    found["JF"] = (found["J"] + found["F"]) / 2
    return {column: found[column] for column in columns}


def sample_counts(
    expected: int, missing: Sequence[Problem], errors: Sequence[Problem], scored: int, skipped: int | None = None
) -> dict[str, int]:
    """Counts what became of the expected samples, as every ``results.json`` has it.

    skipped: the samples left out for a missing prediction; unless given, all that are neither scored nor an error.
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
    """Counts expressions by the grey values of their masks, ``0/255`` say; `found` holds the nonzero values of each."""
    names = ("/".join(map(str, (0, *values))) if len(values) <= 3 else f"{len(values)} values" for values in found)
    return dict(sorted(Counter(names).items()))


def encodings_text(encodings: Mapping[str, int]) -> str:
    """Writes `count_encodings` in a line of text."""
    return ", ".join(f"{name} in {n}" for name, n in encodings.items()) or "none"


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that a score depends on."""
    import importlib.metadata  # takes as long to load as OpenCV, and workers do not need it

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pycocotools": importlib.metadata.version("pycocotools"),
    }


def ground_truth_sha256(dataset: Dataset) -> dict[str, str]:
    """Returns the hash of each index file of a data set, by role."""
    return {name: sha256(path) for name, path in dataset.files.items() if path.is_file()}


def sha256_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Returns one hex SHA-256 over names below `root` and contents, in ascending order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()
