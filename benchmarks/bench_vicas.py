"""Measures track mAP of ViCaS: our evaluation beside the benchmark's own way.

Usage: ``python -m benchmarks.bench_vicas [--videos 48] [--workers 2]``. The plain evaluator follows the published one:
it parses both files of a video with Python's json and merges and measures every pair of run-length encodings of a
predicted and a true track, frame by frame, once as intersection and once as union; it computes no J and F. In one
process the two take turns and processor seconds are compared; with several workers it is clock time with their start.
All must find the same mAP to the last digit; the plain evaluator sorts tracks stably.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from benchmarks.bench_metrics import blob, moved
from eval import vicas
from veason import masks
from veason.tables import aligned
from veason.types import Rle

SIZE = (720, 1280)
EVERY = 30
"""Frames from one that people annotated to the next."""
REFERRALS = ((1,), (2,), (3,), (1, 2), (3, 4))


def build(root: Path, *, videos: int, frames: int) -> None:
    """Writes a ViCaS root and ``pred``: four moving tracks a video, five referrals, predicted some pixels beside."""
    drawn = [_tracks(seed, frames) for seed in range(3)]
    for number in range(videos):
        tracks = drawn[number % len(drawn)]
        segmentations = [
            {
                "filename": f"{t:05d}.jpg",
                "is_gt": t % EVERY == 0,
                "track_ids": list(tracks),
                "mask_rles": [track[t][0] for track in tracks.values()],
            }
            for t in range(frames)
        ]
        annotation = {
            "video_id": number,
            "image_size": list(SIZE),
            "object_referrals": [{"prompt": "x", "track_ids": list(ids)} for ids in REFERRALS],
            "segmentations": segmentations,
        }
        said = [
            [{"filename": f"{t:05d}.jpg", "mask_rles": [tracks[i][t][1] for i in ids]} for t in range(0, frames, EVERY)]
            for ids in REFERRALS
        ]
        prediction = {"video_id": number, "pred_caption": "", "pred_lgvis_masks": said}
        for path, content in (
            (root / f"annotations/v1.0/{number:06d}.json", annotation),
            (root / f"pred/{number:06d}.json", prediction),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    split = root / "splits/v1.0/test.json"
    split.parent.mkdir(parents=True)
    split.write_text(json.dumps(list(range(videos))))


def _tracks(seed: int, frames: int) -> dict[int, list[tuple[Rle, Rle]]]:
    """Draws the true and the predicted mask of each frame, by track id."""
    rng = np.random.default_rng(seed)
    found = {}
    for track_id in (1, 2, 3, 4):
        side, start, way = rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.7, 2), rng.uniform(-0.0005, 0.0005, 2)
        found[track_id] = []
        for t in range(frames):
            if t % EVERY:  # masks of the frames between, which no evaluator looks at but everyone has to read
                found[track_id].append(found[track_id][-1])
                continue
            mask = blob(SIZE, side=side, at=tuple(start + way * t), seed=10 * seed + track_id)
            found[track_id].append((masks.encode(mask), masks.encode(moved(mask, 3 * track_id, -4))))
    return found


def plain(root: Path) -> float:
    """Computes the mAP in per cent as the published script does."""
    thresholds = np.arange(0.5, 0.95 + 1e-4, 0.05)
    found, true = [], 0
    for number in json.loads((root / "splits/v1.0/test.json").read_text()):
        annotation = json.loads((root / f"annotations/v1.0/{number:06d}.json").read_text())
        prediction = json.loads((root / f"pred/{number:06d}.json").read_text())
        frames = {frame["filename"]: frame for frame in annotation["segmentations"]}
        scored = sorted(name for name, frame in frames.items() if frame["is_gt"])
        for asked, said in zip(annotation["object_referrals"], prediction["pred_lgvis_masks"], strict=True):
            by_name = {frame["filename"]: frame["mask_rles"] for frame in said}
            tracks = list(zip(*(by_name[name] for name in scored), strict=True))
            targets = [
                [frames[name]["mask_rles"][frames[name]["track_ids"].index(i)] for name in scored]
                for i in asked["track_ids"]
            ]
            found.append(_match(np.array([[_iou(p, g) for g in targets] for p in tracks], np.float32), thresholds))
            true += len(targets)
    hits = np.concatenate(found, axis=1)
    return float(np.mean(np.array([_area(level, true) for level in hits], np.float32) * np.float32(100)))


def _iou(predicted: Sequence[Rle], target: Sequence[Rle]) -> float:
    shared = joint = 0
    for p, g in zip(predicted, target, strict=True):
        shared += int(coco.area(coco.merge([p, g], True)))
        joint += int(coco.area(coco.merge([p, g], False)))
    return shared / joint if joint else 0.0


def _match(ious: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    taken = np.full((len(thresholds), len(ious)), -1)
    for level, threshold in enumerate(thresholds):
        for i in range(ious.shape[0]):
            for j in range(ious.shape[1]):
                if j not in taken[level] and ious[i, j] >= threshold:
                    taken[level, i] = j
    return taken >= 0


def _area(hits: np.ndarray, true: int) -> np.float32:
    """Computes the area below the precision envelope in the published script's arithmetic: float32 throughout."""
    right = np.cumsum(hits.astype(np.float32))
    precision = np.concatenate([[0], right / np.arange(1, len(hits) + 1), [0]]).astype(np.float32)
    recall = np.concatenate([[0], right / np.float32(true), [1]]).astype(np.float32)
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    risen = np.flatnonzero(recall[1:] != recall[:-1])
    return np.sum((recall[risen + 1] - recall[risen]) * precision[risen + 1])


