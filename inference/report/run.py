"""Reads a run folder back: its settings, its outcome for each expression, its seconds by stage, and its scores.

The scores are those of the benchmark's own evaluator.
"""

from __future__ import annotations

import functools
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import mevis, reasonvos, refdavis, refytvos, revos, scores_file, vicas
from eval.results import OVERALL, Results
from veason import datasets
from veason.atomic import read_journal
from veason.datasets.base import Dataset, check_name
from veason.errors import DataError
from veason.files import foreign_content, load_json, read_head
from veason.ground_truth import Tracks
from veason.types import Box, VideoSample

_LARGEST = 1e12
"""A number beyond any pixel or second."""


@dataclass(frozen=True)
class Outcome:
    """One line of ``predictions.jsonl``, checked."""

    video: str
    exp_id: str
    expression: str
    frame_ids: tuple[int, ...]
    """Frames that the policy was shown."""
    keyframe: int | None
    boxes: tuple[Box, ...]
    """In video pixels."""
    problem: str | None
    detail: str
    thinking: str | None
    reply: str
    repairs: tuple[str, ...] = ()
    """The deviations that the lenient parser accepted in the reply; empty where the reply was parsed strictly."""

    @property
    def key(self) -> str:
        return f"{self.video}/{self.exp_id}"


@dataclass(frozen=True)
class Run:
    """An opened run folder: ``run.json`` is in memory, the other files are read line by line when asked for."""

    path: Path
    settings: dict[str, Any]
    versions: dict[str, Any]

    def outcomes(self) -> Iterator[Outcome]:
        """Reads the outcomes in the order of the data set; of an unfinished run those that it has so far."""
        for number, record in enumerate(read_lines(self.path / "predictions.jsonl"), start=1):
            yield _outcome(record, f"{self.path / 'predictions.jsonl'}:{number}")

    def problems(self) -> Counter[str | None]:
        """Counts the expressions by the problem of their reply; None counts those without a problem."""
        return Counter(outcome.problem for outcome in self.outcomes())

    def repairs(self) -> Counter[str]:
        """Counts the replies that were read leniently by what was forgiven; one reply may count several times."""
        return Counter(name for outcome in self.outcomes() for name in outcome.repairs)

    def seconds(self) -> dict[str, float]:
        """Takes the mean seconds of an expression by stage; they are empty without ``timings.jsonl``."""
        path = self.path / "timings.jsonl"
        sums: Counter[str] = Counter()
        lines = 0
        for lines, record in enumerate(read_lines(path) if path.is_file() else (), start=1):
            stages = record.get("seconds")
            if not isinstance(stages, dict) or not all(_is_number(value) for value in stages.values()):
                raise DataError(f"{path}:{lines}: seconds must map stages to numbers, found {str(stages)[:80]}")
            sums.update(stages)
        return {stage: total / lines for stage, total in sums.items()}

    @property
    def meta(self) -> str | None:
        """The expression file that the run was given, if it is still there."""
        meta = self.settings.get("meta")
        return meta if isinstance(meta, str) and Path(meta).is_file() else None

    def open_data(self, root: Path | None, *, split: str | None, image_root: Path | None) -> Dataset:
        """Opens the data set of the run; what is None is as the run had it."""
        wanted = {name: self.settings.get(name) for name in ("dataset", "data_root", "split")}
        found = {name: value for name, value in wanted.items() if isinstance(value, str)}
        if found != wanted:
            raise DataError(f"{self.path / 'run.json'}: settings must name {', '.join(wanted)}, found {wanted}")
        return datasets.open_dataset(
            found["dataset"],
            root or found["data_root"],
            split=split or found["split"],
            image_root=image_root or self.settings.get("image_root"),
            meta=self.meta,
        )


