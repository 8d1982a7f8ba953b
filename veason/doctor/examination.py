"""Examines a whole data set: the annotation files first, then every video in a pool of worker processes."""

from __future__ import annotations

import dataclasses
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from veason import masks
from veason.datasets.base import Dataset
from veason.doctor import index, sheet, video
from veason.doctor.findings import Finding
from veason.doctor.oracle import Agreement, Oracle
from veason.errors import DataError
from veason.frames import VideoFrames
from veason.worker_pool import map_in_order

SLOW = 0.005
"""Seconds for a picture's header beyond which storage is called slow: 100,000 of them then take eight minutes."""


@dataclass(frozen=True)
class Examiner:
    """The settings of an examination; pickled once for each worker."""

    dataset: Dataset
    part: bool
    """True for a part of a benchmark, or for data of no benchmark: sizes are not compared."""
    oracle: Oracle | None
    """Compares masks with pictures, where pictures are to be decoded."""


@dataclass(frozen=True)
class Examination:
    """The result of an examination."""

    dataset: Dataset
    findings: tuple[Finding, ...]
    agreements: tuple[Agreement, ...]
    """Worst first; empty unless pictures were decoded."""
    files: int
    """Pictures whose header was read."""
    seconds_a_file: float
    """Median of the clock times for a picture's header."""


def examine(examiner: Examiner, *, workers: int, threshold: float) -> Examination:
    """Examine the whole data set. threshold: a J of the oracle below it is a finding."""
    dataset = examiner.dataset
    findings = [*index.ground_truth(dataset), *index.annotation_ids(dataset), *index.foreground_file(dataset)]
    if not examiner.part:
        findings += index.counts(dataset)
    times, agreements = array("d"), list[Agreement]()
    work = map_in_order(
        examine_video, examiner, list(dataset.by_video), workers=workers, label="examining", unit="video"
    )
    for checked, agreed in work:
        findings += checked.findings
        agreements += agreed
        times.extend(checked.seconds)
    agreements.sort(key=lambda agreement: (agreement.j, agreement.sample))
    for agreement in agreements:
        if agreement.j < threshold:
            what = (
                f"the oracle's masks have J {100 * agreement.j:.0f} against the annotated ones, "
                f"{100 * agreement.worst_j:.0f} in frame id {agreement.worst}"
            )
            remedy = (
                "look at it (--contact-sheet); leave it out if mask and picture have drifted apart (--write-exclude)"
            )
            findings.append(Finding("warning", "disagreement", agreement.sample, what, remedy, (agreement.sample,)))
    seconds = statistics.median(times) if times else 0.0
    if seconds > SLOW:
        what = f"a picture's header takes {seconds * 1e3:.1f} ms to read (median of {len(times)})"
        remedy = "training waits for such storage; copy the frames to a local disk"
        findings.append(Finding("note", "slow storage", str(dataset[0].frame_dir), what, remedy))
    return Examination(dataset, tuple(findings), tuple(agreements), len(times), seconds)


def examine_video(examiner: Examiner, name: str) -> tuple[video.Checked, list[Agreement]]:
    """Examine one video's files and masks, and with an oracle how well the sound ones fit together."""
    checked = video.check(examiner.dataset, name, part=examiner.part)
    if examiner.oracle is None:
        return checked, []
    unfit = {key for finding in checked.findings for key in finding.samples}
    sound = [sample for sample in examiner.dataset.by_video[name] if sample.key not in unfit]
    if not sound:
        return checked, []
    try:
        return checked, examiner.oracle.agreements(examiner.dataset, sound)
    except DataError as error:
        keys = tuple(sample.key for sample in sound)
        broken = Finding("error", "broken frames", name, str(error), "fetch the video again", keys)
        return dataclasses.replace(checked, findings=(*checked.findings, broken)), []


def worst_targets(examination: Examination, n: int) -> list[Agreement]:
    """The `n` worst agreements, each target once: several expressions may be about one."""
    found: dict[tuple[str, tuple[int | str, ...]], Agreement] = {}
    targets = {sample.key: (sample.video, sample.anno_ids) for sample in examination.dataset}
    for agreement in examination.agreements:
        found.setdefault(targets[agreement.sample], agreement)
    return list(found.values())[:n]


def tiles(examiner: Examiner, worst: Sequence[Agreement], *, workers: int) -> list[sheet.Tile]:
    """The worst frame of each of some expressions, drawn."""
    return list(map_in_order(draw, examiner, worst, workers=workers, label="drawing", unit="picture"))


def draw(examiner: Examiner, agreement: Agreement) -> sheet.Tile:
    """Draw the worst frame of an expression: the annotated mask, the oracle's, and its name."""
    assert examiner.oracle is not None
    dataset = examiner.dataset
    sample = next(s for s in dataset.by_video[agreement.sample.rpartition("/")[0]] if s.key == agreement.sample)
    tracks, t, frames = dataset.object_rles(sample), agreement.worst, VideoFrames(sample)
    tracked = examiner.oracle.masks(tracks, dataset.gt_frames(sample), frames)[t]
    label = (f"{sample.key}  J {100 * agreement.j:.0f}", f"{sample.frames[t]}: {sample.expression}")
    return sheet.tile(frames[t], masks.union([rles[t] for rles in tracks], sample.size), tracked, label)
