"""Measures a whole evaluation: time and memory, how they grow with the data, and the plain evaluator beside it.

Usage: ``python -m benchmarks.bench_evaluation [--videos 100] [--root DIR]``. The world has 100 videos x 20 expressions
x 40 frames at 480p (`benchmarks.evaluation_world`), 80,000 predicted frames; ``python -m eval.revos`` scores a tenth of
it in each form of storage, then all of it, each time in a process of its own. The plain evaluator follows the
definition frame by frame and expression by expression with as many processes, on a sample of the expressions, and must
find the same numbers. Processor seconds are of all processes together, and the ratios are of them: on a busy machine
they still mean something. Reading the annotations is counted for ours and not for the plain one.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from benchmarks import evaluation_world as world
from benchmarks import plain_metrics
from benchmarks.bench_metrics import blob, milliseconds
from veason import mask_png
from veason.tables import aligned

LABELS = {"png": "8-bit PNG", "png1": "1-bit PNG", "rle": "RLE"}
HEAD = ("ReVOS protocol", "frames", "seconds", "processor s", "ms an expression", "ratio", "peak MiB")


@dataclass(frozen=True)
class Cost:
    """The cost of a command."""

    seconds: float
    processor: float
    mib: float
    """The largest memory of all its processes together."""


def measure(command: Sequence[str]) -> Cost:
    """Runs a command to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    code = process.wait()
    watcher.join()
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak[0])


def _watch(process: subprocess.Popen, peak: list[float]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], _memory(process.pid))
        time.sleep(0.1)


def _memory(pid: int) -> float:
    """Returns the resident MiB of a process and its descendants; 0 for one that has just ended."""
    try:
        status = Path(f"/proc/{pid}/statm").read_text().split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(status[1]) * resource.getpagesize() / 2**20 + sum(_memory(int(child)) for child in children)


def score(root: Path, form: str, out: Path, workers: int, meta: Path | None = None) -> Cost:
    arguments = ["--gt", root / "gt", "--pred", root / form, "--out", out, "--workers", workers]
    arguments += ["--meta", meta] if meta else []
    return measure([sys.executable, "-m", "eval.revos", *map(str, arguments)])


# the plain evaluator

_plain: dict = {}


def _start_plain(root: Path) -> None:
    """Reads all annotations, as a straightforward script does."""
    cv2.setNumThreads(1)
    for name in ("mask_dict", "mask_dict_foreground", "meta_expressions_valid_"):
        _plain[name] = json.loads((root / "gt" / f"{name}.json").read_text())
    _plain["pred"] = root / "png"


