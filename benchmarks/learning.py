"""Shows that GRPO learns: a small policy on a small synthetic world, three seeds, the four-term reward with grabcut.

    python -m benchmarks.learning [--output docs] [--steps 60]

The policy is first fine-tuned briefly on replies with the right format and poor answers (any shown frame, a jittered
box), so that it gets some reward and can gain much. Then the real command trains it, once per seed. The picture and a
table of the first and last ten steps are written to the output folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from demo.policy import write_tiny_policy
from demo.writer import build_world
from grpo_reward.task import build
from veason import atomic
from veason.answer import format_reply
from veason.tables import aligned
from veason.types import Answer
from verl import config as configuration
from verl.engines.inputs import PromptInputs, collate, process
from verl.engines.pretrained import load_processor
from verl.protocol import Prompt
from verl.utils.tracking import read_lines

WINDOW = 10
CONFIG = Path(__file__).parents[1] / "training_scripts" / "grpo_tiny.yaml"


def poor_reply(prompt: Prompt, rng: Random) -> str:
    """Writes a well-formed reply: any shown frame that has the target, its boxes moved and resized at random."""
    target = prompt.target
    present = [t for t, found in enumerate(target.boxes) if any(found)]
    t = rng.choice(present)
    side, found = target.size[0], []
    for box in (box for box in target.boxes[t] if box is not None):
        centre = [(box[i] + box[i + 2]) / 2 + rng.uniform(-0.15, 0.15) * side for i in (0, 1)]
        half = [max(3.0, (box[i + 2] - box[i]) / 2 * rng.uniform(0.6, 1.6)) for i in (0, 1)]
        low = [min(max(0.0, centre[i] - half[i]), side - 4.0) for i in (0, 1)]
        high = [max(low[i] + 2, min(side - 1.0, centre[i] + half[i])) for i in (0, 1)]
        found.append(tuple(float(round(value)) for value in (*low, *high)))
    return format_reply("so", Answer(keyframe=target.frame_ids[t], boxes=tuple(found)))


def imitate(world: Path, policy: Path, out: Path, *, steps: int, batch_size: int = 16) -> None:
    """Fine-tunes the tiny policy on poor replies by cross-entropy; writes it to `out` with its processor."""
    rng, processor = Random(0), load_processor(policy)
    data = configuration.load([f"config={CONFIG}", f"data.train_files={world}", "data.sampled_frames=4"]).data
    task = build(data, split="train")
    prompts = [task.get(index, epoch=epoch) for epoch in range(3) for index in range(len(task))]
    inputs = [process(prompt, processor, max_length=data.max_prompt_length) for prompt in prompts]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(policy).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, (steps - step) / (steps / 2))
        rows = rng.sample(range(len(prompts)), batch_size)
        replies = [poor_reply(prompts[row], rng) + processor.tokenizer.eos_token for row in rows]
        loss = cross_entropy(model, [inputs[row] for row in rows], replies, processor)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"imitation step {step}: loss {loss.item():.3f}", flush=True)
    shutil.copytree(policy, out)
    model.save_pretrained(out)


def cross_entropy(model, prompts: Sequence[PromptInputs], replies: Sequence[str], processor) -> Tensor:
    """Returns the mean over the replies' tokens."""
    rows = [processor.tokenizer(reply, return_tensors="pt")["input_ids"][0] for reply in replies]
    responses_BR = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BR = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = collate(prompts, responses_BR, mask_BR, pad_id=processor.tokenizer.pad_token_id)
    logits = model(**inputs, logits_to_keep=responses_BR.shape[1] + 1, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[mask_BR.bool()], responses_BR[mask_BR.bool()])


def train(world: Path, policy: Path, folder: Path, *, seed: int, steps: int) -> list[dict[str, float]]:
    """Runs the real command once; returns its metrics."""
    settings = {
        "config": CONFIG,
        "data.train_files": world,
        "data.seed": seed,
        "data.rollout_batch_size": 8,
        "data.max_response_length": 64,
        "data.sampled_frames": 4,
        "worker.actor.model.model_path": policy,
        "worker.actor.global_batch_size": 8,
        "worker.actor.micro_batch_size_per_device_for_update": 16,
        "worker.actor.micro_batch_size_per_device_for_experience": 32,
        "worker.actor.kl_loss_coef": 1e-3,
        "worker.actor.entropy_coeff": 0,
        "worker.actor.model.freeze_vision_tower": "false",
        "worker.actor.optim.lr": 3e-4,
        "worker.rollout.temperature": 1.0,
        "worker.rollout.n": 8,
        "worker.rollout.batch_size": 64,
        "trainer.max_steps": steps,
        "trainer.total_episodes": 1000,
        "trainer.save_freq": 0,
        "trainer.save_checkpoint_path": folder,
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    subprocess.run([sys.executable, "-m", "verl.trainer.main", *arguments], check=True, stdout=subprocess.DEVNULL)
    return read_lines(folder / "metrics.jsonl")


def summary(runs: dict[int, list[dict[str, float]]]) -> str:
    """Formats the first and last ten steps of each seed, and the gain in standard errors of the difference."""
    rows = []
    for seed, run in runs.items():
        first, last = ([line["reward/total"] for line in part] for part in (run[:WINDOW], run[-WINDOW:]))
        error = sqrt((stdev(first) ** 2 + stdev(last) ** 2) / WINDOW)
        gain = fmean(last) - fmean(first)
        rows.append((str(seed), f"{fmean(first):.3f}", f"{fmean(last):.3f}", f"{gain:+.3f}", f"{gain / error:.1f}"))
    return aligned(("seed", "first 10 steps", "last 10 steps", "gain", "in standard errors"), rows)


def draw(runs: dict[int, list[dict[str, float]]], path: Path) -> None:
    """Plots total and terms against steps, one line per seed."""
    names = ["total", "format", "keyframe", "spatial", "consistency"]
    figure, axes = plt.subplots(1, len(names), figsize=(16, 3.2), constrained_layout=True)
    for axis, name in zip(axes, names, strict=True):
        for seed, run in runs.items():
            values = [line[f"reward/{name}"] for line in run]
            smooth = [fmean(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
            axis.plot(range(1, len(values) + 1), smooth, label=f"seed {seed}", linewidth=1.4)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("reward (mean of 5 steps)")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("docs"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=60, help="GRPO steps per seed (default: %(default)s)")
    parser.add_argument("--imitation-steps", type=int, default=300, help="default: %(default)s")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        world, policy, start = (Path(scratch) / name for name in ("world", "policy", "start"))
        build_world(world, videos=16, seed=3)
        write_tiny_policy(policy, seed=0)
        imitate(world, policy, start, steps=args.imitation_steps)
        runs = {
            seed: train(world, start, Path(scratch) / f"run_{seed}", seed=seed, steps=args.steps) for seed in range(3)
        }
    table = summary(runs)
    print(table)
    draw(runs, args.output / "learning.png")
    text = f"# Learning\n\n{__doc__.strip()}\n\n```\n{table}\n```\n\n![reward by step](learning.png)\n"
    atomic.write_bytes(args.output / "learning.md", text.encode())


if __name__ == "__main__":
    main()
