"""A run's scores for its report, by the evaluator of its own benchmark: the same few things whichever that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval import jf, mevis, reasonvos, refdavis, refytvos, revos, vicas
from eval.results import Problem
from inference.report_run import Run
from veason.errors import DataError

OVERALL = "overall"


class Row(Protocol):
    """One expression's scores in per cent."""

    @property
    def j(self) -> float: ...
    @property
    def f(self) -> float: ...
    @property
    def jf(self) -> float: ...


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, as far as a report shows it."""

    rows: Mapping[str, Row]
    """By key of the sample."""
    columns: tuple[str, ...]
    """Of `means`: ``J&F``, ``J``, ``F`` and what else the benchmark has."""
    means: Mapping[str, tuple[int, tuple[float | None, ...]]]
    """Group of expressions -> how many were scored, and their means in per cent; `OVERALL` is one of them."""
    protocol: Mapping[str, Any]
    missing_policy: str
    missing: tuple[Problem, ...]
    errors: tuple[Problem, ...]


def evaluate(run: Run, *, gt: Path, split: str | None, meta: str | None, missing: str, workers: int) -> Scores:
    """The scores of a run on `split` of the data set below `gt`; DataError where no evaluator here gives J&F for it."""
    name = run.settings.get("dataset")
    if name not in EVALUATORS:
        raise DataError(
            f"{run.path}: runs of {name!r} cannot be scored here, those of {', '.join(EVALUATORS)} can; leave out --gt"
        )
    return EVALUATORS[name](gt, run.path, split=split, meta=meta, missing=missing, workers=workers)


def _revos(gt: Path, pred: Path, **options: Any) -> Scores:
    found = revos.evaluate(gt, pred, **options)
    scored = {name: count["scored"] for name, count in found.counts()["by_type"].items()}
    scored[OVERALL] = scored["referring"] + scored["reasoning"]
    means = {name: (scored[name], found.group(name)) for name in ("referring", "reasoning", OVERALL, "absent")}
    return Scores(
        rows={f"{row.video}/{row.exp_id}": row for row in found.rows},
        columns=("J&F", "J", "F", "A", "R"),
        means={name: (count, (m.jf, m.j, m.f, m.a, m.r)) for name, (count, m) in means.items()},
        protocol=found.summary()["protocol"],
        missing_policy=found.missing_policy,
        missing=found.missing,
        errors=found.errors,
    )


def _mevis(gt: Path, pred: Path, **options: Any) -> Scores:
    return _plain(mevis.evaluate(gt, pred, **options))


def _refytvos(gt: Path, pred: Path, **options: Any) -> Scores:
    return _plain(refytvos.evaluate(gt, pred, **options))


def _reasonvos(gt: Path, pred: Path, *, split: str | None, **options: Any) -> Scores:
    """The benchmark has one split."""
    return _plain(reasonvos.evaluate(gt, pred, layout="position", **options))


def _refdavis(gt: Path, pred: Path, **options: Any) -> Scores:
    """In the protocol that scores expression by expression."""
    return _plain(refdavis.evaluate_binary(gt, pred, **options))


def _vicas(gt: Path, pred: Path, **options: Any) -> Scores:
    """The J&F that stands beside the benchmark's own number, which is no mean over expressions."""
    return _plain(vicas.evaluate(gt, pred, j_and_f=True, **options).jf)


def _plain(found: jf.JFResults) -> Scores:
    groups = {name: (len(rows), jf.means(rows)) for name, rows in found.groups().items()}
    return Scores(
        rows={row.sample.key: row for row in found.rows},
        columns=("J&F", "J", "F"),
        means={name: (count, (means["JF"], means["J"], means["F"])) for name, (count, means) in groups.items()},
        protocol=found.summary()["protocol"],
        missing_policy=found.missing_policy,
        missing=found.missing,
        errors=found.errors,
    )


EVALUATORS: dict[str, Callable[..., Scores]] = {
    "revos": _revos,
    "mevis": _mevis,
    "reasonvos": _reasonvos,
    "refdavis": _refdavis,
    "refytvos": _refytvos,
    "vicas": _vicas,
}
"""By name of the data set."""
