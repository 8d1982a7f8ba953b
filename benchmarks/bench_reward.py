"""Compares the reward of one training step with one stock SAM2 session per reply, as in the released trainer.

Usage: ``python -m benchmarks.bench_reward [--prompts N] [--image-size N]``: 16 prompts of 5 frames x 8 replies, on a
random SAM2 as deep as hiera-large and a quarter as wide and as large in all its parts. Encoding a frame takes 7 times
as long as tracking an object through it; hiera-large itself, random, at 1024 px on one CPU core, took 8 times (23.5 and
3.1 s), and its eight different replies to one prompt 241 s where stock sessions take 1250 (x5.2), the total equal.
There are two groups of replies: all different and well-formed; and as a policy in training gives them, where some
repeat another's answer and some are unusable, which the released trainer skipped too. Times are CPU seconds of one
thread, which a busy machine changes less. The JPEG frames that a stock session needs are written before the clock
starts. It exits with 1 if a reward differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("TQDM_DISABLE", "1")  # stock sessions draw a bar each

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.bench_sam2 import counted, quiet, write_jpegs
from grpo_reward import reward_score, terms
from grpo_reward.options import STRICT
from grpo_reward.reward_score import KeyframeReward
from grpo_reward.target import Target
from veason import box_matching, masks
from veason.answer import format_reply
from veason.tables import aligned
from veason.trackers.sam2 import Sam2Tracker
from veason.trackers.sam2_tiny import tiny_sam2
from veason.types import Answer, Box, Clip
from verl.protocol import Prompt

SIDE, FRAMES, GROUP = 280, 5, 8
REPEATED, UNUSABLE = 3, 1
"""Number of replies in a group of eight, as in training, that repeat another's answer, and that have none."""


TRUNK = {
    "embed_dim": 36,
    "num_heads": 2,
    "stages": [2, 6, 36, 4],
    "global_att_blocks": [23, 33, 43],
    "window_spec": [8, 4, 16, 8],
}
"""hiera-large's trunk with a width of 36 instead of 144; the other widths of the tiny one are a quarter already."""


def quarter_sam2(folder: Path, image_size: int) -> Sam2Tracker:
    """Builds hiera-large, a quarter as wide in every part that a config decides on."""
    model = yaml.safe_load(tiny_sam2(folder, 0, image_size=image_size).config.read_text())["model"]
    model["image_encoder"]["trunk"] |= TRUNK
    model["image_encoder"]["neck"]["backbone_channel_list"] = [288, 144, 72, 36]
    model["memory_attention"]["num_layers"] = 4
    model["memory_attention"]["layer"]["dim_feedforward"] = 512
    model["memory_encoder"]["fuser"]["num_layers"] = 2
    parts = {name: model[name] for name in ("image_encoder", "memory_attention", "memory_encoder")}
    files = tiny_sam2(folder, 0, image_size=image_size, **parts)
    return Sam2Tracker(config=files.config, checkpoint=files.checkpoint, device="cpu")


@dataclass(frozen=True)
class Case:
    """A prompt, the folder of its JPEGs, and the box that is its answer."""

    prompt: Prompt
    folder: Path
    box: Box


def make_case(root: Path, number: int) -> Case:
    """Draws a square that drifts over blotches; frame ids are 0, 10, 20, …"""
    rng = np.random.default_rng(number)
    blotches = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(blotches).resize((SIDE, SIDE)))
    side, x, y = (int(v) for v in rng.integers((60, 10, 10), (110, 90, 140)))
    shown, tracks = [], [[None] * (10 * FRAMES)]
    for position in range(FRAMES):
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + side, x + 15 * position : x + 15 * position + side] = True
        shown.append(np.where(mask[..., None], np.uint8(230), picture))
        tracks[0][10 * position] = masks.encode(mask)
    folder = root / f"{number}"
    folder.mkdir()
    write_jpegs(shown, folder)
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.jpg"))]
    clip = Clip(frame_ids=tuple(range(0, 10 * FRAMES, 10)), size=(SIDE, SIDE))
    target = Target.of_tracks(tracks, clip, size=(SIDE, SIDE))
    return Case(Prompt(f"{number}", [], images, target), folder, (x, y, x + side - 1.0, y + side - 1.0))


