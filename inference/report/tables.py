"""Works out the numbers of a comparison, in per cent, and chooses the expressions that it shows as examples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from eval import answers
from eval.results import OVERALL, REVOS_TYPES, Results, Row, means
from inference.report import number, pictures, signed
from inference.report.run import Run
from veason.tables import aligned
from veason.types import VideoSample

ANSWER_MEASURES = {
    "usable": "usable",
    "well_formed": "well-formed",
    "keyframe_ratio": "keyframe ratio",
    "box_iou": "box IoU",
}
"""The measures of replies before any tracking (`eval.answers.Means`), with the headings of their columns."""
MOST_GROUPS = 4
"""Groups of a benchmark that have a column of their own, at most."""
ANSWERS_NOTE = (
    "Usable: of the expressions with a target, those answered with a shown keyframe and a box. Well-formed: think "
    "block, answer block, nothing else. Keyframe ratio: area of the target in the chosen frame over its largest in a "
    "shown frame. Box IoU: of the matched boxes on that frame, over the larger number of boxes. Both count 0 without a "
    "usable answer, and leave out expressions without a target and keyframes without ground truth. Small numbers are "
    "differences to the first run; the best of a column is bold."
)
TARGETS = {"one target": (1, 1), "several targets": (2, math.inf), "no target": (0, 0)}
"""The headings of groups, each with the least and greatest number of objects in it."""
ABSENT_FROM = 6
"""The number of examples from which on one is of an absent target, if there are any."""
EXAMPLES_NOTE = (
    "Chosen by the change of J&F from the first run to the last: the largest gains and losses (one of each video "
    "before a second of any), and between them expressions evenly spaced in the order of all changes."
)


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores, under the name that the comparison gives it."""

    name: str
    run: Run
    results: Results
    step: int | None = None
    """The training step after which its checkpoint was saved; None where the runs are not steps of one training."""


@dataclass(frozen=True)
class Entry:
    """One expression as every run answered it; the tuples are parallel to the runs."""

    sample: VideoSample
    rows: tuple[Row, ...]
    """Scores, in per cent."""
    answers: tuple[answers.Quality, ...]
    """The keyframe ratio and the box IoU are NaN on a keyframe without ground truth."""
    problems: tuple[str | None, ...]
    """The code of what was wrong with the reply."""

    @property
    def group(self) -> str:
        """The part of the data set that has its own means; ``all`` where the benchmark has no parts."""
        return self.rows[0].group or "all"

    @property
    def targets(self) -> int:
        """The number of the target's objects that are in any frame; 0 where it is absent."""
        return self.answers[0].targets

    @property
    def change(self) -> float:
        """The J&F of the last run less that of the first, in per cent."""
        return self.rows[-1].jf - self.rows[0].jf


@dataclass(frozen=True)
class Group:
    """Expressions of one part of the data set and number of targets; the tuples are parallel to the runs."""

    type: str
    targets: str
    """A key of `TARGETS`."""
    count: int
    jf: tuple[float, ...]
    box_iou: tuple[float, ...]
    """NaN where there is no target."""

    @property
    def name(self) -> str:
        if self.type == "all":
            return self.targets
        return self.type if (self.type, self.targets) == ("absent", "no target") else f"{self.type}, {self.targets}"


def headings(results: Results) -> dict[str, str]:
    """Lists the measures of a comparison in order, with the headings of their columns: the evaluator's, then ours."""
    parts = [name for name in results.groups if name not in (OVERALL, "absent")]
    named = {f"jf_{name}": f"J&F {name}" for name in (parts if len(parts) <= MOST_GROUPS else ())}
    scores = {"jf": "J&F", **named, "j": "J", "f": "F"}
    scores |= {column.lower(): column for column in ("R", "mAP") if column in results.columns}
    return scores | ANSWER_MEASURES


def measures(scored_runs: Sequence[ScoredRun], entries: Sequence[Entry]) -> list[dict[str, float]]:
    """Takes the value of each of `headings` for every run; it is NaN where there is none."""
    rows = []
    for i, scored_run in enumerate(scored_runs):
        mean, shares = scored_run.results.mean, answer_means(entry.answers[i] for entry in entries)
        values = {column.lower(): mean(OVERALL, column) for column in ("J", "F", "R", "mAP")}
        values |= {f"jf_{name}": mean(name, "JF") for name in scored_run.results.groups}
        values |= {"jf": mean(OVERALL, "JF"), **{name: 100 * share for name, share in vars(shares).items()}}
        rows.append({name: values[name] for name in headings(scored_runs[0].results)})
    return rows


def answer_means(qualities: Iterable[answers.Quality]) -> answers.Means:
    """Takes the means of `answers.means`; keyframes without ground truth are left out of those about them."""
    every = list(qualities)
    known = answers.means(quality for quality in every if not math.isnan(quality.box_iou))
    return replace(answers.means(every), keyframe_ratio=known.keyframe_ratio, box_iou=known.box_iou)


