"""The whole road in one command: a synthetic world, training data, SFT, GRPO, masks, scores. No download, no GPU.

    python -m demo [--output demo_out] [--seed 0]

The policy is the base model that comes with the repository (`demo.pretrain`), the teacher is a server that knows the
world. Every stage runs real commands and prints them first; a finished stage is not done again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from demo.road import BASE_POLICY, Road, StageError


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    road = Road(args.output, seed=args.seed, videos=args.videos, records=args.records, steps=args.steps)
    start = time.perf_counter()
    try:
        page = run_road(road)
    except StageError as error:
        sys.exit(f"the demo stopped: {error}")
    print(f"\n== Done in {(time.perf_counter() - start) / 60:.1f} minutes. Where to look")
    for path, what in (
        (page / "comparison.html", "the three models side by side: scores, curves, masks"),
        (road.out / "grpo", "metrics.jsonl, curves, rollouts as text, the exported model"),
        (road.out / "seed_cot.json", "what the teacher said"),
        (road.world, "the world, a ReVOS data set"),
    ):
        print(f"  {path!s:<{len(str(road.out)) + 30}}{what}")


def run_road(road: Road) -> Path:
    """Run every stage in order; give the folder of the page that compares the models."""
    road.make_world()
    road.sample()
    road.generate_cot()
    sft = road.fine_tune()
    grpo = road.train_grpo("grpo", sft)
    models = {"base": BASE_POLICY, "SFT": sft, "GRPO": grpo}
    runs = {name: road.predict(name.lower(), model) for name, model in models.items()}
    return road.compare(runs, road.out / "grpo" / "curves.png")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_out"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn by chance (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=Road.videos, help="in the world (default: %(default)s)")
    parser.add_argument("--records", type=int, default=Road.records, help="for SFT (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Road.steps, help="of GRPO (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
