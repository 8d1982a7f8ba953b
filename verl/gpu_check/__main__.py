"""Run one real step of everything that only a GPU runs, and say what ran, how long it took and what memory it took.

A random Qwen2.5-VL is made on the device (tiny; mid: 1.05 billion parameters, which a card of 24 GiB holds), and taken
through the classes that training uses: FSDP2 over nccl on all GPUs, bfloat16, gradient checkpointing, packed replies,
offloading, hf and vLLM rollouts, checkpoints, export, SAM2. Nothing is downloaded; a part that is not installed is
skipped. Exit status: 0 all well, 1 something failed, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.cuda import device_count

from verl.gpu_check import report
from verl.gpu_check.plan import CHECKS, FAILED, SIZES, Outcome, chosen
from verl.gpu_check.runner import Runner
from verl.utils.device import device_type

NO_GPU = "there is no CUDA device here (torch {}); --device cpu takes the same checks, tiny, over gloo on two ranks"


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.list:
        print("\n".join(f"{check.name:{report.NAME}}  {check.about}" for check in CHECKS))
        return 0
    cpu = arguments.device == "cpu"
    if not cpu and device_type() != "cuda":
        print(f"verl.gpu_check: {NO_GPU.format(torch.__version__)}", file=sys.stderr)
        return 2
    size = arguments.size or ("tiny" if cpu else "both")
    jobs = [(check, each) for each in (SIZES if size == "both" else (size,)) for check in chosen(arguments.only)]
    with tempfile.TemporaryDirectory(prefix="gpu_check_", dir=arguments.work) as work:
        ranks, limits = 2 if cpu else device_count(), {"limit_s": arguments.limit, "total_s": arguments.total}
        with Runner(jobs, cpu=cpu, ranks=ranks, work=Path(work), **limits) as runner:
            outcomes = told(runner, json=arguments.json)
    return 1 if any(each.state == FAILED for each in outcomes) else 0


def told(runner: Runner, *, json: Path | None) -> list[Outcome]:
    """Run, print, and write to `json` as results come; all of them."""
    start, outcomes = time.monotonic(), []
    print(report.HEADER, flush=True)
    for outcome in runner.outcomes():
        outcomes.append(outcome)
        print(report.row(outcome), flush=True)
        if json:
            report.write_json(json, outcomes)
    devices = dict.fromkeys(each.device for each in outcomes if each.device)
    parts = (report.edges(outcomes), report.failures(outcomes), "\n".join(devices))
    print("", *filter(None, parts), report.summary(outcomes, seconds=time.monotonic() - start), sep="\n\n")
    return outcomes


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m verl.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--size", choices=(*SIZES, "both"), help="of the random policy (default: both; on the CPU tiny)")
    made.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", choices=[check.name for check in CHECKS], help="these checks"
    )
    made.add_argument("--list", action="store_true", help="say what the checks are, and do nothing")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all results there, too, after every check")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    made.add_argument("--limit", type=float, default=150, metavar="S", help="seconds for one check (%(default)s)")
    made.add_argument("--total", type=float, default=480, metavar="S", help="seconds for all of them (%(default)s)")
    made.add_argument("--work", type=Path, metavar="DIR", help="where temporary files go; mid needs 8 GB there")
    return made


if __name__ == "__main__":
    sys.exit(main())
