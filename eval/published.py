"""Numbers that others published: reference rows of the result table. None of them was measured here.

All are as the Veason-R1 paper (arXiv 2508.11538) and its README give them, those of the peers too. Neither says on
which split of MeViS, nor for which size of the model ViCaS was scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Veason-R1 paper, arXiv 2508.11538"


@dataclass(frozen=True)
class Published:
    """A printed row."""

    method: str
    values: Mapping[str, float]
    """In per cent by the name of the column; numbers that were not printed are left out."""
    source: str = SOURCE


def _rows(columns: tuple[str, ...], *rows: tuple[str | float | None, ...]) -> tuple[Published, ...]:
    return tuple(
        Published(str(method), {c: float(v) for c, v in zip(columns, values, strict=True) if v is not None})
        for method, *values in rows
    )


_J_F = ("J", "F", "J&F")

ROWS: dict[str, tuple[Published, ...]] = {
    "revos": _rows(
        ("referring J&F", "reasoning J&F", "overall J&F", "R"),
        ("LISA-7B", 45.7, 36.1, 40.9, 9.3),
        ("VISA-13B", 57.4, 44.3, 50.9, 14.5),
        ("GLUS-7B", 58.3, 51.4, 54.9, 17.9),
        ("Omni-R1", 64.1, 53.7, 58.9, None),
        ("VRS-HQ-13B", 63.3, 56.8, 60.0, 18.9),
        ("Veason-R1-3B", 63.0, 56.8, 59.9, 28.5),
        ("Veason-R1-7B", 63.6, 59.0, 61.3, 27.0),
    ),
    "reasonvos": _rows(
        _J_F,
        ("VideoLISA-3.8B", 45.1, 49.9, 47.5),
        ("GLUS-7B", 47.5, 52.4, 49.9),
        ("Veason-R1-3B", 51.8, 58.5, 55.2),
        ("Veason-R1-7B", 56.0, 63.8, 59.9),
    ),
    "mevis": _rows(
        _J_F,
        ("VISA-13B", 41.8, 47.1, 44.5),
        ("GLUS-7B", 48.5, 54.2, 51.3),
        ("VRS-HQ-13B", 48.0, 53.7, 50.9),
        ("Veason-R1-3B", 48.2, 54.2, 51.2),
        ("Veason-R1-7B", 48.4, 56.0, 52.2),
    ),
    "vicas": _rows(
        ("val, metric unclear", "test, metric unclear"),
        ("LMPM", 8.4, 6.3),
        ("VideoLISA", 10.7, 7.8),
        ("Video-LLaVA-Seg (fine-tuned on ViCaS)", 20.5, 16.5),
        ("Veason-R1", 24.5, 18.2),
    ),
}
"""By data set."""

NOTES: dict[str, str] = {
    "mevis": "The source does not say which split of MeViS its rows are of.",
    "vicas": (
        "The source calls its ViCaS numbers J&F and names neither version nor model size. The benchmark's own "
        "evaluator gives track mAP, which they probably are; so they stand in columns of their own."
    ),
}

SPLITS: dict[str, str] = {"revos": "valid", "reasonvos": "test"}
"""The split that the rows of a data set are of, where the source says so."""
