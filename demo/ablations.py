"""Repeats the paper's ablations on the synthetic world: the effect of each reward term, of SFT, of chains of thought.

    python -m demo.ablations [--output ablations_out] [--seed 0]

Each row is a training of its own from the same world and the same chains of thought, in about an hour on two cores. The
table, with the paper's differences beside ours, is printed and written to OUTPUT/ablations.txt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.recipe import BASE_POLICY, Recipe, StageError, parse_recipe
from veason import atomic
from veason.command import run_command
from veason.tables import aligned


@dataclass(frozen=True)
class Ablation:
    """One row of the table."""

    name: str
    """Name of its folder and stages; stages of the same name are run once per OUTPUT, those of the demo included."""
    title: str
    settings: tuple[str, ...] = ()
    """Settings of GRPO beyond the demo's."""
    start: str = "sft"
    """The model that GRPO starts from: sft, sft_no_cot or base."""
    grpo: bool = True
    """False: the model is scored without GRPO."""
    paper: tuple[float, float] | None = None
    """Differences of J&F to the full system, referring and reasoning: Veason-R1-3B on ReVOS, arXiv 2508.11538."""


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
    Ablation("sft", "SFT only", grpo=False, paper=(-11.9, -15.2)),
    Ablation("sft_no_cot", "SFT without CoT only", start="sft_no_cot", grpo=False),
    Ablation("base", "base", start="base", grpo=False, paper=(-42.1, -37.3)),
)


def main(argv: list[str] | None = None) -> None:
    recipe = parse_recipe(argv, prog="python -m demo.ablations", description=__doc__, output="ablations_out")
    try:
        recipe.make_world()
        recipe.sample()
        recipe.generate_cot()
        runs = {ablation.title: run_ablation(recipe, ablation) for ablation in ABLATIONS}
        page = recipe.compare(runs)
    except StageError as error:
        sys.exit(f"the ablations stopped: {error}")
    text = table(json.loads((page / "comparison.json").read_text())["runs"])
    path = recipe.out / "ablations.txt"
    atomic.write_bytes(path, text.encode())
    print(f"\n{text}\nwritten to {path}; with pictures: {page / 'comparison.html'}")


HEADER = ("", "J&F", "referring", "reasoning", "usable", "keyframe ratio", "box IoU", "paper: referring, reasoning")


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Formats one row for each of `ABLATIONS`; `runs` come from comparison.json in that order.

    Referring and reasoning are differences to the first row, with the paper's beside them.
    """
    rows = []
    for ablation, run in zip(ABLATIONS, runs, strict=True):
        differences = [f"{run['differences'][name]:+.1f}" for name in ("jf_referring", "jf_reasoning")]
        absolute = [f"{run[name]:.1f}" for name in ("usable", "keyframe_ratio", "box_iou")]
        paper = "{:+.1f}, {:+.1f}".format(*ablation.paper) if ablation.paper else "not reported"
        rows.append((ablation.title, f"{run['jf']:.1f}", *differences, *absolute, paper))
    return aligned(HEADER, rows) + "\n"


def run_ablation(recipe: Recipe, ablation: Ablation) -> Path:
    """Runs the stages of one row and returns its run folder."""
    if ablation.start == "base":
        model = BASE_POLICY
    else:
        model = recipe.fine_tune(ablation.start, thinking=ablation.start == "sft")
    if ablation.grpo:
        model = recipe.train_grpo(ablation.name, model, *ablation.settings)
    return recipe.predict(ablation.name, model)


if __name__ == "__main__":
    sys.exit(run_command(main))