def measure(root: Path, *, workers: int, rounds: int = 4) -> tuple[float, dict[str, float], dict[str, float]]:
    """Returns (mAP, processor seconds in one process, clock seconds), the least of `rounds`, by name of the way."""
    pred, seconds, clock = root / "pred", {}, {}

    def evaluated(*, compiled: bool = True, **options: Any) -> float:
        vicas.COMPILE_FROM = 0 if compiled else 1 << 60
        return vicas.evaluate(root, pred, split="v1.0/test", **options).mean("overall", "mAP")

    ways = {
        "plain": lambda: plain(root),
        "ours": evaluated,
        "ours, without numba": lambda: evaluated(compiled=False),
        "ours, J and F": lambda: evaluated(j_and_f=True),
    }
    expected, usual = plain(root), vicas.COMPILE_FROM
    for _ in range(rounds):  # in turns, on a machine that others use
        for name, way in ways.items():
            start, started = time.process_time(), time.perf_counter()
            if (found := way()) != expected:
                sys.exit(f"mAP {found} ({name}), {expected} by the definition")
            seconds[name] = min(seconds.get(name, math.inf), time.process_time() - start)
            clock[name] = min(clock.get(name, math.inf), time.perf_counter() - started)
    vicas.COMPILE_FROM = 1  # as for many frames: numba, and workers where they pay
    for name, j_and_f in ((f"ours, --workers {workers}", False), (f"ours, --workers {workers}, J and F", True)):
        for _ in range(2):
            start = time.perf_counter()
            results = vicas.evaluate(root, pred, split="v1.0/test", workers=workers, j_and_f=j_and_f)
            clock[name] = min(clock.get(name, math.inf), time.perf_counter() - start)
        if results.mean("overall", "mAP") != expected:
            sys.exit(f"mAP {results.mean('overall', 'mAP')} ({name}), {expected} by the definition")
    vicas.COMPILE_FROM = usual
    return expected, seconds, clock


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_vicas", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--videos", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=600, help="of each video, a thirtieth scored (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of the last rows (default: cores)")
    args = parser.parse_args(argv)
    start = time.process_time()
    if not masks.use_compiled():
        sys.exit("numba is not installed; see requirements.txt")
    loading = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root, videos=args.videos, frames=args.frames)
        found, seconds, clock = measure(root, workers=args.workers)
    print(f"{args.videos} videos of {args.frames} frames, {len(REFERRALS)} referrals, 720p; least of several rounds\n")
    rows = [
        (name, seconds.get(name), least, 1000 * least / args.videos, _speed(seconds, name), _speed(clock, name))
        for name, least in clock.items()
    ]
    cells = [("–" if cell is None else cell for cell in row) for row in rows]
    print(aligned(("ViCaS", "processor s", "clock s", "ms a video", "processor speed", "clock speed"), cells))
    each = args.videos * len(REFERRALS) * len(range(0, args.frames, EVERY))
    print(f"\nequal mAP in all: {found}")
    print(
        f"numba takes {loading:.2f} s to load and is used from {vicas.COMPILE_FROM} predicted frames a worker on (here "
        f"{each}). mAP alone stays in one process below four workers."
    )


def _speed(seconds: dict[str, float], name: str) -> str | None:
    return f"x{seconds['plain'] / seconds[name]:.2f}" if name in seconds else None


if __name__ == "__main__":
    main()
