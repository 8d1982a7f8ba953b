"""The numbers of a comparison, in per cent: runs, their differences to the first, groups of expressions, problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import answers
from eval.results import GROUPS
from inference.compare_runs import Contender, Entry
from veason.tables import aligned

MEASURES = {
    "jf": "J&F",
    "jf_referring": "J&F referring",
    "jf_reasoning": "J&F reasoning",
    "j": "J",
    "f": "F",
    "r": "R",
    "usable": "usable",
    "well_formed": "well-formed",
    "keyframe_ratio": "keyframe ratio",
    "box_iou": "box IoU",
}
"""Name of a measure -> heading of its column, in order."""
NOTE = (
    "In per cent; J&F, J, F and R are overall, the plain mean of referring and reasoning. Usable: of the expressions "
    "with a target, those answered with a shown keyframe and a box. Well-formed: think block, answer block, nothing "
    "else. Keyframe ratio: area of the target in the chosen frame over its largest in a shown frame. Box IoU: of the "
    "matched boxes on that frame, over the larger number of boxes. Both count 0 without a usable answer, and leave out "
    "expressions without a target. Small numbers are differences to the first run; the best of a column is bold."
)
TARGETS = {"one target": (1, 1), "several targets": (2, math.inf), "no target": (0, 0)}
"""Heading -> least and greatest number of objects."""


@dataclass(frozen=True)
class Group:
    """Expressions of one type and number of targets; the tuples are parallel to the runs."""

    type: str
    targets: str
    """A key of `TARGETS`."""
    count: int
    jf: tuple[float, ...]
    box_iou: tuple[float, ...]
    """NaN where there is no target."""

    @property
    def name(self) -> str:
        return self.type if (self.type, self.targets) == ("absent", "no target") else f"{self.type}, {self.targets}"


def measures(contenders: Sequence[Contender], entries: Sequence[Entry]) -> list[dict[str, float]]:
    """Per run the value of each of `MEASURES`; NaN where there is none."""
    rows = []
    for i, contender in enumerate(contenders):
        overall, found = contender.results.group("overall"), answers.means(entry.answers[i] for entry in entries)
        values = {
            "jf": overall.jf,
            "jf_referring": contender.results.group("referring").jf,
            "jf_reasoning": contender.results.group("reasoning").jf,
            "j": overall.j,
            "f": overall.f,
            "r": overall.r,
            **{name: 100 * share for name, share in vars(found).items()},
        }
        rows.append({name: values[name] for name in MEASURES})
    return rows


def differences(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Each of `measures` less that of the first run."""
    return [{name: row[name] - rows[0][name] for name in row} for row in rows]


def best(values: Sequence[float]) -> set[int]:
    """Places of the largest values, as they are printed; none where all are equal."""
    printed = [round(value, 2) for value in values]
    known = [value for value in printed if not math.isnan(value)]
    if len(set(known)) < 2:
        return set()
    return {i for i, value in enumerate(printed) if value == max(known)}


def groups(entries: Sequence[Entry]) -> list[Group]:
    """Types of expressions by their number of targets, those that there are."""
    found = []
    for type_name, type_id in GROUPS.items():
        for heading, (low, high) in TARGETS.items():
            members = [e for e in entries if e.sample.type_id == type_id and low <= e.targets <= high]
            if members:
                runs = range(len(members[0].rows))
                jf = tuple(_jf(members, i) for i in runs)
                overlap = tuple(100 * answers.means(entry.answers[i] for entry in members).box_iou for i in runs)
                found.append(Group(type_name, heading, len(members), jf, overlap))
    return found


def _jf(entries: Sequence[Entry], run: int) -> float:
    """Mean of J and F over some expressions, as `Results.group` takes it."""
    return float(sum(np.mean([getattr(entry.rows[run], name) for entry in entries]) for name in ("j", "f")) / 2)


def problems(entries: Sequence[Entry]) -> list[tuple[str, list[int]]]:
    """(problem, how many replies of each run have it): none first, then the most frequent ones of all runs.

    An empty box list is the right answer where there is no target, and is counted apart there.
    """
    runs = range(len(entries[0].problems))
    counts = [Counter(_problem(entry, i) for entry in entries) for i in runs]
    total = sum(counts, Counter())
    names = sorted(total, key=lambda name: (name != "none", -total[name], name))
    return [(name, [count[name] for count in counts]) for name in names]


def _problem(entry: Entry, run: int) -> str:
    problem = entry.problems[run]
    if problem == "no_boxes" and entry.targets == 0:
        return "no_boxes, rightly"
    return problem or "none"


def against_first(entries: Sequence[Entry], run: int) -> dict[str, int]:
    """On how many expressions a run has a higher, lower or equal J&F than the first run."""
    signs = Counter(int(np.sign(entry.rows[run].jf - entry.rows[0].jf)) for entry in entries)
    return {"higher": signs[1], "lower": signs[-1], "equal": signs[0]}


def text(names: Sequence[str], rows: Sequence[dict[str, float]], count: int) -> str:
    """What the command prints: values, then differences to the first run."""
    values = [(name, count, *row.values()) for name, row in zip(names, rows, strict=True)]
    header = ("", "n", *MEASURES.values())
    changes = [
        (f"{name} - {names[0]}", "", *(signed(value) for value in row.values()))
        for name, row in zip(names[1:], differences(rows)[1:], strict=True)
    ]
    return aligned(header, [*values, *changes])


def signed(value: float) -> str:
    """A difference to two digits, with its sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def document(contenders: Sequence[Contender], entries: Sequence[Entry]) -> dict[str, Any]:
    """The content of ``comparison.json``, but for the examples; None stands for NaN."""
    rows = measures(contenders, entries)
    failures = problems(entries)
    first = contenders[0]
    return {
        "benchmark": "ReVOS",
        "split": first.results.split,
        "unit": "per cent",
        "expressions": len(entries),
        "with_target": sum(entry.targets > 0 for entry in entries),
        "runs": [
            {
                "name": contender.name,
                "path": str(contender.run.path),
                **{name: _json(value) for name, value in row.items()},
                "differences": {name: _json(value) for name, value in change.items()},
                "jf_against_first": against_first(entries, i),
                "problems": {name: counts[i] for name, counts in failures if counts[i]},
            }
            for i, (contender, row, change) in enumerate(zip(contenders, rows, differences(rows), strict=True))
        ],
        "groups": [
            {
                "type": group.type,
                "targets": group.targets,
                "expressions": group.count,
                "jf": [_json(value) for value in group.jf],
                "box_iou": [_json(value) for value in group.box_iou],
            }
            for group in groups(entries)
        ],
        "protocol": {"robustness": first.results.robustness, "missing": first.results.missing_policy},
        "ground_truth_sha256": first.results.gt_sha256,
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
