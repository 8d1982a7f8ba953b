"""The paper's ablations on the synthetic world: how much each reward term, SFT and the chain of thought contribute.

    python -m demo.ablations [--output ablations_out] [--seed 0]

Each row is a road of its own from the same world and the same chains of thought; about an hour on two cores. The
table, the paper's differences beside ours, is printed and kept in OUTPUT/ablations.txt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.road import BASE_POLICY, Road, StageError, parse_road
from veason import atomic
from veason.tables import aligned


@dataclass(frozen=True)
class Ablation:
    """One row of the table."""

    name: str
    """Of its folder and stages; those it shares with the demo are done once where both go to the same OUTPUT."""
    title: str
    settings: tuple[str, ...] = ()
    """Of GRPO, beyond the demo's."""
    start: str = "sft"
    """What GRPO starts from: sft, sft_no_cot or base."""
    rewarded: bool = True
    """Whether GRPO follows at all."""
    paper: tuple[float, float] | None = None
    """J&F, referring and reasoning, less those of the full system: Veason-R1-3B on ReVOS, arXiv 2508.11538."""


ABLATIONS = (
    Ablation("grpo", "full", paper=(0.0, 0.0)),
    Ablation("grpo_no_spatial", "without spatial reward", ("worker.reward.weights.spatial=0",), paper=(-2.0, -2.9)),
    Ablation("grpo_no_keyframe", "without keyframe reward", ("worker.reward.weights.keyframe=0",), paper=(-1.4, -1.9)),
    Ablation(
        "grpo_no_consistency",
        "without consistency reward",
        ("worker.reward.weights.consistency=0",),
        paper=(-0.6, -0.7),
    ),
    Ablation("grpo_no_format", "without format reward", ("worker.reward.weights.format=0",)),
    Ablation("grpo_no_sft", "GRPO without SFT", start="base", paper=(-3.0, -2.6)),
    Ablation("grpo_no_cot", "SFT without CoT, then GRPO", start="sft_no_cot", paper=(-12.8, -8.5)),
    Ablation("sft", "SFT only", rewarded=False, paper=(-11.9, -15.2)),
    Ablation("sft_no_cot", "SFT without CoT only", start="sft_no_cot", rewarded=False),
    Ablation("base", "base", start="base", rewarded=False, paper=(-42.1, -37.3)),
)


def main(argv: list[str] | None = None) -> None:
    road = parse_road(argv, prog="python -m demo.ablations", description=__doc__, output="ablations_out")
    try:
        road.make_world()
        road.sample()
        road.generate_cot()
        runs = {ablation.title: run_ablation(road, ablation) for ablation in ABLATIONS}
        page = road.compare(runs)
    except StageError as error:
        sys.exit(f"the ablations stopped: {error}")
    text = table(json.loads((page / "comparison.json").read_text())["runs"])
    kept = road.out / "ablations.txt"
    atomic.write_bytes(kept, text.encode())
    print(f"\n{text}\nkept in {kept}; with pictures: {page / 'comparison.html'}")


HEADER = ("", "J&F", "referring", "reasoning", "usable", "keyframe ratio", "box IoU", "paper: referring, reasoning")


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row for each of `ABLATIONS`: `runs` as in comparison.json. Referring and reasoning are differences to the first
    row, the paper's beside them."""
    rows = []
    for ablation, run in zip(ABLATIONS, runs, strict=True):
        apart = [f"{run['differences'][name]:+.1f}" for name in ("jf_referring", "jf_reasoning")]
        plain = [f"{run[name]:.1f}" for name in ("usable", "keyframe_ratio", "box_iou")]
        paper = "{:+.1f}, {:+.1f}".format(*ablation.paper) if ablation.paper else "not reported"
        rows.append((ablation.title, f"{run['jf']:.1f}", *apart, *plain, paper))
    return aligned(HEADER, rows) + "\n"


def run_ablation(road: Road, ablation: Ablation) -> Path:
    """Run the stages of one row; give its run folder."""
    if ablation.start == "base":
        model = BASE_POLICY
    else:
        model = road.fine_tune(ablation.start, thinking=ablation.start == "sft")
    if ablation.rewarded:
        model = road.train_grpo(ablation.name, model, *ablation.settings)
    return road.predict(ablation.name, model)


if __name__ == "__main__":
    main()
