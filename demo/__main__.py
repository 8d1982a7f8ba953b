"""Runs the whole recipe in one command: world, training data, SFT, GRPO, masks, scores. No download, no GPU.

    python -m demo [--output demo_out] [--seed 0]

The policy is the base model that comes with the repository (`demo.pretrain`), the teacher is a server that knows the
world. Every stage runs real commands and prints them first; a finished stage is not repeated.
"""

from __future__ import annotations

import sys
import time

from demo.recipe import StageError, parse_recipe
from veason.command import run_command


def main(argv: list[str] | None = None) -> None:
    recipe = parse_recipe(argv, prog="python -m demo", description=__doc__, output="demo_out")
    start = time.perf_counter()
    try:
        page = recipe.run()
    except StageError as error:
        sys.exit(f"the demo stopped: {error}")
    print(f"\n== Done in {(time.perf_counter() - start) / 60:.1f} minutes. Where to look")
    for path, content in (
        (page / "comparison.html", "the three models side by side: scores, curves, masks"),
        (recipe.out / "grpo", "metrics.jsonl, curves, rollouts as text, the exported model"),
        (recipe.out / "seed_cot.json", "the teacher's chains of thought"),
        (recipe.world, "the world, a ReVOS data set"),
    ):
        print(f"  {path!s:<{len(str(recipe.out)) + 30}}{content}")


if __name__ == "__main__":
    sys.exit(run_command(main))
