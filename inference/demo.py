"""The road in miniature: a synthetic world, three runs over it, scores, reports, a little GRPO. No download, no GPU.

Every step is a real command, printed before it runs, so that it can be run alone or on real data.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from veason.atomic import read_journal

WORLD_SEED = 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m inference.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_out"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--videos", type=int, default=16, metavar="N", help="videos in the world (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    out, world = args.output, args.output / "world"
    start = time.perf_counter()
    _make_world(world, args.videos)
    sam2 = _make_sam2(out / "sam2")
    hf = [
        "--policy",
        "hf",
        "--model",
        world / "tiny_policy",
        "--model-size",
        84,
        "--max-new-tokens",
        64,
        "--batch-size",
        8,
    ]
    _predict_and_score(
        "Ground-truth boxes tracked by GrabCut and optical flow",
        world,
        out / "oracle-grabcut",
        ["--policy", "oracle", "--tracker", "grabcut"],
    )
    _predict_and_score(
        "Ground-truth boxes tracked by a tiny SAM2 with random weights",
        world,
        out / "oracle-sam2",
        ["--policy", "oracle", *sam2],
    )
    _predict_and_score("A tiny Qwen2.5-VL with random weights, the same SAM2", world, out / "hf-sam2", [*hf, *sam2])
    _train(world, out / "grpo")
    _say_where_to_look(out, time.perf_counter() - start)


def _train(world: Path, run: Path) -> None:
    """Three steps of the real trainer, its curves, and the trained model as a checkpoint that transformers loads."""
    _title("GRPO on the tiny Qwen2.5-VL: Ray, FSDP2 on two CPU ranks, the four-term reward with GrabCut")
    paths = [f"data.train_files={world}", f"worker.actor.model.model_path={world / 'tiny_policy'}"]
    config = Path(__file__).parents[1] / "training_scripts" / "grpo_tiny.yaml"
    _run("verl.trainer.main", f"config={config}", *paths, f"trainer.save_checkpoint_path={run}")
    _run("verl.plot", run)
    _run("verl.export", run / "step_000003", run / "exported")


def _make_world(world: Path, videos: int) -> None:
    if (world / "world.json").exists():
        _title(f"A world of moving shapes: already in {world}")
        return
    _title("A world of moving shapes, as a ReVOS data set, and a tiny random Qwen2.5-VL")
    _run("veason.synthetic", "--out", world, "--videos", videos, "--seed", WORLD_SEED)


def _make_sam2(folder: Path) -> list[object]:
    """Options of a tiny SAM2 with random weights, written on the first call."""
    _title("A tiny SAM2 with random weights: the real code, meaningless masks")
    _run("veason.trackers.sam2_tiny", folder, "--seed", WORLD_SEED)
    return [
        "--tracker",
        "sam2",
        "--sam2-config",
        folder / "sam2_tiny.yaml",
        "--sam2-checkpoint",
        folder / "sam2_tiny.pt",
    ]


def _predict_and_score(title: str, world: Path, run: Path, choices: list[object]) -> None:
    _title(title)
    _run("inference.predict", "--dataset", "revos", "--data-root", world, "--split", "valid", *choices, "--output", run)
    _run("eval.revos", "--gt", world, "--pred", run, "--out", run / "scores")
    _run("inference.report", run, "--gt", world)


def _say_where_to_look(out: Path, seconds: float) -> None:
    _title(f"Done in {seconds / 60:.1f} minutes. Where to look")
    for run in ("oracle-grabcut", "oracle-sam2", "hf-sam2"):
        usable = [bool(record["boxes"]) for record in read_journal(out / run / "predictions.jsonl")]
        where = str(out / run / "report.html")
        print(f"  {where:<{len(str(out)) + 30}}{sum(usable):>3} of {len(usable)} expressions answered with boxes")
    print(f"  {out / 'grpo'!s:<{len(str(out)) + 30}}metrics.jsonl, its curves, rollouts as text, the exported model")
    print("The random models show that the code runs, and score accordingly; GrabCut with true boxes is the baseline.")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _run(module: str, *arguments: object) -> None:
    """Run `python -m module arguments` after printing it; its failure ends the demo."""
    words = ["-m", module, *map(str, arguments)]
    print(f"$ python {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        sys.exit(f"the demo stopped: python {shlex.join(words)} failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()