def open_run(path: Path) -> Run:
    """Opens a folder that `inference.predict` wrote; any other folder is a DataError."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected a run folder as inference.predict writes")
    if not (path / "predictions.jsonl").is_file():
        remedy = "run the shards that are left" if (path / "shards").is_dir() else "expected a run of inference.predict"
        raise DataError(f"{path}: holds no predictions.jsonl; {remedy}")
    record = load_json(path / "run.json", hint="expected a run of inference.predict")
    parts = record if isinstance(record, dict) else {}
    settings, versions = parts.get("settings"), parts.get("versions")
    if not isinstance(settings, dict) or not isinstance(versions, dict):
        raise DataError(f"{path / 'run.json'}: expected an object with settings and versions, found {str(record)[:80]}")
    return Run(path=path, settings=settings, versions=versions)


def find_sample(samples: Mapping[str, VideoSample], outcome: Outcome, *, run: Path, dataset: Dataset) -> VideoSample:
    """Finds the sample of a prediction of `run` in `samples` by key; a prediction that fits none is a DataError."""
    sample = samples.get(outcome.key)
    if sample is None:
        raise DataError(
            f"{run}: {outcome.key} is not in the {dataset.name} split {dataset.split!r} of "
            f"{dataset.files['meta']}; give the --gt and --split that were predicted"
        )
    if sample.expression != outcome.expression:
        raise DataError(
            f"{run}: {outcome.key} was asked {outcome.expression[:80]!r}, but it is "
            f"{sample.expression[:80]!r} in {dataset.files['meta']}; the data set is another one"
        )
    outside = [t for t in (outcome.keyframe, *outcome.frame_ids) if t is not None and not 0 <= t < len(sample)]
    if outside:
        raise DataError(f"{run}: {outcome.key} has frame id {outside[0]} in {len(sample)} frames")
    return sample


def read_lines(path: Path, *, remedy: str = "predict again into a new folder") -> Iterator[dict[str, Any]]:
    """Reads the records of a file of JSON lines; a DataError for any other file ends with `remedy`."""
    found = foreign_content(read_head(path) or b"\n")  # an empty file has no lines
    if found:
        raise DataError(f"{path}: not lines of a run but {found}")
    try:
        yield from read_journal(path)
    except ValueError as error:
        raise DataError(f"{error}; {remedy}") from error


def _outcome(record: dict[str, Any], where: str) -> Outcome:
    keyframe, boxes = record.get("keyframe"), record.get("boxes")
    if not (keyframe is None or type(keyframe) is int):
        raise DataError(f"{where}: keyframe must be a frame id or null, found {str(keyframe)[:80]!r}")
    if not isinstance(boxes, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) for box in boxes
    ):
        raise DataError(f"{where}: boxes must be [[x1, y1, x2, y2], …], found {str(boxes)[:80]}")
    frame_ids = record.get("frame_ids")
    if not isinstance(frame_ids, list) or not all(type(t) is int for t in frame_ids):
        raise DataError(f"{where}: frame_ids must be a list of ints, found {str(frame_ids)[:80]}")
    repairs = record.get("repairs", [])
    if not isinstance(repairs, list) or not all(isinstance(entry, str) for entry in repairs):
        raise DataError(f"{where}: repairs must be a list of texts, found {str(repairs)[:80]}")
    return Outcome(
        video=check_name(record.get("video"), f"{where}: video", slashes=True),
        exp_id=check_name(record.get("exp_id"), f"{where}: exp_id"),
        expression=_text(record, "expression", where),
        frame_ids=tuple(frame_ids),
        keyframe=keyframe,
        boxes=tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes),
        problem=_text(record, "problem", where, optional=True),
        detail=_text(record, "detail", where),
        thinking=_text(record, "thinking", where, optional=True),
        reply=_text(record, "reply", where),
        repairs=tuple(repairs),
    )


def _text(record: dict[str, Any], name: str, where: str, *, optional: bool = False) -> Any:
    value = record.get(name)
    if isinstance(value, str) or (optional and value is None):
        return value
    raise DataError(f"{where}: {name} must be a text, found {str(value)[:80]!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST  # false for NaN


@dataclass(frozen=True)
class Evaluator:
    """The evaluator of a benchmark that gives J&F for each expression."""

    evaluate: Callable[..., Results]
    options: tuple[str, ...] = ()
    """Further words of the command ``python -m eval.NAME`` that gives the same."""
    folder: str = "scores"
    """The folder in a run into which the command, asked as here, writes its files."""


EVALUATORS = {
    "revos": Evaluator(revos.evaluate),
    "mevis": Evaluator(mevis.evaluate),
    # the benchmark has one split
    "reasonvos": Evaluator(
        lambda gt, pred, *, split, **options: reasonvos.evaluate(gt, pred, layout="position", **options)
    ),
    # the protocol that scores expression by expression
    "refdavis": Evaluator(
        functools.partial(refdavis.evaluate, protocol="binary"), ("--protocol", "binary"), "scores/binary"
    ),
    "refytvos": Evaluator(refytvos.evaluate),
    # the J&F that stands beside the benchmark's own number, which is no mean over expressions
    "vicas": Evaluator(functools.partial(vicas.evaluate, j_and_f=True), ("--j-and-f",)),
}
"""By name of the data set."""


def evaluator(run: Run, *, remedy: str) -> Evaluator:
    """Finds the evaluator for a run; a data set that has none is a DataError, which ends with `remedy`."""
    name = run.settings.get("dataset")
    if name not in EVALUATORS:
        raise DataError(
            f"{run.path}: runs of {name!r} cannot be scored here, those of {', '.join(EVALUATORS)} can; {remedy}"
        )
    return EVALUATORS[name]


def read_scores(run: Run, *, gt: Path) -> Results:
    """Reads the scores that the evaluator wrote into the run's folder; an error names the command to run."""
    found = evaluator(run, remedy="compare their numbers with python -m eval.table")
    dataset, split = run.settings["dataset"], run.settings.get("split")
    words = ["python", "-m", f"eval.{dataset}", "--gt", gt, "--pred", run.path, "--out", run.path / "scores"]
    if dataset != "reasonvos":  # which has one split
        words += ["--split", split]
    if run.settings.get("meta") is not None:
        words += ["--meta", run.settings["meta"]]
    remedy = f"run: {shlex.join(map(str, [*words, *found.options]))}"
    results = scores_file.read(run.path / found.folder, remedy=remedy)
    if math.isnan(results.mean(OVERALL, "JF")) and all(math.isnan(row.jf) for row in results.rows):
        raise DataError(f"{run.path / found.folder}: holds no J and F; {remedy}")
    return results


def known_frames(dataset: Dataset, sample: VideoSample, tracks: Tracks) -> frozenset[int]:
    """Finds the frames whose ground truth is known: those that are scored, and those in which an object has a mask."""
    masked = (t for rles in tracks for t, rle in enumerate(rles) if rle is not None)
    return frozenset((*dataset.gt_frames(sample), *masked))
