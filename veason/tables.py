"""Writes plain-text tables whose columns line up."""

from __future__ import annotations

import math
from collections.abc import Sequence

Cell = str | int | float


def aligned(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with the first column left, the others right; floats with two digits, NaN as a dash."""
    texts = [
        [str(cell) if not isinstance(cell, float) else "–" if math.isnan(cell) else f"{cell:.2f}" for cell in row]
        for row in rows
    ]
    lines = [list(header), *texts]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
