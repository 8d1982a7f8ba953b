"""SAM2 under autocast, as a check of ``python -m verl.gpu_check``, which finds it by name: does it run on this device,
and does keeping features and memory elsewhere change a mask?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from veason.types import MaskTrack

if TYPE_CHECKING:
    import torch

NEEDED = ("sam2", "hydra", "pycocotools")
PACKAGE_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
FRAMES = 12
KEYFRAME = 4


class Place(Protocol):
    """Where the check runs; who calls it has one."""

    size: str
    """``tiny`` is a tiny SAM2; anything else the smallest official one at its full resolution, both with random
    weights."""
    device: torch.device
    scratch: Path
    """A folder to write in."""

    def edge(self, label: str) -> float:
        """Note the memory in use."""
        ...


def run(place: Place) -> dict[str, float] | str:
    """Numbers worth reading, or why the check was left out. RuntimeError if a mask is not what it must be."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    return _track(place)


def _track(place: Place) -> dict[str, float]:
    from veason.trackers.sam2 import Sam2Tracker  # here and below: only now is it known that there is sam2

    config, checkpoint = _weights(place)
    frames, found = _frames(), []
    aside = {"offload_features_to_cpu": True, "offload_state_to_cpu": True, "feature_budget_bytes": 0}
    for label, dtype, options in (("autocast", "bfloat16", {}), ("aside", "bfloat16", aside), ("exact", "float32", {})):
        tracker = Sam2Tracker(config=config, checkpoint=checkpoint, device=str(place.device), dtype=dtype, **options)
        encoded = tracker.encode(frames)
        found.append(tracker.track(encoded, keyframe=KEYFRAME, boxes=[(20, 16, 80, 60), (100, 40, 160, 110)]))
        place.edge(f"{label} tracked")
    autocast, elsewhere, exact = found
    if autocast != elsewhere:
        raise RuntimeError("masks changed when features and memory were kept on the CPU and in a file")
    shown = sum(bool(mask.any()) for mask in autocast.unions())
    if place.size == "tiny" and not shown:  # its weights are made so that it sees something
        raise RuntimeError(f"no mask in any of {FRAMES} frames")
    return {"frames": FRAMES, "with a mask": shown, "IoU with float32": _iou(autocast, exact)}


def _weights(place: Place) -> tuple[str | Path, Path]:
    """Config and checkpoint of a random SAM2."""
    import torch

    from veason.trackers.sam2 import _build
    from veason.trackers.sam2_tiny import _enliven, tiny_sam2

    if place.size == "tiny":
        return tiny_sam2(place.scratch, 0)
    torch.manual_seed(0)
    predictor = _build(PACKAGE_CONFIG, torch.device("cpu"))
    _enliven(predictor)
    checkpoint = place.scratch / "sam2.pt"
    torch.save(predictor.state_dict(), checkpoint)
    return PACKAGE_CONFIG, checkpoint


def _frames() -> list[np.ndarray]:
    """A noisy picture that drifts to the right: (120, 180, 3) uint8 each."""
    picture = np.random.default_rng(0).integers(0, 256, (120, 180, 3), dtype=np.uint8)
    return [np.roll(picture, 3 * t, axis=1) for t in range(FRAMES)]


def _iou(ours: MaskTrack, theirs: MaskTrack) -> float:
    from veason import masks

    pairs = zip(ours.unions(), theirs.unions(), strict=True)
    return float(np.mean([masks.iou(a, b) for a, b in pairs]))
