"""A ``results.json`` read back, whichever evaluator wrote it, and whether two of them may stand in one table."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veason.datasets.base import load_json
from veason.errors import DataError

_NOT_PROTOCOL = ("missing", "published", "prediction_values", "layout")
"""Entries of the protocol that say how masks were stored or how few were there, not how they are scored."""

_VALUES, _MISSING = "grey values of the masks", "missing predictions"
_WHERE_BOTH = {_VALUES, _MISSING}
"""Settings that differ only between two results that both have them: masks that are not all empty, some missing."""


@dataclass(frozen=True)
class Scores:
    """What a table needs of one evaluation."""

    name: str
    """The method, as the table calls it."""
    path: Path
    dataset: str
    split: str
    groups: Mapping[str, Mapping[str, float | None]]
    """Means in per cent: group (``overall``, ``referring`` …) -> column -> value, None for no expression."""
    counts: Mapping[str, int]
    """Expressions expected, missing and scored, and where it was noted, videos."""
    protocol: Mapping[str, Any]
    gt_sha256: Mapping[str, str]

    def settings(self) -> dict[str, str]:
        """All that must be equal for two numbers to be comparable, by name."""
        rules = {key: value for key, value in self.protocol.items() if key not in _NOT_PROTOCOL}
        found = {f"protocol: {key}": _text(value) for key, value in rules.items()}
        if self.protocol.get("robustness") == "visa":  # its R depends on the stored value
            found[_VALUES] = " and ".join(sorted(set(self.protocol.get("prediction_values", {})) - {"0"}))
        if self.counts["missing"]:
            found[_MISSING] = str(self.protocol.get("missing"))
        found["split"] = self.split
        return found | {f"data: sha256 of {role}": digest for role, digest in self.gt_sha256.items()}


def read(path: Path, name: str) -> Scores:
    """The scores in a file; a DataError if it is no ``results.json`` or of an evaluation that broke off."""
    content = load_json(path)
    try:
        if not content["complete"]:
            raise DataError(
                f"{path}: {content['counts']['errors']} predictions could not be scored, so its means are not those of "
                "the data set; put them right and score again"
            )
        return Scores(
            name=name,
            path=path,
            dataset=_checked(content["dataset"], str),
            split=_checked(content["split"], str),
            groups={key: _means(value) for key, value in content.items() if _is_group(value)},
            counts={key: _checked(content["counts"][key], int) for key in ("expected", "missing", "scored")}
            | {key: _checked(content["counts"][key], int) for key in ("videos",) if key in content["counts"]},
            protocol=_checked(content["protocol"], dict),
            gt_sha256=_checked(content["ground_truth_sha256"], dict),
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the results.json of an evaluator here ({error!r}); score the run again"
        ) from error


def _is_group(value: object) -> bool:
    return isinstance(value, dict) and {"J", "F"} <= value.keys()


def _means(value: dict[str, Any]) -> dict[str, float | None]:
    return {column: None if mean is None else _percent(mean) for column, mean in value.items()}


def _percent(mean: object) -> float:
    if type(mean) not in (int, float) or not math.isfinite(mean) or not 0 <= mean <= 100:
        raise TypeError(f"a mean of {str(mean)[:40]}")
    return float(mean)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise TypeError(f"{str(value)[:40]} where {kind.__name__} belongs")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def check_comparable(scores: Sequence[Scores]) -> None:
    """DataError that shows the differences, if any two scores of one data set are not of one protocol and one data.

    Every pair is compared: two that differ only in how they count missing predictions each agree with a third that
    misses none.
    """
    for one, other in itertools.combinations(scores, 2):
        differing = _differences(one.settings(), other.settings())
        if differing:
            error = DataError(
                f"{one.path} and {other.path} are not comparable, so they cannot stand in one table; score them alike, "
                "or make a table of each. They differ in:"
            )
            for name, pair in differing.items():
                error.add_note(f"{name}: {_short(pair[0])} ({one.name}), {_short(pair[1])} ({other.name})")
            raise error


def common_settings(scores: Sequence[Scores]) -> dict[str, str]:
    """What all of some comparable scores have in common, and what only some of them have a value for."""
    found: dict[str, str] = {}
    for one in scores:
        found |= {name: value for name, value in one.settings().items() if value or name not in found}
    return found


def _differences(first: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    pairs = {name: (first.get(name), other.get(name)) for name in {**first, **other}}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b and not (name in _WHERE_BOTH and not (a and b))}


def _short(value: str | None) -> str:
    return "–" if value is None else value if len(value) <= 40 else f"{value[:39]}…"
