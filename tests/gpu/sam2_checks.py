"""Checks of SAM2 under autocast: it runs on this device, and keeping features and memory elsewhere changes no
mask."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from actor_checks import Found
from place import Place, expect

from veason import masks

PACKAGE_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
FRAMES = 12


def sam2(place: Place) -> Found:
    """Tracking under autocast: tiny is a tiny SAM2, mid the smallest official one at its full resolution, both with
    random weights."""
    absent = [name for name in ("sam2", "hydra", "pycocotools") if find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    from veason.trackers.sam2 import Sam2Tracker  # only now is it known that there is sam2

    config, checkpoint = _weights(place)
    picture = np.random.default_rng(0).integers(0, 256, (120, 180, 3), dtype=np.uint8)
    frames, found = [np.roll(picture, 3 * t, axis=1) for t in range(FRAMES)], []  # noise that drifts to the right
    aside = {"offload_features_to_cpu": True, "offload_state_to_cpu": True, "feature_budget_bytes": 0}
    for label, dtype, options in (("autocast", "bfloat16", {}), ("aside", "bfloat16", aside), ("exact", "float32", {})):
        tracker = Sam2Tracker(config=config, checkpoint=checkpoint, device=str(place.device), dtype=dtype, **options)
        encoded = tracker.encode(frames)
        found.append(tracker.track(encoded, keyframe=4, boxes=[(20, 16, 80, 60), (100, 40, 160, 110)]))
        place.edge(f"{label} tracked")
    autocast, elsewhere, exact = found
    expect(autocast == elsewhere, "masks changed when features and memory were kept on the CPU and in a file")
    shown = sum(bool(mask.any()) for mask in masks.track_unions(autocast))
    # the tiny one's weights are made so that it sees something
    expect(place.size != "tiny" or shown > 0, f"no mask in any of {FRAMES} frames")
    pairs = zip(masks.track_unions(autocast), masks.track_unions(exact), strict=True)
    return {"frames": FRAMES, "with a mask": shown, "IoU with float32": np.mean([masks.iou(a, b) for a, b in pairs])}


def _weights(place: Place) -> tuple[str | Path, Path]:
    """Config and checkpoint of a random SAM2."""
    from veason.trackers.sam2 import build_predictor
    from veason.trackers.sam2_tiny import enliven, tiny_sam2

    if place.size == "tiny":
        return tiny_sam2(place.scratch, 0)
    torch.manual_seed(0)
    predictor = build_predictor(PACKAGE_CONFIG, torch.device("cpu"))
    enliven(predictor)
    checkpoint = place.scratch / "sam2.pt"
    torch.save(predictor.state_dict(), checkpoint)
    return PACKAGE_CONFIG, checkpoint
