"""Measures how badly masks and pictures disagree: tracks the true box over a few frames and compares the masks.

The oracle knows the target: in each of a few stretches of the video it takes the frame where the target is largest and
the true boxes there, and a tracker that looks at the pixels finds the object in that frame and the next. Where the
annotations drifted off the frames (ReVOS does on UVO and TAO), box and picture do not fit, and J falls. J also falls
where the tracker is weak, so the ranking is a list to look through, the worst first, not a verdict.

Its J is not what eval gives for the predictions of the oracle policy, though tracker and masks are the same: here a few
frames are compared, in each stretch with true boxes of its own, there all frames of a video, tracked from one keyframe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veason import ground_truth, masks, trackers
from veason.datasets.base import Dataset
from veason.frames import VideoFrames
from veason.ground_truth import Tracks
from veason.trackers.base import Tracker
from veason.types import VideoSample

STRETCHES = 3
"""Parts of a video, equal in length, each of which is examined in one place."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of one expression's masks with its pictures."""

    sample: str
    """``video/exp_id``"""
    j: float
    """Mean J of the tracked masks against the annotated ones, 0 … 1."""
    worst: int
    """Frame id of the least J among the examined frames."""
    worst_j: float
    looked_at: tuple[int, ...]
    """Frame ids."""

    def record(self) -> dict[str, Any]:
        figures = {"J": round(self.j, 4), "worst_frame_id": self.worst, "worst_J": round(self.worst_j, 4)}
        return {"sample": self.sample, **figures, "frame_ids": list(self.looked_at)}


class Oracle:
    """Compares masks with pictures; the tracker is built when it is first needed, in the process that needs it."""

    def __init__(self, tracker: str, options: dict[str, Any]) -> None:
        self._name, self._options = tracker, options
        self._tracker: Tracker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tracker": None}

    def agreements(self, dataset: Dataset, samples: Sequence[VideoSample]) -> list[Agreement]:
        """One agreement for each of a video's samples with a visible target; samples of one target share the work."""
        video = VideoFrames(samples[0])
        found: dict[tuple[int | str, ...], dict[int, float]] = {}
        for sample in samples:
            if sample.anno_ids and sample.anno_ids not in found:
                tracks = dataset.object_rles(sample)
                found[sample.anno_ids] = {
                    t: masks.iou(mask, masks.union([rles[t] for rles in tracks], sample.size))
                    for t, mask in self.masks(tracks, dataset.gt_frames(sample), video).items()
                }
        agreements = []
        for sample in samples:
            if j := found.get(sample.anno_ids):
                worst, looked_at = min(j, key=lambda t: j[t]), tuple(sorted(j))
                mean = sum(j.values()) / len(j)
                agreements.append(Agreement(sample.key, mean, worst=worst, worst_j=j[worst], looked_at=looked_at))
        return agreements

    def masks(self, tracks: Tracks, scored: Sequence[int], video: VideoFrames) -> dict[int, np.ndarray]:
        """The masks that the tracker makes of the true boxes: (H, W) bool by frame id, in the examined frames.

        tracks: the target's objects. scored: ids of the frames with ground truth. Empty for a target that is nowhere.
        """
        if self._tracker is None:
            self._tracker = trackers.open_tracker(self._name, **self._options)
        found: dict[int, np.ndarray] = {}
        for keyframe, pair in keyframes(tracks, scored):
            true = [box for box in ground_truth.boxes(tracks, keyframe) if box is not None]
            encoded = self._tracker.encode([video[t] for t in pair])
            tracked = self._tracker.track(encoded, keyframe=pair.index(keyframe), boxes=true)
            found |= {t: masks.track_union(tracked, i) for i, t in enumerate(pair)}
        return found


def keyframes(tracks: Tracks, scored: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """(keyframe, it and the scored frame after it, or before), one for each stretch of a video that has the target.

    The keyframe is the frame of the stretch in which the target is largest.
    """
    areas = {t: ground_truth.area(tracks, t) for t in scored}
    found = []
    for stretch in np.array_split(np.array(scored), min(STRETCHES, len(scored))):
        keyframe = max(stretch.tolist(), key=lambda t: areas[t])
        if areas[keyframe] == 0:
            continue
        place = scored.index(keyframe)
        other = scored[place + 1 : place + 2] or scored[max(place - 1, 0) : place]
        found.append((keyframe, tuple(sorted({keyframe, *other}))))
    return found
