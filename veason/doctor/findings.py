"""The record of a finding: a fault, the file or sample that has it, and the remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""error: something cannot be read or scored; warning: it can, but looks wrong; note: no fault, but good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding of the examination."""

    severity: Severity
    kind: str
    """Its kind in a word or two; findings of a kind are counted together."""
    where: str
    """The file, folder, video or ``video/exp_id``."""
    what: str
    remedy: str
    samples: tuple[str, ...] = ()
    """Keys of the samples that should not be used because of it."""

    def record(self) -> dict[str, Any]:
        """The finding as the JSON report lists it."""
        return asdict(self)
