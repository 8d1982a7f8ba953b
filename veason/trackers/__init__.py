"""Trackers turn a box on one frame into a mask on every frame; `base.Tracker` is their protocol."""

from __future__ import annotations

from typing import Any

from veason.errors import DataError
from veason.trackers.base import Tracker

TRACKERS = ("grabcut", "sam2")


def open_tracker(name: str, **options: Any) -> Tracker:
    """The tracker called `name`, built with its own `options` (see `Sam2Tracker` and `GrabCutTracker`).

    Imports happen here, so that grabcut needs neither torch nor sam2. DataError for an unknown name.
    """
    if name == "sam2":
        from veason.trackers.sam2 import Sam2Tracker

        return Sam2Tracker(**options)
    if name == "grabcut":
        from veason.trackers.grabcut import GrabCutTracker

        return GrabCutTracker(**options)
    raise DataError(f"no tracker is called {name!r}; there are {', '.join(TRACKERS)}")
