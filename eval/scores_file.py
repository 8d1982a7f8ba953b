"""The files of an evaluation read back, whichever evaluator wrote them, and the check that two results are comparable.

results = scores_file.read(run / "scores")        # results.json and results.csv, checked against each other
results = scores_file.read_summary(path)          # results.json alone: no rows
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import COLUMNS, OVERALL, REVOS_TYPES, Problem, Results, Row, means
from veason.datasets.base import load_json
from veason.errors import DataError
from veason.files import check_regular
from veason.tables import Cell

_NOT_PROTOCOL = ("missing", "published", "prediction_values", "layout")
"""Entries of the protocol that say how masks were stored or how few were there, not how they are scored."""
_VALUES, _MISSING = "grey values of the masks", "missing predictions"
_WHERE_BOTH = {_VALUES, _MISSING}
"""Settings that differ only between two results that both have them: masks that are not all empty, some missing."""
_KNOWN = ("benchmark", "dataset", "split", "complete", "counts", "protocol", "missing", "errors", "ground_truth_sha256",
          "versions")  # fmt: skip
"""Entries of ``results.json`` that are neither groups nor further ones."""


def read_summary(path: Path, *, remedy: str = "score the run again") -> Results:
    """Reads a ``results.json``; the results have no rows.

    Raises DataError if it is no such file, or of an evaluation with errors. remedy: what the message tells the user.
    """
    content = load_json(path)
    try:
        if not content["complete"]:
            first = "".join(f", first {entry['sample']}: {entry['reason']}" for entry in content["errors"][:1])
            raise DataError(
                f"{path}: {content['counts']['errors']} predictions could not be scored{first}; its means are not "
                f"those of the data set: put them right, and {remedy}"
            )
        counts = _checked(content["counts"], dict)
        for key in ("expected", "missing", "scored", *(key for key in ("videos",) if key in counts)):
            _checked(counts[key], int)
        groups: dict[str, dict[str, float]] = {}
        for name, value in content.items():
            inner = {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {}
            for place, entry in ({name: value} | inner).items():
                if isinstance(entry, dict) and {"J", "F"} <= entry.keys():
                    groups[place] = {column: _percent(mean) for column, mean in entry.items()}
        _checked(groups.get(OVERALL), dict)
        _checked(_checked(content["protocol"], dict).get("prediction_values", {}), dict)
        levels = {name.partition("/")[0] for name in groups}
        return Results(
            benchmark=_checked(content.get("benchmark", content["dataset"]), str),
            dataset=_checked(content["dataset"], str),
            split=_checked(content["split"], str),
            missing_policy=content["protocol"].get("missing", "zero"),
            rows=(),
            groups=groups,
            missing=tuple(Problem(entry["sample"], entry["reason"]) for entry in content.get("missing", ())),
            errors=(),
            counts=counts,
            protocol=content["protocol"],
            gt_sha256=_checked(content["ground_truth_sha256"], dict),
            further={name: value for name, value in content.items() if name not in _KNOWN and name not in levels},
            versions=content.get("versions", {}),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not the results.json of an evaluator here ({error!r}); {remedy}") from error


def read(folder: Path, *, remedy: str = "score the run again") -> Results:
    """Reads the ``results.json`` and ``results.csv`` that an evaluator wrote into `folder`.

    Raises DataError if one of them is missing, is no such file or is of another evaluation than the other, and if the
    evaluation had errors. remedy: what the message tells the user to do, such as the command that scores the run.
    """
    for path in (folder / "results.json", folder / "results.csv"):
        if not path.exists():
            raise DataError(f"{path}: no such file: the run is not scored yet; {remedy}")
        check_regular(path)
    results = read_summary(folder / "results.json", remedy=remedy)
    path = folder / "results.csv"
    problems = {problem.sample: problem.reason for problem in results.missing}
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        columns = tuple(reader.fieldnames or ())
        for line in reader:
            video, exp_id, text = line.pop("video_name"), line.pop("exp_id", ""), line.pop("exp", "")
            j, f, jf = (float(value) if (value := line.pop(column)) else math.nan for column in COLUMNS)
            group = line.pop("group", "") or None
            extra = {name: _number(value) for name, value in line.items()}
            if "type_id" in extra:
                group = {type_id: name for name, type_id in REVOS_TYPES.items()}[int(extra["type_id"])]
            elif "annotator" in extra:
                group = f"annotators/{extra['annotator']}"
            problem = problems.get(f"{video}/{exp_id}") if "exp" in columns else None
            rows.append(Row(video, exp_id, text, j, f, jf, group, extra, problem))
        found = dataclasses.replace(results, rows=tuple(rows), csv_columns=columns)
        # The groups that are plain means of their rows tell whether the two files belong together.
        weighted = {"sequences"} | (
            {OVERALL} if any(row.group in (*REVOS_TYPES, *found.groups) for row in rows) else set()
        )
        measures = [column for column in found.columns if column in columns]
        same = all(
            math.isclose(a, b, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))
            for name in found.groups.keys() - weighted
            for a, b in ((found.groups[name][c], mean) for c, mean in means(found.members(name), measures).items())
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, csv.Error) as error:
        raise DataError(f"{path}: not the results.csv of an evaluator here ({error!r}); {remedy}") from error
    if not same or len(rows) != found.counts.get("objects_scored", found.counts["scored"]):
        raise DataError(f"{folder}: results.csv and results.json are of different evaluations; {remedy}")
    return found


def _number(text: str) -> Cell:
    """Parses a cell as `csv` wrote it: an int, a float or, failing these, the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _percent(mean: object) -> float:
    """Checks a mean of ``results.json``; null is NaN."""
    if mean is None:
        return math.nan
    if not isinstance(mean, int | float) or isinstance(mean, bool) or not 0 <= mean <= 100:  # NaN is not between them
        raise TypeError(f"a mean of {str(mean)[:40]}")
    return float(mean)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise TypeError(f"{str(value)[:40]} where {kind.__name__} belongs")
    return value


