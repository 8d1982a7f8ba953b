"""Measures predictions per minute on a CPU: batched policies and shared features, against one sample at a time.

Usage: ``python -m benchmarks.bench_inference [--videos N] [--policies hf,vllm]``. The plain loop stands for a script
without a pipeline: for each expression it decodes the frames, calls `generate` with batch 1, then runs a stock SAM2
session. Model, tracker, prompts, pictures and the longest reply are the same; before its clock starts, each side has
loaded its models and, but for workers, answered a few expressions. It exits with 1 if a reply differs from the plain
loop's.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_sam2 import quiet
from demo.writer import build_world
from inference import distributed, pipeline, predict
from inference.policies import Policy
from inference.policies.engine import EnginePolicy
from inference.workers import Job
from veason import frames, masks
from veason.datasets import open_dataset
from veason.tables import aligned
from veason.trackers.sam2 import Sam2Tracker
from veason.trackers.sam2_tiny import TinySam2, tiny_sam2
from veason.types import Prediction, Question, VideoSample
from verl.engines.generation import banned_ids, pad_id
from verl.engines.inputs import collate

MODEL = Path(__file__).parents[1] / "demo" / "base_policy"
SHOWN = pipeline.Sampling(n=6, size=(84, 84))
LONGEST = 120
"""Most tokens of a reply."""
BATCH = 32
WORKERS, WORKERS_BATCH = 2, 16
"""Number of pairs of policy and tracker on Ray, one core each, and their batch size."""


def plain(samples: Sequence[VideoSample], policy: EnginePolicy, tracker: Sam2Tracker) -> list[Prediction]:
    """Predicts one sample after the other and keeps nothing from one to the next."""
    predictions = []
    for sample in samples:
        clip, video = SHOWN.clip(sample), frames.VideoFrames(sample)
        shown = tuple(frames.resize(video[t], clip.size) for t in clip.frame_ids)
        question = Question(sample=sample, clip=clip, images=shown)
        none = torch.zeros(1, 0, dtype=torch.long)
        inputs = collate(policy.prompts([question]), none, none, pad_id=pad_id(policy.processor))
        model = policy.engine.model
        banned = banned_ids(model.config)
        tokens = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, suppress_tokens=banned)
        reply = policy.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        prediction = pipeline.ground(reply, question, policy.family)
        predictions.append(prediction)
        if prediction.keyframe is None:
            continue
        # one stock session with all boxes, and the RLE of every object in every frame
        state, keyframe = tracker.predictor.init_state(str(sample.frame_dir)), prediction.keyframe
        for number, box in enumerate(prediction.boxes):
            tracker.predictor.add_new_points_or_box(state, keyframe, obj_id=number, box=np.array(box, np.float32))
        steps = [tracker.predictor.propagate_in_video(state, keyframe, reverse=reverse) for reverse in (False, True)]
        _ = [masks.encode((one[0] > 0.0).numpy()) for _, _, logits in chain(*steps) for one in logits]
    return predictions


def in_process(samples: Sequence[VideoSample], policy: Policy, tracker: Sam2Tracker) -> list[str]:
    """Returns the replies of `inference.predict` without workers."""
    done = pipeline.run(samples, policy=policy, tracker=tracker, sampling=SHOWN, batch_size=BATCH)
    return [finished.prediction.reply.text for finished in done]


def on_workers(name: str, root: Path, sam2: TinySam2) -> tuple[list[str], float]:
    """Returns the replies of `inference.predict --workers`, in the order of the samples, and their seconds."""
    args = predict.build_parser().parse_args(
        [
            *("--data-root", str(root), "--output", str(root / name), "--masks", "rle", "--device", "cpu"),
            *("--policy", name, "--model", str(MODEL), "--frames", str(SHOWN.n), "--model-size", str(SHOWN.size[0])),
            *("--max-new-tokens", str(LONGEST), "--batch-size", str(WORKERS_BATCH)),
            *("--tracker", "sam2", "--sam2-config", str(sam2.config), "--sam2-checkpoint", str(sam2.checkpoint)),
            *("--workers", str(WORKERS)),
        ]
    )
    dataset = open_dataset("revos", root, split="valid")
    samples = list(dataset)
    units = distributed.plan(samples, done=(), batch_size=WORKERS_BATCH, workers=WORKERS)
    with distributed.reserved(WORKERS, gpu=False, address=None) as rooms:
        run = distributed.DistributedRun(Job(args, dataset, samples), rooms, units)
        run.wait_until_built()
        start = time.perf_counter()
        replies = {packed.key: packed.prediction["reply"] for packed in run.predictions()}
        seconds = time.perf_counter() - start
        run.close()
    return [replies[sample.key] for sample in samples], seconds


def measure(videos: int, names: Sequence[str]) -> tuple[str, bool]:
    """Returns the table, and True if all replies are the plain loop's."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "world"
        build_world(root, videos=videos, seed=11, policy=False)
        sam2 = tiny_sam2(Path(temporary) / "sam2", 0, image_size=128)
        tracker = Sam2Tracker(config=sam2.config, checkpoint=sam2.checkpoint, device="cpu")
        samples = list(open_dataset("revos", root, split="valid"))
        hf = EnginePolicy("hf", MODEL, device="cpu", max_new_tokens=LONGEST, batch_size=BATCH)

        def timed(run: Callable[[Sequence[VideoSample]], list[Any]]) -> tuple[list[Any], float]:
            run(samples[:2])
            start = time.perf_counter()
            return run(samples), time.perf_counter() - start

        alone, slow = timed(lambda some: plain(some, hf, tracker))
        expected = [prediction.reply.text for prediction in alone]
        rows, equal = [("one at a time: generate, stock SAM2", f"{60 * len(samples) / slow:.0f}", "")], True
        for name in names:
            found, seconds = on_workers(name, root, sam2)  # before vLLM is in this process: workers get its environment
            workers = (f"ours, {name}, --workers {WORKERS}, {WORKERS_BATCH} together", found, seconds)
            policy = hf
            if name == "vllm":
                policy = EnginePolicy("vllm", MODEL, device="cpu", max_new_tokens=LONGEST, max_model_len=2048)
            found, seconds = timed(lambda some, policy=policy: in_process(some, policy, tracker))
            for label, replies, clock in ((f"ours, {name}, {BATCH} together", found, seconds), workers):
                equal &= replies == expected
                rows.append((label, f"{60 * len(samples) / clock:.0f}", f"x{slow / clock:.1f}"))
        answers = np.mean([prediction.keyframe is not None for prediction in alone])
    title = f"{len(samples)} expressions, {answers:.0%} with an answer"
    return aligned((title, "predictions a minute", "ratio"), rows), equal


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_inference", description=__doc__)
    parser.add_argument(
        "--videos", type=int, default=64, help="videos of the synthetic world; a quarter is used (default: 64)"
    )
    installed = "hf,vllm" if importlib.util.find_spec("vllm") else "hf"
    parser.add_argument("--policies", default=installed, help="default: %(default)s")
    args = parser.parse_args(argv)
    quiet()
    with torch.inference_mode():
        table, equal = measure(args.videos, args.policies.split(","))
    print(table)
    if not equal:
        print("replies differ", file=sys.stderr)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
