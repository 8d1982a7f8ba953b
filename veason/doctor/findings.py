"""What the doctor found: one record a fault, with the file or sample it is about and the remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
"""error: something cannot be read or scored; warning: it can, and looks wrong; note: good to know, and no fault."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    severity: Severity
    kind: str
    """What sort of thing, in a word or two: findings of a kind are counted together."""
    where: str
    """The file, folder, video or ``video/exp_id``."""
    what: str
    remedy: str
    samples: tuple[str, ...] = ()
    """Keys of the samples that should not be used because of it."""

    def record(self) -> dict[str, Any]:
        """As the JSON report lists it."""
        return asdict(self)
