"""Compares the speed of `eval.metrics` with the plain definition on one core, and checks that the scores are equal.

Usage: ``python -m benchmarks.bench_metrics [--pairs N]``. Times are the least of several rounds, J and F together, of
masks as the evaluator holds them (row-major uint8, 0/255 against 0/1). It exits with 1 if any pair of masks scores
differently.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from benchmarks import plain_metrics
from eval import metrics
from veason.tables import aligned

SIZES = {"480p": (480, 854), "1080p": (1080, 1920)}
Size = tuple[int, int]
Pair = tuple[np.ndarray, np.ndarray]


def blob(size: Size, *, side: float, at: tuple[float, float] = (0.5, 0.5), seed: int = 0) -> np.ndarray:
    """Draws an object with a wavy outline that takes `side` of each side of the frame, centred `at` (down, right)."""
    height, width = size
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    rng = np.random.default_rng(seed)
    radius = 0.5 * side * (1 - 0.12 * (1 + np.sin(5 * angle + rng.uniform(0, 6))) * rng.uniform(0.5, 1))
    points = np.stack([width * (at[1] + radius * np.cos(angle)), height * (at[0] + radius * np.sin(angle))], axis=-1)
    return cv2.fillPoly(np.zeros(size, np.uint8), [points.round().astype(np.int32)], 1)


def moved(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    return np.roll(mask, (down, right), (0, 1))


def cases(size: Size) -> dict[str, Pair]:
    """Returns (prediction, ground truth) pairs by name."""
    nothing = np.zeros(size, np.uint8)
    typical, large = blob(size, side=0.35), blob(size, side=0.84)
    noise = (np.random.default_rng(0).random(size) < 0.05).astype(np.uint8)
    return {
        "typical object": (moved(typical, 3, 5) * 255, typical),
        "object 84 % of each side": (moved(large, 3, 5) * 255, large),
        "wrong object": (blob(size, side=0.3, at=(0.3, 0.2)) * 255, blob(size, side=0.3, at=(0.7, 0.75))),
        "target empty": (typical * 255, nothing),
        "both empty": (nothing, nothing),
        "noise all over": (noise * 255, typical),
        "target column-major": (moved(typical, 3, 5) * 255, np.asfortranarray(typical)),
    }


def plain(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    return plain_metrics.region_similarity(pred, gt), plain_metrics.boundary_measure(pred, gt)


def numpy_path(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    metrics.use_compiled(False)
    return metrics.j_and_f(pred, gt)


def numba_path(pred: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    metrics.use_compiled(True)
    return metrics.j_and_f(pred, gt)


def milliseconds(score: Callable[..., object], pair: Pair, *, rounds: int) -> float:
    """Returns the least time of one call over a few rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        score(*pair)
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def speed(budget: float) -> str:
    """Measures the table of times. The three take turns, so that a slow moment of the machine affects all of them."""
    rows = []
    for name, size in SIZES.items():
        for case, pair in cases(size).items():
            plain_ms, numpy_ms, numba_ms = float("inf"), float("inf"), float("inf")
            end = time.perf_counter() + budget
            while time.perf_counter() < end:
                plain_ms = min(plain_ms, milliseconds(plain, pair, rounds=2))
                numpy_ms = min(numpy_ms, milliseconds(numpy_path, pair, rounds=20))
                numba_ms = min(numba_ms, milliseconds(numba_path, pair, rounds=20))
            ratios = (f"x{plain_ms / numpy_ms:.1f}", f"x{plain_ms / numba_ms:.1f}")
            rows.append((f"{name}, {case}", f"{plain_ms:.2f}", f"{numpy_ms:.3f}", f"{numba_ms:.3f}", *ratios))
    return aligned(("frame", "plain ms", "NumPy ms", "numba ms", "NumPy", "numba"), rows)


def random_mask(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Draws an object anywhere (over the border, too), a hole, noise, a line, one pixel, nothing, or the full frame."""
    place = {"side": rng.uniform(0.02, 1.2), "at": tuple(rng.uniform(0, 1, 2)), "seed": int(rng.integers(1 << 30))}
    match rng.integers(8):
        case 0:
            return np.zeros(size, np.uint8)
        case 1:
            return np.ones(size, np.uint8)
        case 2:
            pixel = np.zeros(size, np.uint8)
            pixel[tuple(rng.integers(size))] = 1
            return pixel
        case 3:
            return (rng.random(size) < rng.choice([0.001, 0.05, 0.5])).astype(np.uint8)
        case 4:
            return 1 - blob(size, **place)
        case 5:
            line = np.zeros(size, np.uint8)
            start, end = rng.integers((size[1], size[0]), size=(2, 2)).tolist()
            return cv2.line(line, start, end, 1, int(rng.integers(1, 4)))
        case _:
            return blob(size, **place)


def differing(pairs: int) -> int:
    """Counts random pairs, of 480p, 1080p and odd sizes, whose scores are not equal to the last bit."""
    rng = np.random.default_rng(1)
    wrong = 0
    for number in range(pairs):
        size = {0: SIZES["1080p"], 1: SIZES["480p"], 2: SIZES["480p"]}.get(number % 10, tuple(rng.integers(1, 400, 2)))
        gt = random_mask(rng, size)
        pred = moved(gt, *rng.integers(-12, 13, 2)) if rng.random() < 0.4 else random_mask(rng, size)
        expected = plain(pred, gt)
        wrong += numpy_path(pred, gt) != expected or numba_path(pred, gt) != expected
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_metrics", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=1500, help="random pairs of masks to compare")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds for each time in the table")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    if not metrics.use_compiled():
        sys.exit("numba is missing: run `make setup`")
    print(speed(args.budget))
    wrong = differing(args.pairs)
    print(f"\nequal J and F on {args.pairs - wrong} of {args.pairs} random pairs of masks")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
