"""What happens inside the workers of a run on Ray: one kind answers, the other tracks. Knows nothing of Ray.

Exceptions travel as values, so that nothing about them has to pickle, with whatever was finished before them.
"""

from __future__ import annotations

import argparse
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from inference import options, output, pipeline
from inference.output import Packed
from inference.pipeline import Asked
from inference.policies.base import Policy
from veason import frames
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.family import Family
from veason.types import Clip, Question, VideoSample


@dataclass(frozen=True)
class Job:
    """The run, as each worker gets it once."""

    args: argparse.Namespace
    dataset: Dataset
    samples: Sequence[VideoSample]


@dataclass(frozen=True)
class Told:
    """A policy's reply to a sample."""

    number: int
    """Of the sample in the job."""
    clip: Clip
    text: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """An exception on its way home."""

    text: str
    notes: tuple[str, ...]
    ours: bool
    """A DataError: its text is meant for people. Otherwise the text is the traceback."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        notes = tuple(getattr(error, "__notes__", ()))
        if isinstance(error, DataError):
            return cls(str(error), notes, ours=True)
        return cls("".join(traceback.format_exception(error)), (), ours=False)

    def exception(self) -> Exception:
        error = DataError(self.text) if self.ours else RuntimeError(f"a worker failed\n\n{self.text.rstrip()}")
        for note in self.notes:
            error.add_note(note)
        return error


@dataclass(frozen=True)
class Replies:
    """What a policy says to a unit, as far as it came."""

    told: list[Told]
    family: Family
    policy: dict[str, Any]
    """What it says of itself, for the run's record."""
    failure: Failure | None


@dataclass(frozen=True)
class Tracks:
    """What a tracker makes of some replies, as far as it came."""

    packed: list[Packed]
    failure: Failure | None


class PolicyWorker:
    """Owns a policy. `answer` may be called again before it is done: the next unit's frames are decoded meanwhile."""

    def build(self, job: Job, gpu_share: float) -> Failure | None:
        try:
            _prepare(gpu_share)
            self._job, self._asking = job, options.asking(job.args)
            self._sampling = options.build_sampling(job.args)
            policy = options.build_policy(job.args, job.dataset)
            policy.family.check_size(self._sampling.size)
            self._policy = _OneAtATime(policy) if self._asking["in_flight"] == 1 else policy
        except Exception as error:
            return Failure.of(error)
        return None

    def answer(self, batches: Sequence[int]) -> Replies:
        """Replies to some of the batches into which the job's samples are cut."""
        size = self._asking["batch_size"]
        cut = [self._job.samples[size * b : size * (b + 1)] for b in batches]
        numbers = [size * b + i for b, batch in zip(batches, cut, strict=True) for i in range(len(batch))]
        asked: list[Asked] = []
        failure = None
        try:
            for replies in pipeline.ask(
                cut,
                policy=self._policy,
                sampling=self._sampling,
                in_flight=min(self._asking["in_flight"], len(cut)),
                seed=self._job.args.seed,
            ):
                asked += replies
        except Exception as error:
            failure = Failure.of(error)
        by_key = {self._job.samples[n].key: n for n in numbers}
        told = [Told(by_key[a.question.sample.key], a.question.clip, a.text, a.seconds) for a in asked]
        return Replies(told, self._policy.family, self._policy.describe(), failure)


class TrackerWorker:
    """Owns a tracker; keeps the features of the last video."""

    def build(self, job: Job, gpu_share: float) -> Failure | None:
        try:
            _prepare(gpu_share)
            self._job = job
            tracker = options.build_tracker(job.args)
            self._finisher = pipeline.Finisher(tracker, frames.VideoFrames, reading=job.args.reading)
        except Exception as error:
            return Failure.of(error)
        return None

    def track(self, told: Sequence[Told], family: Family) -> Tracks:
        packed: list[Packed] = []
        for reply in told:
            question = Question(sample=self._job.samples[reply.number], clip=reply.clip, images=())
            try:
                finished = self._finisher.finish(Asked(question, reply.text, reply.seconds), family)
            except Exception as error:
                return Tracks(packed, Failure.of(error))
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


def _prepare(gpu_share: float) -> None:
    """Keep to one's share: of the cores (a worker each), and of the GPU's memory."""
    cv2.setNumThreads(1)
    if gpu_share > 0:
        import torch

        torch.cuda.set_per_process_memory_fraction(gpu_share)
