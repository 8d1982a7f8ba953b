"""The workers of a distributed run: policies answer, trackers track. Nothing here knows Ray.

Exceptions travel as values, so that nothing about them has to pickle, with whatever was finished before them.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from inference import options, output, pipeline
from inference.output import Packed
from inference.pipeline import Asked
from inference.policies import Policy
from veason import frames
from veason.command import set_up_logging
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.family import Family
from veason.types import Clip, Question, VideoSample
from verl.ray import Failure


@dataclass(frozen=True)
class Job:
    """The run, as each worker gets it once."""

    args: argparse.Namespace
    dataset: Dataset
    samples: Sequence[VideoSample]


@dataclass(frozen=True)
class PolicyReply:
    """A policy's reply to a sample."""

    number: int
    """Number of the sample in the job."""
    clip: Clip
    text: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Replies:
    """A policy's replies to a unit, up to its failure if it had one."""

    replies: list[PolicyReply]
    family: Family
    policy: dict[str, Any]
    """The policy's description of itself, for the run's record."""
    failure: Failure | None


@dataclass(frozen=True)
class Tracks:
    """A tracker's predictions for some replies, up to its failure if it had one."""

    packed: list[Packed]
    failure: Failure | None


class PolicyWorker:
    """Owns a policy. `answer` may be called again before it is done: the next unit's frames are decoded meanwhile."""

    def build(self, job: Job, gpu_share: float) -> Failure | None:
        set_up_logging()
        try:
            _keep_to_share(gpu_share)
            self._job, self._asking = job, options.asking(job.args)
            self._sampling = options.build_sampling(job.args)
            policy = options.build_policy(job.args, job.dataset)
            policy.family.check_size(self._sampling.size)
            self._policy = _OneAtATime(policy) if self._asking["in_flight"] == 1 else policy
        except Exception as error:
            return Failure.of(error, user_error=DataError)
        return None

    def answer(self, batches: Sequence[int]) -> Replies:
        """Replies to some of the batches into which the job's samples are cut."""
        size = self._asking["batch_size"]
        cut = [self._job.samples[size * b : size * (b + 1)] for b in batches]
        numbers = [size * b + i for b, batch in zip(batches, cut, strict=True) for i in range(len(batch))]
        asked: list[Asked] = []
        failure = None
        try:
            for answered in pipeline.ask(
                cut,
                policy=self._policy,
                sampling=self._sampling,
                in_flight=min(self._asking["in_flight"], len(cut)),
                seed=self._job.args.seed,
            ):
                asked += answered
        except Exception as error:
            failure = Failure.of(error, user_error=DataError)
        by_key = {self._job.samples[n].key: n for n in numbers}
        replies = [PolicyReply(by_key[a.question.sample.key], a.question.clip, a.text, a.seconds) for a in asked]
        return Replies(replies, self._policy.family, self._policy.describe(), failure)


class TrackerWorker:
    """Owns a tracker; keeps the features of the last video."""

    def build(self, job: Job, gpu_share: float) -> Failure | None:
        set_up_logging()
        try:
            _keep_to_share(gpu_share)
            self._job = job
            tracker = options.build_tracker(job.args)
            self._finisher = pipeline.Finisher(tracker, frames.VideoFrames, reading=job.args.reading)
        except Exception as error:
            return Failure.of(error, user_error=DataError)
        return None

    def track(self, replies: Sequence[PolicyReply], family: Family) -> Tracks:
        packed: list[Packed] = []
        for reply in replies:
            question = Question(sample=self._job.samples[reply.number], clip=reply.clip, images=())
            try:
                finished = self._finisher.finish(Asked(question, reply.text, reply.seconds), family)
            except Exception as error:
                return Tracks(packed, Failure.of(error, user_error=DataError))
            packed.append(output.pack(finished, masks=self._job.args.masks))
        return Tracks(packed, None)


class _OneAtATime:
    """A policy that is called from several threads, for one that must not be."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._turn = policy, threading.Lock()
        self.name, self.family, self.looks = policy.name, policy.family, policy.looks

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return self._policy.choose_clip(sample)

    def describe(self) -> dict[str, Any]:
        return self._policy.describe()

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        with self._turn:
            return self._policy.answer(questions, seed=seed)


def _keep_to_share(gpu_share: float) -> None:
    """Limit this process to its share of the cores (one a worker) and of the GPU's memory."""
    cv2.setNumThreads(1)
    if gpu_share > 0:
        import torch

        torch.cuda.set_per_process_memory_fraction(gpu_share)
