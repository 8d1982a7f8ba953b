"""What is checked, in which order, and what can come of it. Light: nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SIZES = ("tiny", "mid")
OK, SKIPPED, FAILED = "ok", "skipped", "FAILED"


@dataclass(frozen=True)
class Check:
    """One check. It runs alone in its processes, so that a crash is its own."""

    name: str
    about: str
    run: str
    """``package.module:function``; it is given a `place.Place` and returns numbers by name, or why it was left out."""
    on_all: bool = False
    """A process for every GPU (two on a CPU), otherwise a single one."""
    needs_policy: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of a check at one size."""

    check: str
    size: str
    ranks: int
    state: str
    """`OK`, `SKIPPED` or `FAILED`."""
    why: str = ""
    """One line: why it was left out or failed."""
    seconds: float = 0.0
    """Of the check itself, on the slowest rank; the start of its processes is not counted."""
    peak_gib: float = 0.0
    """Most memory that torch held on the device, on the rank that held most (CPU: of the process)."""
    numbers: dict[str, float] = field(default_factory=dict)
    edges: list[dict[str, Any]] = field(default_factory=list)
    """Memory at the edges of the check, see `place.Place.edge`; of rank 0."""
    trace: str = ""
    """Traceback, or the end of what the process printed."""
    device: str = ""


BUILD = Check(
    "build", "random weights made on the device, saved in shards, read back bit for bit", "verl.gpu_check.checks:build"
)

CHECKS = (
    BUILD,
    Check("step", "FSDP2: two updates of all weights, gradient checkpointing", "verl.gpu_check.checks:step", True),
    Check("packed", "packed replies against plain rows, float32 and bfloat16", "verl.gpu_check.checks:packed"),
    Check(
        "recompute", "gradient checkpointing against none: loss, gradient, memory", "verl.gpu_check.checks:recompute"
    ),
    Check("offload", "parameters and optimiser to the CPU and back", "verl.gpu_check.checks:offload", True),
    Check("lora", "adapter: KL to the policy without it, folded weights", "verl.gpu_check.checks:lora", True),
    Check("rollouts", "hf engine: sync, group sampling, sleep, wake", "verl.gpu_check.rollouts:hf"),
    Check("vllm", "vllm engine: sync, group sampling, sleep, wake", "verl.gpu_check.rollouts:vllm"),
    Check("worker", "a whole GRPO step of the training worker, twice", "verl.gpu_check.rollouts:worker", True),
    Check("checkpoint", "save, load into a new actor, go on alike", "verl.gpu_check.checks:checkpoints", True),
    Check("export", "checkpoint to a folder that transformers loads", "verl.gpu_check.checks:exported"),
    Check("sam2", "tracking under autocast (a plug-in)", "veason.trackers.sam2_check:run", needs_policy=False),
)


def chosen(names: Sequence[str]) -> list[Check]:
    """The checks of these names (all, if none is named) in the order of the plan, after `BUILD` if they need it."""
    wanted = [check for check in CHECKS if not names or check.name in names]
    return wanted if BUILD in wanted or not any(check.needs_policy for check in wanted) else [BUILD, *wanted]