def differences(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Subtracts the measures of the first run from those of each run."""
    return [{name: row[name] - rows[0][name] for name in row} for row in rows]


def best(values: Sequence[float]) -> set[int]:
    """Finds the places of the largest values, as they are printed; there are none where all are equal."""
    printed = [round(value, 2) for value in values]
    known = [value for value in printed if not math.isnan(value)]
    if len(set(known)) < 2:
        return set()
    return {i for i, value in enumerate(printed) if value == max(known)}


def groups(entries: Sequence[Entry]) -> list[Group]:
    """Groups the expressions by part of the data set and number of targets; empty groups are left out."""
    order = [*REVOS_TYPES, *sorted({entry.group for entry in entries} - REVOS_TYPES.keys())]
    found = []
    for name in order:
        for heading, (low, high) in TARGETS.items():
            members = [entry for entry in entries if entry.group == name and low <= entry.targets <= high]
            if members:
                runs = range(len(members[0].rows))
                jf = tuple(means([entry.rows[i] for entry in members])["JF"] for i in runs)
                overlap = tuple(100 * answer_means(entry.answers[i] for entry in members).box_iou for i in runs)
                found.append(Group(name, heading, len(members), jf, overlap))
    return found


def problems(entries: Sequence[Entry]) -> list[tuple[str, list[int]]]:
    """Counts the problems of each run's replies: "none" comes first, then the most frequent ones of all runs.

    An empty box list is the right answer where there is no target, and is counted apart there.
    """
    counts: list[Counter[str]] = [Counter() for _ in entries[0].problems]
    for entry in entries:
        for count, problem in zip(counts, entry.problems, strict=True):
            rightly = problem == "no_boxes" and entry.targets == 0
            count["no_boxes, rightly" if rightly else problem or "none"] += 1
    total = sum(counts, Counter())
    names = sorted(total, key=lambda name: (name != "none", -total[name], name))
    return [(name, [count[name] for count in counts]) for name in names]


def against_first(entries: Sequence[Entry], run: int) -> dict[str, int]:
    """Counts the expressions on which a run has a higher, lower or equal J&F than the first run."""
    signs = Counter(int(np.sign(entry.rows[run].jf - entry.rows[0].jf)) for entry in entries)
    return {"higher": signs[1], "lower": signs[-1], "equal": signs[0]}


def text(scored_runs: Sequence[ScoredRun], entries: Sequence[Entry]) -> str:
    """Writes the table that the command prints: values, then differences to the first run."""
    names, rows = [scored_run.name for scored_run in scored_runs], measures(scored_runs, entries)
    values: list[tuple[str | int | float, ...]] = [
        (name, len(entries), *row.values()) for name, row in zip(names, rows, strict=True)
    ]
    header = ("", "n", *headings(scored_runs[0].results).values())
    changes: list[tuple[str | int | float, ...]] = [
        (f"{name} - {names[0]}", "", *(signed(value) for value in row.values()))
        for name, row in zip(names[1:], differences(rows)[1:], strict=True)
    ]
    return aligned(header, [*values, *changes])


def document(scored_runs: Sequence[ScoredRun], entries: Sequence[Entry]) -> dict[str, Any]:
    """Makes the content of the JSON file, but for the examples; None stands for NaN."""
    rows = measures(scored_runs, entries)
    failures = problems(entries)
    first = scored_runs[0]
    return {
        "benchmark": first.results.benchmark,
        "split": first.results.split,
        "unit": "per cent",
        "expressions": len(entries),
        "with_target": sum(entry.targets > 0 for entry in entries),
        "runs": [
            {
                "name": scored_run.name,
                "path": str(scored_run.run.path),
                **({} if scored_run.step is None else {"step": scored_run.step}),
                **{name: _json(value) for name, value in row.items()},
                "differences": {name: _json(value) for name, value in change.items()},
                "jf_against_first": against_first(entries, i),
                "problems": {name: counts[i] for name, counts in failures if counts[i]},
            }
            for i, (scored_run, row, change) in enumerate(zip(scored_runs, rows, differences(rows), strict=True))
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
        "protocol": first.results.protocol,
        "ground_truth_sha256": first.results.gt_sha256,
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


class Cell(NamedTuple):
    """A cell of a table on the page, with a second value in small type."""

    text: str
    small: str = ""
    css: str = ""


def cells(values: Sequence[float]) -> list[Cell]:
    """Makes the cells of values that are compared: the largest is bold, all but the first have the difference to it."""
    bold, made = best(values), []
    for i, value in enumerate(values):
        change = value - values[0] if i else math.nan
        small = "" if math.isnan(change) else signed(change)
        made.append(Cell(number(value), small, "main" if i in bold else ""))
    return made


def page_tables(scored_runs: Sequence[ScoredRun], entries: Sequence[Entry]) -> dict[str, Any]:
    """Makes the rows of the page's tables, as the template names them."""
    names, results = [scored_run.name for scored_run in scored_runs], scored_runs[0].results
    rows, found = measures(scored_runs, entries), groups(entries)
    columns = [cells([row[name] for row in rows]) for name in headings(results)]
    by = "by type and targets" if any(group.type != "all" for group in found) else "by number of targets"
    settings: list[Mapping[str, Any]] = [scored_run.run.settings for scored_run in scored_runs]
    differing = [
        name
        for name in dict.fromkeys(name for values in settings for name in values)
        if any(values.get(name) != settings[0].get(name) for values in settings)
    ]
    scored = "J&F, J, F and R" if "R" in results.columns else "J&F, J and F"
    weighting = (
        "overall, the plain mean of referring and reasoning" if results.dataset == "revos" else "over all expressions"
    )
    return {
        "names": names,
        "headings": list(headings(results).values()),
        "run_rows": [(name, len(entries), *(column[i] for column in columns)) for i, name in enumerate(names)],
        "measures_note": f"In per cent; {scored} are {weighting}. {ANSWERS_NOTE}",
        "groups": [
            (f"{heading} {by}", [(group.name, group.count, *cells(getattr(group, key))) for group in found])
            for heading, key in (("J&F", "jf"), ("Box IoU", "box_iou"))
        ],
        "problem_rows": [
            (problem, *(Cell(str(n), f"{100 * n / len(entries):.1f} %") for n in counts))
            for problem, counts in problems(entries)
        ],
        "against_rows": [(name, *against_first(entries, i).values()) for i, name in enumerate(names[1:], start=1)],
        "setting_rows": [
            (name, *(Cell(str(values.get(name, "–")), css="text") for values in settings)) for name in differing
        ],
        "examples_note": EXAMPLES_NOTE,
    }


def step_charts(
    scored_runs: Sequence[ScoredRun], entries: Sequence[Entry], training: Mapping[str, Sequence[tuple[int, float]]]
) -> list[pictures.Chart]:
    """Draws the measures of the runs by step and, where they are given, the curves of the training's metrics."""
    rows, names = measures(scored_runs, entries), headings(scored_runs[0].results)

    def scores(wanted: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
        steps = [scored_run.step or 0 for scored_run in scored_runs]
        return {names[key]: [(step, row[key]) for step, row in zip(steps, rows, strict=True)] for key in wanted}

    terms = [name for name in training if name.startswith("reward/")]
    terms = [name for name in terms if name not in ("reward/total", "reward/without_problem")]
    charts = [
        pictures.Chart.of("J&F, in per cent", scores(key for key in names if key.startswith("jf"))),
        pictures.Chart.of("Replies, in per cent", scores(ANSWER_MEASURES)),
    ]
    for heading, chosen in (
        ("Training: reward", ("reward/total", "val/reward/total")),
        ("Training: terms of the reward", terms),
        ("Training: tokens of a reply", ("length/response",)),
        ("Training: KL to the reference", ("actor/kl",)),
    ):
        charts.append(pictures.Chart.of(heading, {name: training[name] for name in chosen if name in training}))
    return [chart for chart in charts if chart is not None]


@dataclass(frozen=True)
class Example:
    """An expression that is shown as an example, and the reason."""

    entry: Entry
    kind: str
    """gain, typical, loss, or absent"""


def choose(entries: Sequence[Entry], n: int) -> list[Example]:
    """Chooses at most `n` examples: a quarter losses, a quarter typical, one without a target, the others gains.

    Where gains or losses are too few, typical ones take their places. The choice is the same for the same entries.
    """
    quarter = n // 4
    present = sorted((entry for entry in entries if entry.targets), key=lambda entry: -entry.change)
    absent = sorted((entry for entry in entries if not entry.targets), key=lambda entry: -abs(entry.change))
    absent = absent[: max(int(n >= ABSENT_FROM), n - len(present))]
    room = n - len(absent)
    gains = _spread(entry for entry in present if entry.change > 0)[: room - 2 * quarter]
    losses = _spread(entry for entry in reversed(present) if entry.change < 0)[:quarter]
    shown = {entry.sample.key for entry in (*gains, *losses)}
    others = [entry for entry in present if entry.sample.key not in shown]
    count = min(room - len(shown), len(others))
    typical = [others[(2 * i + 1) * len(others) // (2 * count)] for i in range(count)]  # middles of equal parts
    kinds = (("gain", gains), ("typical", typical), ("loss", losses), ("absent", absent))
    return [Example(entry, kind) for kind, members in kinds for entry in members]


def _spread(ranked: Iterable[Entry]) -> list[Entry]:
    """Orders `ranked` so that the first of every video comes before the second of any."""
    seen: Counter[str] = Counter()
    rounds = []
    for entry in ranked:
        rounds.append((seen[entry.sample.video], entry))
        seen[entry.sample.video] += 1
    return [entry for _, entry in sorted(rounds, key=lambda pair: pair[0])]
