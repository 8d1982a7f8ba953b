"""The whole road in one command: a synthetic world, training data, SFT, GRPO, masks, scores. No download, no GPU.

    python -m demo [--output demo_out] [--seed 0]

The policy is the base model that comes with the repository (`demo.pretrain`), the teacher is a server that knows the
world. Every stage runs real commands and prints them first; a finished stage is not done again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from demo.road import BASE_POLICY, Road, StageError, parse_road


def main(argv: list[str] | None = None) -> None:
    road = parse_road(argv, prog="python -m demo", description=__doc__, output="demo_out")
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


if __name__ == "__main__":
    main()
