"""Writes the report: a table of the kinds of findings with examples, a JSON file, a list of samples to leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veason import exclude
from veason.doctor.examination import Examination
from veason.doctor.findings import SEVERITIES, Finding
from veason.tables import aligned

EXAMPLES = 3
"""Findings of a kind that are printed; the JSON file has all."""
RANKED = 10
"""Expressions of the oracle's ranking that are printed."""


def text(examination: Examination) -> str:
    """The text that the command prints."""
    dataset = examination.dataset
    head = (
        f"{dataset.name} {dataset.split}: {len(dataset)} expressions, {len(dataset.by_video)} videos, "
        f"{examination.files} pictures looked at ({examination.seconds_a_file * 1e3:.2f} ms for a header)"
    )
    parts = [head, findings_text(examination.findings)]
    if examination.agreements:
        worst = examination.agreements[:RANKED]
        rows = [(a.sample, 100 * a.j, a.worst, 100 * a.worst_j) for a in worst]
        mean = sum(a.j for a in examination.agreements) / len(examination.agreements)
        frames = max(len(a.looked_at) for a in examination.agreements)
        parts += [
            aligned(("masks and pictures, worst first", "J", "frame id", "J there"), rows),
            f"mean J of the oracle {100 * mean:.2f} over {len(examination.agreements)} expressions, in up to {frames} "
            "frames of each: frames with true boxes, and one beside each.\nThis is to find drift. eval scores every "
            "frame of a video, tracked from one keyframe, and averages as its benchmark\ndoes, so its J for `--policy "
            "oracle` is another number.",
        ]
    return "\n\n".join(parts)


def findings_text(findings: Sequence[Finding]) -> str:
    """A table of the kinds of findings, then a few of each."""
    if not findings:
        return "nothing found"
    kinds = Counter((SEVERITIES.index(f.severity), f.kind) for f in findings)
    rows, parts = [], []
    for (rank, kind), count in sorted(kinds.items()):
        those = [f for f in findings if (f.severity, f.kind) == (SEVERITIES[rank], kind)]
        rows.append((kind, SEVERITIES[rank], count, len({key for f in those for key in f.samples})))
        shown = [f"  {f.where}: {f.what}\n    -> {f.remedy}" for f in those[:EXAMPLES]]
        more = [f"  … and {count - EXAMPLES} more"] if count > EXAMPLES else []
        parts.append("\n".join([f"{SEVERITIES[rank]}, {kind}:", *shown, *more]))
    return "\n\n".join([aligned(("finding", "severity", "number", "expressions"), rows), *parts])


def document(examination: Examination) -> dict[str, Any]:
    """The JSON report: everything, in the order it was found."""
    dataset = examination.dataset
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "files": {role: str(path) for role, path in dataset.files.items()},
        "expressions": len(dataset),
        "videos": len(dataset.by_video),
        "pictures": examination.files,
        "ms_per_header": round(examination.seconds_a_file * 1e3, 3),
        "findings": [finding.record() for finding in examination.findings],
        "oracle": [agreement.record() for agreement in examination.agreements],
    }


def write_exclude(path: Path, examination: Examination) -> int:
    """Write the samples to leave out as `veason.exclude` reads them, by reason; returns their number."""
    reasons: dict[str, str] = {}
    for finding in examination.findings:
        for key in finding.samples:
            reasons.setdefault(key, finding.kind)
    dataset = examination.dataset
    exclude.write_exclude(path, f"{dataset.name} {dataset.split}: {len(reasons)} samples to leave out", reasons)
    return len(reasons)
