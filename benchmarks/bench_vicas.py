"""Scores of ViCaS, track mAP with J and F beside it, against the benchmark's own way to its mAP alone.

Usage: ``python -m benchmarks.bench_vicas [--videos 12]``. The plain evaluator follows the published one: it parses both
files of a video with Python's json and merges and measures every pair of run-length encodings of a predicted and a true
track, frame by frame, once as intersection and once as union; J and F are not its business. Both run in one process and
must find the same mAP, the plain one's tracks sorted stably.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
    """A ViCaS root and ``pred``: four tracks a video that move, five referrals, predicted a few pixels beside."""
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
    """Track id -> per frame the true mask and the predicted one."""
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
    """The mAP in per cent, as the published script computes it."""
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
    """Area below the precision envelope over recall, in the published script's arithmetic: float32 throughout."""
    right = np.cumsum(hits.astype(np.float32))
    precision = np.concatenate([[0], right / np.arange(1, len(hits) + 1), [0]]).astype(np.float32)
    recall = np.concatenate([[0], right / np.float32(true), [1]]).astype(np.float32)
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    risen = np.flatnonzero(recall[1:] != recall[:-1])
    return np.sum((recall[risen + 1] - recall[risen]) * precision[risen + 1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_vicas", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--videos", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=600, help="of each video, a thirtieth scored (%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root, videos=args.videos, frames=args.frames)
        seconds: dict[str, list[float]] = {"plain": [], "ours": [], "ours with J and F": []}
        for _ in range(3):  # in turns, on a machine that others use
            start = time.process_time()
            expected = plain(root)
            seconds["plain"].append(time.process_time() - start)
            for name, only_map in (("ours", True), ("ours with J and F", False)):
                start = time.process_time()
                results = vicas.evaluate(root, root / "pred", split="v1.0/test", only_map=only_map)
                seconds[name].append(time.process_time() - start)
    found = results.average_precisions()["mAP"]
    if abs(found - expected) > 1e-3:
        sys.exit(f"mAP {found} here, {expected} by the definition")
    least = {name: min(values) for name, values in seconds.items()}
    rows = [
        (name, what, least[name], 1000 * least[name] / args.videos, f"x{least['plain'] / least[name]:.2f}")
        for name, what in (
            ("plain", "mAP"),
            ("ours", "mAP, every file checked and hashed"),
            ("ours with J and F", "the same, J and F of every frame"),
        )
    ]
    print(f"{args.videos} videos of {args.frames} frames, {len(REFERRALS)} referrals, 720p; one process, best of 3\n")
    print(aligned(("ViCaS", "computes", "processor s", "ms a video", "speed"), rows))
    print(f"\nequal mAP: {found:.4f}")


if __name__ == "__main__":
    main()
