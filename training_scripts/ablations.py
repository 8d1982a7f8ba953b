"""The paper's ablations on the synthetic world: what each reward term, the SFT and the chain of thought are worth.

    python training_scripts/ablations.py [--output ablations_out] [--seed 0]

Each row is a road of its own from the same world and the same chains of thought; about half an hour on two cores. The
table stands beside the paper's in docs/ablations.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file: on the path stands its folder, wanted is the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training_scripts.demo import build_parser
from training_scripts.road import BASE_POLICY, Road, StageError


@dataclass(frozen=True)
class Ablation:
    """One row of the table."""

    name: str
    title: str
    settings: tuple[str, ...] = ()
    """Of GRPO, beyond the demo's."""
    start: str = "sft"
    """What GRPO starts from: sft, sft_no_cot or base."""
    rewarded: bool = True
    """Whether GRPO follows at all."""


ABLATIONS = (
    Ablation("full", "full"),
    Ablation("no_spatial", "without spatial reward", ("worker.reward.weights.spatial=0",)),
    Ablation("no_keyframe", "without keyframe reward", ("worker.reward.weights.keyframe=0",)),
    Ablation("no_consistency", "without consistency reward", ("worker.reward.weights.consistency=0",)),
    Ablation("no_format", "without format reward", ("worker.reward.weights.format=0",)),
    Ablation("no_sft", "GRPO without SFT", start="base"),
    Ablation("no_cot", "SFT without CoT, then GRPO", start="sft_no_cot"),
    Ablation("sft", "SFT only", rewarded=False),
    Ablation("sft_no_cot", "SFT without CoT only", start="sft_no_cot", rewarded=False),
    Ablation("base", "base", start="base", rewarded=False),
)


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(output=Path("ablations_out"))
    args = parser.parse_args(argv)
    road = Road(args.output, seed=args.seed, videos=args.videos, records=args.records, steps=args.steps)
    try:
        road.make_world()
        road.sample()
        road.think()
        runs = {ablation.title: walk(road, ablation) for ablation in ABLATIONS}
        road.compare(runs)
    except StageError as error:
        sys.exit(f"the ablations stopped: {error}")


def walk(road: Road, ablation: Ablation) -> Path:
    """The predictions of one row."""
    if ablation.start == "base":
        model = BASE_POLICY
    else:
        model = road.fine_tune(ablation.start, thinking=ablation.start == "sft")
    if ablation.rewarded:
        model = road.reinforce(f"grpo_{ablation.name}", model, *ablation.settings)
    return road.predict(ablation.name, model)


if __name__ == "__main__":
    main()
