"""Scores J&F of MeViS, ReasonVOS, Ref-YouTube-VOS and Ref-DAVIS17's binary form: one binary mask a frame, plain means.

- every frame that has ground truth counts, first and last too; a mask is where its PNG is not zero;
- J and F of an expression are means over its frames, those of a data set means over its expressions: videos with many
  expressions weigh more; J&F is the mean of the two; nothing is rounded before it is printed;
- a missing prediction is zero unless ``--missing`` says otherwise; ``--missing published`` does what the benchmark's
  own script does (`Protocol.published`). What a run folder says is done and lacks its masks, a mask of another size and
  a damaged file are never zero: they are listed at the end, the rest is scored, and the exit status is 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eval.predictions import Predictions
from eval.results import (
    OVERALL,
    Layout,
    Missing,
    Results,
    Row,
    count_encodings,
    encodings_text,
    ground_truth_sha256,
    means,
    sample_counts,
)
from eval.scoring import ScoredExpressions, Scorer, score_expressions
from eval.survey import PUBLISHED_TEXT, Published
from veason.datasets.base import Dataset
from veason.types import VideoSample


@dataclass(frozen=True)
class Protocol:
    """The differences between the J&F of two benchmarks. Two results are comparable if these are equal."""

    benchmark: str
    """Name in print, ``MeViS``."""
    name: str
    """``mevis``; unique for every way to score."""
    frames: str
    """The frames that count, in words."""
    published: Published | None = None
    """The treatment of a missing prediction by the benchmark's own script; None where there is no such script."""


def evaluate(
    dataset: Dataset,
    predicted: Predictions,
    *,
    protocol: Protocol,
    missing: Missing = "zero",
    workers: int = 1,
    group_of: Callable[[VideoSample], str | None] = lambda sample: None,
    gt_sha256: Mapping[str, str] | None = None,
    details: Mapping[str, str] | None = None,
) -> Results:
    """Scores every expression of `dataset`.

    group_of: the part of the data set that an expression belongs to. gt_sha256: the hashes of the ground truth, of the
    index files alone unless given. details: further choices, for the record. Raises DataError as `survey` and
    `score_all` do; a single broken prediction is listed in the results.
    """
    scored = score_expressions(
        Scorer(dataset, predicted, "jf"), missing=missing, published=protocol.published, workers=workers
    )
    return results_of(
        scored,
        dataset,
        protocol=protocol,
        missing=missing,
        group_of=group_of,
        gt_sha256=ground_truth_sha256(dataset) if gt_sha256 is None else gt_sha256,
        details=details or {},
    )


def results_of(
    expressions: ScoredExpressions,
    dataset: Dataset,
    *,
    protocol: Protocol,
    missing: Missing,
    gt_sha256: Mapping[str, str],
    details: Mapping[str, str],
    group_of: Callable[[VideoSample], str | None] = lambda sample: None,
    looked_at: bool = True,
) -> Results:
    """Makes the record of expressions that were scored; the arguments are those of `evaluate`.

    looked_at: whether masks were decoded for J and F; without, these are NaN, those of missing predictions too.
    """
    rows = []
    for one in expressions.scored:
        sample = one.sample
        j, f = (100 * one.score.j, 100 * one.score.f) if looked_at else (math.nan, math.nan)
        video, exp_id, text, group = sample.video, sample.exp_id, sample.expression, group_of(sample)
        rows.append(Row(video, exp_id, text, j, f, (j + f) / 2, group, problem=one.problem))
    members = {OVERALL: rows}
    for name in sorted({row.group for row in rows if row.group is not None}):
        members[name] = [row for row in rows if row.group == name]
    videos = len({sample.video for sample in dataset})
    counts = {"videos": videos, **sample_counts(len(dataset), expressions.missing, expressions.errors, len(rows))}
    encodings = {"not looked at": len(rows)}
    if looked_at:
        encodings = count_encodings(one.score.values for one in expressions.scored if one.problem is None)
    rule = protocol.published if missing == "published" else None
    hashes = ", ".join(f"{name} {digest[:12]}" for name, digest in gt_sha256.items())
    heading = (
        f"{protocol.benchmark} {dataset.split}, protocol {protocol.name}: "
        f"{counts['scored']} of {counts['expected']} expressions scored\n"
        f"expected {counts['expected']}, found {counts['found']}, missing {counts['missing']} "
        f"(--missing {missing}), skipped {counts['skipped']}, errors {counts['errors']}\n"
        f"{protocol.frames}; grey values {encodings_text(encodings)}"
        + "".join(f"; {name} {value}" for name, value in details.items())
        + f"\ndata: {counts['videos']} videos, {counts['expected']} expressions; sha256 {hashes}"
    )
    return Results(
        benchmark=protocol.benchmark,
        dataset=dataset.name,
        split=dataset.split,
        missing_policy=missing,
        rows=tuple(rows),
        groups={name: means(of_group) for name, of_group in members.items()},
        missing=expressions.missing,
        errors=expressions.errors,
        counts=counts,
        protocol={
            "name": protocol.name,
            "frames": protocol.frames,
            "mean": "frames, then expressions, unweighted; J&F is the mean of J and F",
            "rounding": "none",
            "missing": missing,
            **({"published": PUBLISHED_TEXT[rule]} if rule is not None else {}),
            "prediction_values": encodings,
            **details,
        },
        gt_sha256=gt_sha256,
        further={"groups": {name: len(of_group) for name, of_group in members.items()}},
        layout=Layout(heading=heading),
    )
