"""Measures the gain of shared image features: prompts on one clip, against one stock SAM2 session each.

Usage: ``python -m benchmarks.bench_sam2 [--prompts N] [--frames T]`` counts image encoder calls and times both on a
tiny random SAM2 at several input sizes; it exits with 1 if a mask differs. ``--memory`` prints instead the growth of
peak resident memory over short and long videos, each in a fresh process. The JPEG frames that a stock session needs are
written before the clock starts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from veason import masks
from veason.tables import aligned
from veason.trackers.sam2 import Sam2Tracker
from veason.trackers.sam2_tiny import tiny_sam2
from veason.types import Rle

SIZE = (240, 320)
Prompt = tuple[int, tuple[float, float, float, float]]
"""Keyframe and box."""


class DriftingFrames(Sequence):
    """T frames (240, 320, 3) of a drifting picture, made on access."""

    def __init__(self, length: int) -> None:
        blotches = np.random.default_rng(7).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        self._picture = np.asarray(Image.fromarray(blotches).resize(SIZE[::-1]))
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < self._length:
            raise IndexError(position)
        return np.roll(self._picture, 3 * position, axis=1)


def write_jpegs(frames: Sequence[np.ndarray], folder: Path) -> None:
    for position, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{position:05d}.jpg")


def stock(tracker: Sam2Tracker, folder: Path, prompt: Prompt) -> list[Rle]:
    """Runs one stock session; returns the RLE of every frame."""
    keyframe, box = prompt
    state = tracker.predictor.init_state(str(folder))
    tracker.predictor.add_new_points_or_box(state, frame_idx=keyframe, obj_id=0, box=np.array(box, np.float32))
    found: dict[int, Rle] = {}
    for reverse in (False, True):
        for position, _, logits in tracker.predictor.propagate_in_video(state, keyframe, reverse=reverse):
            found[position] = masks.encode((logits[0, 0] > 0.0).numpy())
    return [found[position] for position in range(len(found))]


def shared(tracker: Sam2Tracker, frames: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[list[Rle]]:
    """Encodes once and tracks every prompt; returns the RLEs of each."""
    encoded = tracker.encode(frames)
    return [list(tracker.track(encoded, keyframe=keyframe, boxes=[box]).objects[0]) for keyframe, box in prompts]


def counted(tracker: Sam2Tracker) -> list[int]:
    """Returns a list that grows by one with each image encoder call."""
    calls: list[int] = []
    tracker.predictor.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


def random_prompts(number: int, length: int) -> Iterator[Prompt]:
    rng = np.random.default_rng(0)
    for _ in range(number):
        y, x = rng.uniform(0, 0.5, 2) * SIZE
        yield int(rng.integers(length)), (x, y, x + 0.4 * SIZE[1], y + 0.4 * SIZE[0])


def compare(image_sizes: Sequence[int], *, prompts: int, length: int) -> tuple[str, bool]:
    """Returns the table of calls and times, and True if every mask is the stock one."""
    rows, equal = [], True
    asked = list(random_prompts(prompts, length))
    with tempfile.TemporaryDirectory() as temporary:
        write_jpegs(DriftingFrames(length), Path(temporary))
        frames = [np.asarray(Image.open(path)) for path in sorted(Path(temporary).glob("*.jpg"))]
        for image_size in image_sizes:
            with tempfile.TemporaryDirectory() as model:
                files = tiny_sam2(model, 0, image_size=image_size)
                tracker = Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu")
            shared(tracker, frames[:2], [(0, asked[0][1])])  # warm-up
            calls = counted(tracker)
            start = time.perf_counter()
            expected = [stock(tracker, Path(temporary), prompt) for prompt in asked]
            stock_s, stock_calls = time.perf_counter() - start, len(calls)
            start = time.perf_counter()
            found = shared(tracker, frames, asked)
            ours_s, ours_calls = time.perf_counter() - start, len(calls) - stock_calls
            equal &= found == expected
            rows.append(
                (
                    f"{image_size} px, encoder calls",
                    f"{stock_calls}",
                    f"{ours_calls}",
                    f"x{stock_calls / ours_calls:.1f}",
                )
            )
            rows.append((f"{image_size} px, seconds", f"{stock_s:.2f}", f"{ours_s:.2f}", f"x{stock_s / ours_s:.1f}"))
    return aligned((f"{prompts} prompts, {length} frames", "stock", "ours", "ratio"), rows), equal


def growth(way: str, length: int, budget_bytes: int) -> float:
    """Returns the MiB by which this process's peak resident memory grows over one prompt on `length` frames."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = tiny_sam2(temporary, 0)
        tracker = Sam2Tracker(
            config=files.config, checkpoint=files.checkpoint, device="cpu", feature_budget_bytes=budget_bytes
        )
        folder = Path(temporary) / "video"
        folder.mkdir()
        write_jpegs(DriftingFrames(length) if way == "stock" else [], folder)
        prompt = (length // 2, (40.0, 40.0, 160.0, 160.0))
        shared(tracker, DriftingFrames(40), [(20, prompt[1])])  # before measuring: libraries allocate memory once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if way == "stock":
            stock(tracker, folder, prompt)
        else:
            shared(tracker, DriftingFrames(length), [prompt])
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts in KiB


def memory(lengths: Sequence[int], *, budget_bytes: int) -> str:
    """Returns the table of growths, each measured in a process of its own."""
    rows = []
    context = multiprocessing.get_context("spawn")
    ways = (
        ("stock", 0),
        ("all features in memory", 1 << 40),
        (f"{budget_bytes >> 20} MiB, rest in a file", budget_bytes),
    )
    for name, budget in ways:
        with context.Pool(1, maxtasksperchild=1) as pool:
            found = pool.starmap(growth, [(name, length, budget) for length in lengths], chunksize=1)
        rows.append((name, *(f"{mib:.1f}" for mib in found)))
    return aligned(("growth of peak memory, MiB", *(f"{length} frames" for length in lengths)), rows)


def quiet() -> None:
    """Silences the warning about the C extension, which neither side has here."""
    warnings.filterwarnings("ignore", message="cannot import name '_C'")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_sam2", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[128, 256], help="SAM2's input sizes")
    parser.add_argument("--memory", action="store_true", help="measure memory on 250 and 1,000 frames instead")
    parser.add_argument("--budget-mib", type=int, default=8, help="feature budget of the last row of --memory")
    args = parser.parse_args(argv)
    quiet()
    if args.memory:
        print(memory([250, 1000], budget_bytes=args.budget_mib << 20))
        return 0
    torch.set_num_threads(1)  # a tiny model is no faster on more, and far slower on a busy machine
    table, equal = compare(args.image_sizes, prompts=args.prompts, length=args.frames)
    print(table)
    print(f"\nmasks {'equal, bit for bit' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
