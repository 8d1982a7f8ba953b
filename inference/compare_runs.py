"""Several runs over the same samples of ReVOS: opened, their scores read back, refused where they cannot be compared.

Scores are what ``python -m eval.revos --out RUN/scores`` wrote. Two runs are comparable if they were made of and scored
on the same ground truth (its hashes say so), by the same protocol, and over the same expressions.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import answers
from eval.results import GROUPS, Problem, Results, Row
from inference.report_cards import find_sample
from inference.report_run import Outcome, Run, open_run
from veason.datasets.base import Dataset, sha256
from veason.errors import DataError
from veason.files import check_regular
from veason.targets import Tracks
from veason.types import VideoSample

_LISTED = 5  # samples named in an error message


@dataclass(frozen=True)
class Contender:
    """A run under the name that the comparison gives it, with its scores."""

    name: str
    run: Run
    results: Results


@dataclass(frozen=True)
class Entry:
    """One expression as every run answered it; the tuples are parallel to the runs."""

    sample: VideoSample
    rows: tuple[Row, ...]
    """Scores, in per cent."""
    answers: tuple[answers.Quality, ...]
    problems: tuple[str | None, ...]
    """Code of what was wrong with the reply."""

    @property
    def targets(self) -> int:
        """Objects of the target that are in any frame; 0 where it is absent."""
        return self.answers[0].targets

    @property
    def change(self) -> float:
        """J&F of the last run less that of the first, in per cent."""
        return self.rows[-1].jf - self.rows[0].jf


def open_contenders(paths: Sequence[Path], names: Sequence[str], *, gt: Path, split: str) -> list[Contender]:
    """The runs with their scores. `gt` and `split` are those of the command that an error tells to run."""
    contenders = []
    for path, name in zip(paths, names, strict=True):
        run = open_run(path)
        dataset = run.settings.get("dataset")
        if dataset != "revos":
            raise DataError(
                f"{path}: a run of {dataset!r}, and ReVOS alone can be laid side by side here; several runs of another "
                "benchmark: python -m inference.report RUN RUN --gt ROOT (a page), python -m eval.table (the numbers)"
            )
        if run.settings.get("split") != split:
            raise DataError(
                f"{path}: the run is of the split {run.settings.get('split')!r}, not {split!r}; see --split"
            )
        contenders.append(Contender(name, run, _read_results(path / "scores", _command(run, gt=gt, split=split))))
    return contenders


def _command(run: Run, *, gt: Path, split: str) -> str:
    """What scores a run."""
    words = ["python", "-m", "eval.revos", "--gt", gt, "--pred", run.path, "--out", run.path / "scores"]
    if split != "valid":
        words += ["--split", split]
    if run.settings.get("meta") is not None:
        words += ["--meta", run.settings["meta"]]
    return shlex.join(map(str, words))


def _read_results(folder: Path, command: str) -> Results:
    """The results that `eval.results.write` put into `folder`; `command` writes them."""
    for path in (folder / "results.json", folder / "results.csv"):
        if path.exists():
            check_regular(path)
    try:
        document = json.loads((folder / "results.json").read_bytes())
        table = (folder / "results.csv").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file: the run is not scored yet; run: {command}") from None
    except ValueError as error:
        raise DataError(f"{folder}: not the scores of eval.revos ({error}); run again: {command}") from error
    try:
        results = _results(document, table)
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise DataError(f"{folder}: not the scores of eval.revos ({error!r}); run again: {command}") from error
    if not results.complete:
        first = results.errors[0]
        raise DataError(
            f"{folder}: {len(results.errors)} predictions could not be scored, first {first.sample}: {first.reason}; "
            f"put them right and run again: {command}"
        )
    if not all(_agree(results.group(name).columns(), document[name]) for name in (*GROUPS, "overall")):
        raise DataError(f"{folder}: results.csv and results.json are of different evaluations; run again: {command}")
    return results


def _results(document: Mapping[str, Any], table: str) -> Results:
    """``results.json`` and the text of ``results.csv`` as they were before they were written."""
    missing = {entry["sample"]: entry["reason"] for entry in document["missing"]}
    lines = csv.DictReader(io.StringIO(table, newline=""))
    protocol = document["protocol"]
    return Results(
        split=document["split"],
        robustness=protocol["robustness"],
        missing_policy=protocol["missing"],
        rows=tuple(_row(line, missing) for line in lines),
        missing=tuple(Problem(sample, reason) for sample, reason in missing.items()),
        errors=tuple(Problem(entry["sample"], entry["reason"]) for entry in document["errors"]),
        expected={name: document["counts"]["by_type"][name]["expected"] for name in GROUPS},
        encodings=dict(protocol["prediction_values"]),
        gt_sha256=dict(document["ground_truth_sha256"]),
    )


def _row(line: Mapping[str, str], missing: Mapping[str, str]) -> Row:
    scores = {column.lower(): float(line[column]) for column in ("J", "F", "JF", "A", "R")}
    video, exp_id = line["video_name"], line["exp_id"]
    problem = missing.get(f"{video}/{exp_id}")
    return Row(video, exp_id, line["exp"], type_id=int(line["type_id"]), problem=problem, **scores)


def _agree(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> bool:
    values = [(math.nan if a[k] is None else a[k], math.nan if b[k] is None else b[k]) for k in a]
    return all((math.isnan(x) and math.isnan(y)) or math.isclose(x, y, abs_tol=1e-6) for x, y in values)


def check_same(contenders: Sequence[Contender], dataset: Dataset) -> None:
    """A DataError that says in what the runs differ, unless they are over the same samples of `dataset`."""
    truth = {name: sha256(path) for name, path in dataset.files.items() if path.is_file()}
    first = contenders[0]
    for contender in contenders:
        _check_data(contender, truth, dataset)
        if _protocol(contender) != _protocol(first):
            raise DataError(
                f"{contender.run.path}: scored with {_protocol(contender)}, {first.run.path} with {_protocol(first)}; "
                "score both the same way"
            )
    keys = [_keys(contender) for contender in contenders]
    for contender, found in zip(contenders, keys, strict=True):
        if found != keys[0]:
            raise DataError(
                f"{contender.run.path}: not over the same samples as {first.run.path}: {_difference(keys[0], found)}"
            )


def _check_data(contender: Contender, truth: Mapping[str, str], dataset: Dataset) -> None:
    """The run was predicted from, and scored on, the very files of `dataset`; `truth` are their hashes."""
    scored, predicted = contender.results.gt_sha256, contender.run.settings.get("meta_sha256")
    for name in sorted({*scored, *truth}):
        if scored.get(name) != truth.get(name):
            file = dataset.files[name].name if name in dataset.files else repr(name)
            raise DataError(
                f"{contender.run.path}: scored on another data set: the hash of {file} is {_short(scored.get(name))} "
                f"in its scores and {_short(truth.get(name))} in --gt"
            )
    if predicted is not None and predicted != truth["meta"]:
        raise DataError(
            f"{contender.run.path}: predicted from another expression file than {dataset.files['meta']}: its hash is "
            f"{_short(predicted)} in run.json and {_short(truth['meta'])} there"
        )
    if contender.results.split != dataset.split:
        raise DataError(
            f"{contender.run.path / 'scores'}: of the split {contender.results.split!r}, not {dataset.split!r}"
        )


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "none"


def _protocol(contender: Contender) -> str:
    return f"--robustness {contender.results.robustness} --missing {contender.results.missing_policy}"


def _keys(contender: Contender) -> list[str]:
    """Keys of the run's samples in data-set order, once its predictions and scores agree on them."""
    path = contender.run.path
    predicted = [outcome.key for outcome in contender.run.outcomes()]
    scored = [f"{row.video}/{row.exp_id}" for row in contender.results.rows]
    absent = {problem.sample for problem in contender.results.missing} & set(predicted)
    if absent:
        raise DataError(
            f"{path / 'scores'}: {len(absent)} predictions had no masks when they were scored, such as {min(absent)}; "
            "put the masks back or predict again, and score again"
        )
    if scored != predicted:
        raise DataError(
            f"{path}: its scores are not of its predictions: {_difference(predicted, scored)}; finish the run and "
            "score it again (with --missing skip if it is of a part of the split)"
        )
    return predicted


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """What two lists of samples do not share, in words."""
    more, less = sorted({*theirs} - {*ours}), sorted({*ours} - {*theirs})
    if not more and not less:
        return "the same samples in another order, or some twice"
    parts = [f"{len(keys)} {what} ({', '.join(keys[:_LISTED])})" for what, keys in (("more", more), ("missing", less))]
    return ", ".join(part for part, keys in zip(parts, (more, less), strict=True) if keys)


def entries(contenders: Sequence[Contender], dataset: Dataset) -> Iterator[Entry]:
    """Every expression with what each run made of it, in data-set order; the runs have passed `check_same`."""
    samples = {sample.key: sample for sample in dataset}
    rows = zip(*(contender.results.rows for contender in contenders), strict=True)
    outcomes = zip(*(contender.run.outcomes() for contender in contenders), strict=True)
    for scores, said in zip(rows, outcomes, strict=True):
        for contender, outcome in zip(contenders, said, strict=True):
            sample = find_sample(samples, outcome, run=contender.run.path, dataset=dataset)
        tracks = dataset.object_rles(sample)
        yield Entry(
            sample=sample,
            rows=scores,
            answers=tuple(_judge(tracks, outcome) for outcome in said),
            problems=tuple(outcome.problem for outcome in said),
        )


def _judge(tracks: Tracks, outcome: Outcome) -> answers.Quality:
    return answers.judge(
        tracks,
        frame_ids=outcome.frame_ids,
        keyframe=outcome.keyframe,
        boxes=outcome.boxes,
        reply=outcome.reply,
    )
