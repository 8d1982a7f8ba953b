"""Measures Seed-CoT with a slow server, from the command line to the records, also when killed and when requests fail.

Usage: ``python -m benchmarks.bench_seed_cot [--requests N] [--videos N] [--delay S]``. The least possible time is
requests times delay over the requests in flight. The stand-in teacher runs in this process on the same cores, so that a
remote server would leave more to the client. It exits with 1 if a record is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from demo.teacher import serve
from demo.writer import build_world
from veason.tables import aligned

IN_FLIGHT = 64
FAIL_RATE = 0.2
KILLS = 3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_seed_cot", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--videos", type=int, default=480, help="videos of the synthetic world (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds of a request (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        table, whole = measure(Path(temporary), args.requests, videos=args.videos, delay=args.delay)
    print(table)
    if not whole:
        print("records were lost or doubled", file=sys.stderr)
    return 0 if whole else 1


def measure(root: Path, requests: int, *, videos: int, delay: float) -> tuple[str, bool]:
    """Returns the table, and True if every run has each record once."""
    build_world(root, videos=videos, seed=3, policy=False)
    words = ("--input_json", root / "meta_expressions_train_.json", "--output_json", root / "select.json")
    sampling = _command("training_data_construction.data_sampling", *words, "--target_size", requests)
    subprocess.run(sampling, check=True, stdout=subprocess.DEVNULL)
    least = requests * delay / IN_FLIGHT
    rows = [("least possible", f"{least:.1f}", "x1.00", "")]
    with serve(root, delay=delay) as url:
        start_up = _timed(root, url, "one", "--limit", 1) - delay
        seconds = _timed(root, url, "all")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest client or worker so far
        answered = _kill(root, url, "killed", within=seconds / 2)
        _timed(root, url, "killed")
    with serve(root, fail_rate=FAIL_RATE) as url:
        failing = _timed(root, url, "failing")
    counts = {}  # (records, different ones)
    for name in ("all", "killed", "failing"):
        keys = [(record["video"], record["exp_id"]) for record in json.loads((root / f"{name}.json").read_text())]
        counts[name] = (len(keys), len(set(keys)))
    rows += [
        ("start-up: one request, less its delay", f"{start_up:.1f}", "", ""),
        ("all, start-up included", f"{seconds:.1f}", f"x{seconds / least:.2f}", _words(counts["all"])),
        ("all, less start-up", f"{seconds - start_up:.1f}", f"x{(seconds - start_up) / least:.2f}", ""),
        (f"killed at {', '.join(map(str, answered))} answers, resumed", "", "", _words(counts["killed"])),
        (f"no delay, {FAIL_RATE:.0%} of the requests fail", f"{failing:.1f}", "", _words(counts["failing"])),
    ]
    title = f"{requests} requests of {delay:g} s, {IN_FLIGHT} in flight, {peak:.0f} MiB"
    table = aligned((title, "seconds", "ratio", "records"), rows)
    return table, all(count == (requests, requests) for count in counts.values())


def _command(module: str, *words: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def _ask(root: Path, url: str, name: str, *words: object) -> list[str]:
    return _command(
        "training_data_construction.seed_cot_generation",
        *("--meta_json", root / "select.json", "--mask_dict", root / "mask_dict.json"),
        *("--data_path", root / "JPEGImages", "--output_json", root / f"{name}.json"),
        *("--base-url", url, "--model", "synthetic-teacher", "--concurrency", IN_FLIGHT),
        *("--max_samples_per_video", 1000, *words),
    )


_KEY = {**os.environ, "OPENAI_API_KEY": "none"}


def _timed(root: Path, url: str, name: str, *words: object) -> float:
    start = time.perf_counter()
    subprocess.run(_ask(root, url, name, *words), check=True, stdout=subprocess.DEVNULL, env=_KEY)
    return time.perf_counter() - start


def _kill(root: Path, url: str, name: str, *, within: float) -> list[int]:
    """Kills the client `KILLS` times at random moments, without a seed; returns the answers so far at each kill."""
    answered, chance = [], Random()
    for _ in range(KILLS):
        client = subprocess.Popen(_ask(root, url, name), stdout=subprocess.DEVNULL, env=_KEY)
        time.sleep(within * chance.uniform(0.2, 1))
        client.send_signal(signal.SIGKILL)
        client.wait()
        journal = root / f"{name}.json.journal.jsonl"
        answered.append(
            max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0
        )  # without the line of settings
    return answered


def _words(count: tuple[int, int]) -> str:
    return f"{count[0]}, {count[1]} different"


if __name__ == "__main__":
    sys.exit(main())
