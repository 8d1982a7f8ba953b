"""Runs benchmarks and writes the output of each into benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from veason import atomic

BENCHMARKS = {
    "bench_metrics": "J and F of a frame against the plain definition, one core (numba: from 4,000 frames a worker)",
    "bench_evaluation": "ReVOS scores of 80,000 frames against a plain evaluator: time, memory, growth from a tenth",
    "bench_vicas": "ViCaS: mAP alone, and with J and F, against the published way to its mAP, one process and several",
    "bench_targets": "Ground truth of a training clip, against decoding every mask of the video",
    "bench_sam2": "SAM2 with eight prompts on one clip, against eight stock sessions",
    "bench_sam2 --memory": "Growth of peak memory of SAM2, 250 and 1,000 frames, each in a fresh process",
    "bench_reward": "Reward of one GRPO step with SAM2 (16 prompts x 8 replies), against one stock session per reply",
    "bench_inference": "Predictions a minute, against one expression at a time: the same tiny policy and SAM2",
    "bench_seed_cot": "Seed-CoT of 2,000 expressions: time against the least possible, killed, refused",
    "bench_memory": "What policy and tracker hold at their real sizes, and what fits into their shares of a GPU",
    "bench_grpo": "One GRPO step against TRL's GRPOTrainer: the same tiny model, prompts, group size and token counts",
}


README = Path(__file__).with_name("README.md")
HEAD = f"""# Benchmarks

Written by `make bench`; read the ratios, the seconds are one machine's. Each block is one run of `python -m
benchmarks.NAME`, both sides of a ratio in the same process, or in turns on the same machine.

{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__} Given names, it runs those alone and keeps the blocks of the others.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    blocks = read_blocks(README)
    for name in names:
        print(f"$ python -m benchmarks.{name}", flush=True)
        printed = _run(name)
        print(printed, flush=True)
        blocks[name] = f"## {BENCHMARKS[name]}\n\n`{name}`\n\n```\n{printed.rstrip()}\n```\n"
        kept = [blocks[known] for known in BENCHMARKS if known in blocks]
        atomic.write_bytes(README, "\n".join([HEAD, *kept]).encode())  # after each: a later one may fail


def read_blocks(path: Path) -> dict[str, str]:
    """Reads the blocks of an earlier run, by the name of their benchmark."""
    text = path.read_text() if path.exists() else ""
    _, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {part.split("`")[1]: f"{part.rstrip()}\n" for part in parts}


def _run(name: str) -> str:
    """Runs a benchmark and returns its output."""
    return subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{name}".split()],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # the stock SAM2 sessions draw a bar each; vLLM's warnings come on the same stream as the tables
        env={**os.environ, "TQDM_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    ).stdout


if __name__ == "__main__":
    main()
