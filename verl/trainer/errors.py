"""Why a run ends by itself."""

from __future__ import annotations


class RunStopped(RuntimeError):
    """What the run does is of no use any more; the message says why, and what may help."""