def settings(results: Results) -> dict[str, str]:
    """Returns all that must be equal for the numbers of two results to be comparable, by name."""
    rules = {key: value for key, value in results.protocol.items() if key not in _NOT_PROTOCOL}
    found = {
        f"protocol: {key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in rules.items()
    }
    if results.protocol.get("robustness") == "visa":  # its R depends on the stored value
        found[_VALUES] = " and ".join(sorted(set(results.protocol.get("prediction_values", {})) - {"0"}))
    if results.counts["missing"]:
        found[_MISSING] = str(results.protocol.get("missing"))
    found["split"] = results.split
    return found | {f"data: sha256 of {role}": digest for role, digest in results.gt_sha256.items()}


@dataclass(frozen=True)
class Scores:
    """The results of one method."""

    name: str
    """The method, as a table calls it."""
    path: Path
    """The file or folder that messages name."""
    results: Results


def check_comparable(scores: Sequence[Scores]) -> None:
    """Raises a DataError that shows the differences if any two scores are not of one protocol, one split and one data.

    Every pair is compared: two that differ only in how they count missing predictions each agree with a third that
    misses none.
    """
    for one, other in itertools.combinations(scores, 2):
        first, second = settings(one.results), settings(other.results)
        pairs = {name: (first.get(name), second.get(name)) for name in {**first, **second}}
        differing = {
            name: pair
            for name, pair in pairs.items()
            if pair[0] != pair[1] and not (name in _WHERE_BOTH and not all(pair))
        }
        if differing:
            error = DataError(
                f"{one.path} and {other.path} are not comparable, so they cannot stand in one table; score them alike, "
                "or make a table of each. They differ in:"
            )
            for name, pair in differing.items():
                error.add_note(f"{name}: {_short(pair[0])} ({one.name}), {_short(pair[1])} ({other.name})")
            raise error


def _short(value: str | None) -> str:
    return "–" if value is None else value if len(value) <= 40 else f"{value[:39]}…"


def common_settings(scores: Sequence[Scores]) -> dict[str, str]:
    """Returns what all of some comparable scores have in common, and what only some of them have a value for."""
    found: dict[str, str] = {}
    for one in scores:
        found |= {name: value for name, value in settings(one.results).items() if value or name not in found}
    return found