def make_replies(case: Case, rng: Random, *, repeated: int, unusable: int) -> list[str]:
    """Writes `GROUP` replies with the true box moved a little, in random order."""
    answers = []
    for i in range(GROUP - repeated - unusable):
        moved = tuple(value + rng.uniform(-12, 12) + i / 10 for value in case.box)
        answers.append(Answer(10 * rng.randrange(FRAMES), (moved,)))
    answers += rng.choices(answers, k=repeated)
    replies = [format_reply(f"thought {i}", answer) for i, answer in enumerate(answers)]
    replies += ["<think>the square, of course</think><answer>top left</answer>"] * unusable
    rng.shuffle(replies)
    return replies


def stock(tracker: Sam2Tracker, case: Case, reply: str) -> float:
    """Returns the total of one reply, with masks from a session of its own."""
    target = case.prompt.target
    reading = reward_score.read(reply, target, STRICT)
    if reading.position is None:
        return reading.format
    true = reward_score.true_boxes(target.boxes[reading.position], zero_boxes=False)
    found = box_matching.match(reading.boxes, true)
    state = tracker.predictor.init_state(str(case.folder))
    for number, (i, _) in enumerate(found.pairs):
        box = np.array(reading.boxes[i], np.float32)
        tracker.predictor.add_new_points_or_box(state, frame_idx=reading.position, obj_id=number, box=box)
    unions = np.zeros((FRAMES, SIDE, SIDE), bool)
    for reverse in (False, True):
        for t, _, logits in tracker.predictor.propagate_in_video(state, reading.position, reverse=reverse):
            unions[t] = (logits[:, 0] > 0.0).any(dim=0).numpy()
    return (
        reading.format
        + terms.keyframe_term(target.areas, reading.position)
        + terms.spatial_term(found.overlaps, predicted=found.predicted, true=found.true)
        + terms.consistency_term(unions, [masks.decode(rle, target.size) for rle in target.masks])
    )


def compare(tracker: Sam2Tracker, cases: Sequence[Case], groups: Sequence[list[str]]) -> tuple[list, list, bool]:
    """Returns (seconds, encoder calls) of stock and ours, and True if the totals are the same.

    The two take turns, prompt by prompt, so that a machine that gets slower does so for both.
    """
    calls, reward = counted(tracker), KeyframeReward(tracker=tracker)
    theirs, ours, equal = [0.0, 0], [0.0, 0], True

    def timed(side: list, score: Callable[[], list[float]]) -> list[float]:
        calls.clear()
        start = time.process_time()
        totals = score()
        side[0] += time.process_time() - start
        side[1] += len(calls)
        return totals

    for case, group in zip(cases, groups, strict=True):
        expected = timed(theirs, lambda c=case, g=group: [stock(tracker, c, reply) for reply in g])
        found = timed(ours, lambda c=case, g=group: [r.total for r in reward.score(c.prompt, g)])
        equal &= np.allclose(expected, found, atol=1e-9)
    return theirs, ours, equal


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_reward", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--image-size", type=int, default=256, help="side that SAM2 works on; default: %(default)s")
    parser.add_argument("--prompts", type=int, default=16, help="default: %(default)s")
    args = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(1)
    kinds = {"all different, well-formed": (0, 0), f"{REPEATED} repeat, {UNUSABLE} unusable": (REPEATED, UNUSABLE)}
    rows, equal = [], True
    with tempfile.TemporaryDirectory() as temporary:
        tracker = quarter_sam2(Path(temporary) / "model", args.image_size)
        cases = [make_case(Path(temporary), number) for number in range(args.prompts)]
        stock(tracker, cases[0], make_replies(cases[0], Random(0), repeated=0, unusable=0)[0])  # warm-up
        for name, (repeated, unusable) in kinds.items():
            groups = [make_replies(c, Random(i), repeated=repeated, unusable=unusable) for i, c in enumerate(cases)]
            theirs, ours, same = compare(tracker, cases, groups)
            equal &= same
            rows.append((f"{name}: CPU seconds", f"{theirs[0]:.2f}", f"{ours[0]:.2f}", f"x{theirs[0] / ours[0]:.1f}"))
            rows.append((f"{name}: encoder calls", *map(str, (theirs[1], ours[1])), f"x{theirs[1] / ours[1]:.1f}"))
    print(aligned((f"{args.prompts} prompts x {GROUP} replies, {args.image_size} px", "stock", "ours", "ratio"), rows))
    print(f"\nrewards {'equal' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
