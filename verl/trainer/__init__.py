"""Training: the prompts of a run, its loop, its folder and its numbers."""

from __future__ import annotations


class RunStopped(RuntimeError):
    """Going on would be of no use; the message says why, and what may help."""
