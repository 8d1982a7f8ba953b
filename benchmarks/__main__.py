"""Run every benchmark and write what it prints into benchmarks/README.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from veason import atomic

BENCHMARKS = {
    "bench_metrics": "J and F of a frame against the plain definition, one core (numba: from 4,000 frames a worker)",
    "bench_evaluation": "ReVOS scores of 80,000 frames against a plain evaluator: time, memory, growth from a tenth",
    "bench_targets": "Ground truth of a training clip, against decoding every mask of the video",
    "bench_sam2": "SAM2 with eight prompts on one clip, against eight stock sessions",
    "bench_sam2 --memory": "Growth of peak memory of SAM2, 250 and 1,000 frames, each in a fresh process",
    "bench_reward": "Reward of one GRPO step with SAM2 (16 prompts x 8 replies), against one stock session per reply",
    "bench_inference": "Predictions a minute, against one expression at a time: the same tiny policy and SAM2",
    "bench_memory": "What policy and tracker hold at their real sizes, and what fits into their shares of a GPU",
    "bench_grpo": "One GRPO step against TRL's GRPOTrainer: the same tiny model, prompts, group size and token counts",
}


def main() -> None:
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`; read the ratios, the seconds are one machine's. Each block is one run of"
        " `python -m benchmarks.NAME`, both sides of a ratio in the same process.\n",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.\n",
    ]
    for name, title in BENCHMARKS.items():
        print(f"$ python -m benchmarks.{name}", flush=True)
        printed = subprocess.run(
            [sys.executable, "-m", *f"benchmarks.{name}".split()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            # the stock SAM2 sessions draw a bar each; vLLM's warnings come on the same stream as the tables
            env={**os.environ, "TQDM_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
        ).stdout
        print(printed, flush=True)
        parts.append(f"## {title}\n\n`{name}`\n\n```\n{printed.rstrip()}\n```\n")
    atomic.write_bytes(Path(__file__).with_name("README.md"), "\n".join(parts).encode())


if __name__ == "__main__":
    main()