def _score_plainly(place: tuple[str, str]) -> tuple[list[float], float]:
    """Returns (J, F, A, R of an expression in per cent, rounded; processor seconds); frames share no work."""
    start = time.process_time()
    video, exp_id = place
    entry = _plain["meta_expressions_valid_"]["videos"][video]
    anno_ids = entry["expressions"][exp_id]["anno_id"]
    rows = []
    for t, name in enumerate(entry["frames"]):
        pred = cv2.imread(str(_plain["pred"] / video / exp_id / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        gt = np.zeros(pred.shape, np.uint8)
        for anno_id in anno_ids:
            gt += coco.decode(_plain["mask_dict"][str(anno_id)][t])
        everything = coco.decode(_plain["mask_dict_foreground"][video]["masks_rle"][t])
        j, f = plain_metrics.region_similarity(pred, gt), plain_metrics.boundary_measure(pred, gt)
        false = np.sum((np.uint8(1) - gt) * pred)
        rows.append((j, f, np.mean(gt == pred), max(1 - false / (np.sum(everything) + 1e-6), 0)))
    return [round(100 * float(mean), 2) for mean in np.mean(rows, axis=0)], time.process_time() - start


def plain(root: Path, places: Sequence[tuple[str, str]], workers: int) -> tuple[list[list[float]], Cost]:
    """Scores some expressions; returns their rows and the cost without reading the annotations."""
    with multiprocessing.get_context("spawn").Pool(workers, _start_plain, (root,)) as pool:
        pool.map(_score_plainly, places[:1] * workers, chunksize=1)  # the processes are up
        start = time.perf_counter()
        found = pool.map(_score_plainly, places, chunksize=1)
        seconds = time.perf_counter() - start
    return [row for row, _ in found], Cost(seconds, sum(processor for _, processor in found), 0.0)


def check_equal(results: Path, places: Sequence[tuple[str, str]], rows: Sequence[Sequence[float]]) -> None:
    """Ends the benchmark if our rows are not the plain ones."""
    with open(results / "results.csv") as file:
        records = list(csv.DictReader(file))
    ours = {(r["video_name"], r["exp_id"]): [float(r[column]) for column in ("J", "F", "A", "R")] for r in records}
    for place, row in zip(places, rows, strict=True):
        if not np.allclose(ours[place], row, rtol=0, atol=0.0101):  # a mean of floats may round to the next digit
            sys.exit(f"{place}: {ours[place]} here, {row} by the definition")


def file_times() -> str:
    """Measures milliseconds to write and to read a mask of 480p on one core, beside OpenCV and Pillow."""
    mask = blob(world.SIZE, side=0.35) * np.uint8(255)
    grey, palette = Image.fromarray(mask), Image.fromarray(mask // 255, mode="P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    files = {"8-bit PNG": mask_png.encode(mask), "1-bit PNG": mask_png.encode(mask, bits=1)}
    files |= {"8-bit PNG by Pillow": _saved(grey), "palette PNG, indices": _saved(palette)}
    mask_png.use_compiled()
    rows = []
    for bits in (8, 1):
        ours = milliseconds(lambda bits: mask_png.encode(mask, bits=bits), (bits,), rounds=50)
        options = [cv2.IMWRITE_PNG_BILEVEL, 1] if bits == 1 else []
        opencv = milliseconds(cv2.imencode, (".png", mask, options), rounds=50)
        pillow = milliseconds(_saved, (grey if bits == 8 else grey.convert("1"),), rounds=50)
        rows.append((f"write, {bits}-bit PNG", ours, opencv, pillow))
    for label, data in files.items():
        decode = mask_png.decode_indices if "palette" in label else mask_png.decode_grey
        ours = milliseconds(decode, (data, world.SIZE), rounds=50)
        opencv = milliseconds(cv2.imdecode, (np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), rounds=50)
        pillow = milliseconds(lambda data: np.asarray(Image.open(io.BytesIO(data))), (data,), rounds=50)
        rows.append((f"read, {label}", ours, opencv, pillow))
    table = [
        (label, *(f"{time:.3f}" for time in times), *(f"x{time / times[0]:.1f}" for time in times[1:]))
        for label, *times in rows
    ]
    return aligned(("a mask of 480p, ms", "ours", "OpenCV", "Pillow", "of OpenCV", "of Pillow"), table)


def _saved(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tenth(root: Path, videos: int) -> Path:
    """Writes an expression file of the first tenth of the videos."""
    content = json.loads((root / "gt" / "meta_expressions_valid_.json").read_text())["videos"]
    path = root / "tenth.json"
    path.write_text(json.dumps({"videos": dict(list(content.items())[: max(1, videos // 10)])}))
    return path


def run(root: Path, args: argparse.Namespace) -> None:
    print(f"{file_times()}\n")
    if not root.is_dir():
        world.build(root, args.videos)
    part, out = tenth(root, args.videos), root / "scores"
    videos = json.loads(part.read_text())["videos"]
    keys = [(video, exp_id) for video, entry in videos.items() for exp_id in entry["expressions"]]
    costs = {form: score(root, form, out / form, args.workers, part) for form in world.FORMS}
    whole = None if args.only_tenth else score(root, "png", out / "all", args.workers)
    places = keys[:: max(1, len(keys) // args.sample)][: args.sample]
    rows, cost = plain(root, places, args.workers)
    check_equal(out / "png", places, rows)
    base = cost.processor / len(places)
    table = [_row("plain, 8-bit PNG", len(places), cost, base)]
    table += [_row(f"a tenth, {LABELS[form]}", len(keys), costs[form], base) for form in world.FORMS]
    table += [_row("all, 8-bit PNG", args.videos * world.EXPRESSIONS, whole, base)] if whole else []
    print(f"{args.workers} processes, {world.FRAMES} frames of 480p an expression\n")
    print(aligned(HEAD, table))
    if whole:
        grown = [getattr(whole, name) / getattr(costs["png"], name) for name in ("seconds", "processor", "mib")]
        print("\nten times the data: x{:.1f} seconds, x{:.1f} processor seconds, x{:.2f} memory".format(*grown))
    print(f"\nequal J, F, A, R of {len(places)} expressions")


def _row(label: str, expressions: int, cost: Cost, base: float) -> tuple[str | int | float, ...]:
    """Makes a row of the table. base: processor seconds of the plain evaluator for an expression."""
    each, memory = cost.processor / expressions, f"{cost.mib:.0f}" if cost.mib else "–"
    return (label, expressions * world.FRAMES, cost.seconds, cost.processor, 1000 * each, f"x{base / each:.1f}", memory)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_evaluation", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--videos", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--only-tenth", action="store_true", help="score a tenth of them only")
    parser.add_argument("--sample", type=int, default=24, help="expressions for the plain evaluator")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--root", type=Path, help="keep the world here, or take the one that is here")
    args = parser.parse_args(argv)
    os.environ["TQDM_DISABLE"] = "1"
    if args.root:
        run(args.root, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder) / "world", args)


if __name__ == "__main__":
    main()
