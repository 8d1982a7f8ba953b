"""Measures the ground truth of a training clip: straight from the RLEs, against decoding every mask of the video.

Both give the same areas (all frames), boxes and union masks (shown frames), which is checked first. The video has 100
frames of 480 x 854 with three moving ellipses, of which five frames are shown at 560 x 560.
"""

from __future__ import annotations

import time
from random import Random

import cv2
import numpy as np
from pycocotools import mask as coco

from veason import frames, ground_truth, masks
from veason.types import Clip, Rle, Size

LENGTH, OBJECTS = 100, 3
SIZE: Size = (480, 854)
MODEL_SIZE: Size = (560, 560)


def make_tracks(seed: int = 0) -> list[list[Rle]]:
    """Draws the tracks of ellipses with ragged edges, as annotations have."""
    rng = np.random.default_rng(seed)
    tracks: list[list[Rle]] = []
    for k in range(OBJECTS):
        tracks.append([])
        for t in range(LENGTH):
            centre = (120 + 180 * k + t, 150 + 60 * k + t // 2)
            angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
            radius = 1 + 0.05 * rng.standard_normal(90)
            outline = [centre[0] + 110 * radius * np.cos(angles), centre[1] + 80 * radius * np.sin(angles)]
            points = np.stack(outline, axis=-1).astype(np.int32)
            tracks[k].append(masks.encode(cv2.fillPoly(np.zeros(SIZE, np.uint8), [points], 1) > 0))
    return tracks


def from_rles(tracks: list[list[Rle]], seed: int) -> tuple[tuple[int, ...], list, np.ndarray]:
    areas = ground_truth.areas(tracks, LENGTH)
    clip = frames.sample_clip(LENGTH, policy="train_grid", n=6, size=MODEL_SIZE, areas=areas, rng=Random(seed))
    return areas, [ground_truth.boxes(tracks, t) for t in clip.frame_ids], ground_truth.clip_masks(tracks, clip, SIZE)


def by_decoding(tracks: list[list[Rle]], seed: int) -> tuple[tuple[int, ...], list, np.ndarray]:
    """Decodes every mask of every object and computes areas and boxes from the pixels."""
    decoded = np.stack([[coco.decode(rle) for rle in rles] for rles in tracks])  # (N, T, H, W) uint8
    unions = decoded.any(axis=0)
    areas = tuple(int(union.sum()) for union in unions)
    clip: Clip = frames.sample_clip(LENGTH, policy="train_grid", n=6, size=MODEL_SIZE, areas=areas, rng=Random(seed))
    boxes: list[list[tuple[float, ...]]] = []
    for t in clip.frame_ids:
        pixels = [np.nonzero(mask) for mask in decoded[:, t]]
        boxes.append([(float(x.min()), float(y.min()), float(x.max()), float(y.max())) for y, x in pixels])
    rows, columns = (ground_truth.nearest(n, out) for n, out in zip(SIZE, MODEL_SIZE, strict=True))
    shown = [unions[t][rows][:, columns] for t in clip.frame_ids]
    return areas, boxes, np.stack(shown).astype(bool)


def main(repeats: int = 5) -> None:
    cv2.setNumThreads(1)
    tracks = make_tracks()
    ours, theirs = from_rles(tracks, 0), by_decoding(tracks, 0)
    assert ours[:2] == theirs[:2]
    assert np.array_equal(ours[2], theirs[2])
    seconds = {}
    for function in (from_rles, by_decoding):
        times = []
        for seed in range(repeats):
            start = time.perf_counter()
            function(tracks, seed)
            times.append(time.perf_counter() - start)
        seconds[function] = min(times)
    ratio = seconds[by_decoding] / seconds[from_rles]
    print(
        f"{'clip targets, ' + str(LENGTH) + ' frames x ' + str(OBJECTS) + ' objects, 480p':<50}{'ms':>10}{'ratio':>8}"
    )
    print(f"{'decoding every mask':<50}{seconds[by_decoding] * 1e3:>10.1f}{1:>7}x")
    print(f"{'straight from the RLEs':<50}{seconds[from_rles] * 1e3:>10.1f}{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
