"""Asks, parses, places and tracks samples, with decoding, policy, tracking and writing running beside each other."""

from __future__ import annotations

import contextlib
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from inference.policies import Policy
from veason import boxes, frames
from veason.answer import place, read_reply
from veason.family import Family
from veason.trackers.base import Tracker
from veason.types import Box, Clip, MaskTrack, Prediction, Question, Size, VideoSample

_T = TypeVar("_T")

FrameOpener = Callable[[VideoSample], Sequence[np.ndarray]]
"""Opens the frames of a sample's video, T x (H, W, 3) uint8 RGB at native size."""


@dataclass(frozen=True)
class Sampling:
    """The number and the size of the frames that a policy is shown."""

    n: int = 8
    size: Size = (560, 560)
    """Model (height, width)."""

    def clip(self, sample: VideoSample) -> Clip:
        return frames.sample_clip(len(sample), policy="linspace", n=self.n, size=self.size)


@dataclass(frozen=True)
class Asked:
    """A question without its images, the policy's reply to it, and the seconds that it took by stage."""

    question: Question
    text: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A prediction and the seconds it took, by stage."""

    prediction: Prediction
    seconds: dict[str, float]


def run(
    samples: Sequence[VideoSample],
    *,
    policy: Policy,
    tracker: Tracker,
    sampling: Sampling,
    batch_size: int = 1,
    in_flight: int = 1,
    seed: int = 0,
    done: Container[str] = frozenset(),
    open_frames: FrameOpener = frames.VideoFrames,
    reading: str = "lenient",
    then: Callable[[Finished], object] | None = None,
) -> Generator[Finished, None, None]:
    """Predicts `samples` in order, leaving out those whose keys are in `done` (finished by an earlier run).

    Batches are cut from the whole list, so an interrupted run asks the policy the very same batches again. One thread
    decodes the next batch while the policy answers this one, another thread tracks the one before, and a third calls
    `then` (encode and write) with each prediction, which comes out after that. reading: how replies are read, one of
    `veason.answer.READINGS`.
    """

    def store(tracked: Future[Finished]) -> Finished:
        finished = tracked.result()
        if then is not None:
            then(finished)
        return finished

    finisher = Finisher(tracker, open_frames, reading=reading)
    failures: list[Exception] = []
    batches = [b for b in cut(samples, batch_size) if any(sample.key not in done for sample in b)]
    asked = ask(batches, policy=policy, sampling=sampling, in_flight=in_flight, seed=seed, open_frames=open_frames)
    tracking, storing = ThreadPoolExecutor(1, "track"), ThreadPoolExecutor(1, "store")
    with _half_the_cores(), tracking, storing, contextlib.closing(asked):
        pending: deque[tuple[Future[Finished], Future[Finished]]] = deque()
        try:
            for items in _until_failure(asked, failures):
                for item in items:
                    if item.question.sample.key not in done:
                        tracked = tracking.submit(finisher.finish, item, policy.family)
                        pending.append((tracked, storing.submit(store, tracked)))
                while len(pending) > 2 * batch_size:
                    yield pending.popleft()[1].result()
            while pending:
                yield pending.popleft()[1].result()
        finally:
            for futures in pending:
                for future in futures:
                    future.cancel()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _half_the_cores() -> Iterator[None]:
    """Halves the number of torch's threads in this block, in which policy and tracker compute at the same time.

    Two pools with a thread for every core would wait for one another in busy loops.
    """
    torch = sys.modules.get("torch")  # loaded by now if policy or tracker use it
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // 2, 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cut(samples: Sequence[VideoSample], batch_size: int) -> list[Sequence[VideoSample]]:
    """Cuts `samples` into the batches that the policy is asked about together."""
    return [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]


def ask(
    batches: Sequence[Sequence[VideoSample]],
    *,
    policy: Policy,
    sampling: Sampling,
    in_flight: int = 1,
    seed: int = 0,
    open_frames: FrameOpener = frames.VideoFrames,
) -> Generator[list[Asked], None, None]:
    """Yields the replies to each batch in order; the next batch is decoded meanwhile.

    in_flight: the number of batches that are asked at once; more than one only of a policy that may be called from
    several threads. Where one of them fails, the replies to the others in flight still come out before the failure is
    raised. Where the caller stops asking, as at an interrupt, the policy's `cancel` (if it has one) ends the others.
    """

    def answer(questions: list[Question], decode_s: float) -> list[Asked]:
        start = time.perf_counter()
        own_seed = zlib.crc32(f"{seed}/{questions[0].sample.key}".encode())  # whatever batches came before
        texts = policy.answer(questions, seed=own_seed)
        policy_s = (time.perf_counter() - start) / len(questions)
        seconds = {"decode": decode_s / len(questions), "policy": policy_s}
        return [Asked(replace(q, images=()), text, seconds) for q, text in zip(questions, texts, strict=True)]

    with ThreadPoolExecutor(1, "decode") as decoding:
        loaded = _ClipLoader(policy, sampling, open_frames, decoding).load_all(batches)
        if in_flight == 1:
            yield from (answer(*load) for load in loaded)
        else:
            yield from _together(answer, loaded, in_flight, cancel=getattr(policy, "cancel", lambda: None))


def _together(
    answer: Callable[[list[Question], float], list[Asked]],
    loaded: Iterator[tuple[list[Question], float]],
    in_flight: int,
    *,
    cancel: Callable[[], None],
) -> Iterator[list[Asked]]:
    """Calls `answer` with everything `loaded`, `in_flight` at once; the results come out in order.

    `cancel` ends the calls whose results are no longer wanted.
    """
    waiting: deque[Future[list[Asked]]] = deque()
    failures: list[Exception] = []
    with ThreadPoolExecutor(in_flight, "ask") as asking:
        try:
            for load in _until_failure(loaded, failures):
                waiting.append(asking.submit(answer, *load))
                if len(waiting) == 2 * in_flight:  # the pictures of so many batches are in memory
                    yield from _until_failure(_results(waiting, 1), failures)
                if failures:
                    break
            while waiting:
                yield from _until_failure(_results(waiting, len(waiting)), failures)
        except BaseException:  # an interrupt, or a caller that wants no more
            asking.shutdown(wait=False, cancel_futures=True)
            cancel()
            raise
    if failures:
        raise failures[0]


def _results(waiting: deque[Future[_T]], count: int) -> Iterator[_T]:
    for _ in range(count):
        yield waiting.popleft().result()


def _until_failure(items: Iterator[_T], failures: list[Exception]) -> Iterator[_T]:
    """Yields `items`; an exception ends them and is kept, so that the items before it can be finished first."""
    try:
        yield from items
    except Exception as error:
        failures.append(error)


def ground(text: str, question: Question, family: Family, *, reading: str = "lenient") -> Prediction:
    """Reads a reply and places it in the video: the prediction before tracking, with an empty track."""
    reply = place(read_reply(text, reading=reading), question.clip)
    sample = question.sample
    keyframe: int | None = None
    found: tuple[Box, ...] = ()
    if reply.answer is not None and reply.usable:
        keyframe = reply.answer.keyframe
        found = boxes.rescale(reply.answer.boxes, family.answer_size(question.clip.size), sample.size)
    return Prediction(
        sample=sample,
        clip=question.clip,
        family=family.name,
        reply=reply,
        keyframe=keyframe,
        boxes=found,
        track=MaskTrack.empty(sample.size, len(sample)),
    )


class _ClipLoader:
    """Makes questions of samples: chooses each clip and decodes its frames once for all expressions of a video."""

    def __init__(self, policy: Policy, sampling: Sampling, open_frames: FrameOpener, pool: ThreadPoolExecutor) -> None:
        self._policy, self._sampling, self._open, self._pool = policy, sampling, open_frames, pool
        self._shown: dict[tuple[str, int, Size], np.ndarray] = {}

    def load_all(self, batches: Sequence[Sequence[VideoSample]]) -> Iterator[tuple[list[Question], float]]:
        """Calls `load` with every batch in order; the next one is always under way in the pool."""
        waiting = deque(self._pool.submit(self.load, batch) for batch in batches[:1])
        for i in range(len(batches)):
            if i + 1 < len(batches):
                waiting.append(self._pool.submit(self.load, batches[i + 1]))
            yield waiting.popleft().result()

    def load(self, batch: Sequence[VideoSample]) -> tuple[list[Question], float]:
        """Makes (the questions of a batch, seconds)."""
        start = time.perf_counter()
        kept: dict[tuple[str, int, Size], np.ndarray] = {}
        questions = []
        for sample in batch:
            clip = self._policy.choose_clip(sample) or self._sampling.clip(sample)
            keys = [(sample.video, t, clip.size) for t in clip.frame_ids] if self._policy.looks else []
            for key in keys:
                if key not in kept:
                    shown = self._shown.get(key)
                    kept[key] = frames.resize(self._open(sample)[key[1]], clip.size) if shown is None else shown
            questions.append(Question(sample=sample, clip=clip, images=tuple(kept[key] for key in keys)))
        self._shown = kept
        return questions, time.perf_counter() - start


class Finisher:
    """Finishes predictions; the frames of a video are encoded once for all its expressions."""

    def __init__(
        self, tracker: Tracker, open_frames: FrameOpener = frames.VideoFrames, *, reading: str = "lenient"
    ) -> None:
        self._tracker, self._open, self._reading = tracker, open_frames, reading
        self._video: str | None = None
        self._encoded: Any = None

    def finish(self, asked: Asked, family: Family) -> Finished:
        """Reads the reply, places it and tracks it. An exception gets a note that names the sample."""
        try:
            prediction = ground(asked.text, asked.question, family, reading=self._reading)
            if prediction.keyframe is None:
                return Finished(prediction, {**asked.seconds, "encode": 0.0, "track": 0.0})
            start = time.perf_counter()
            if self._video != prediction.sample.video:
                self._video, self._encoded = None, None  # frees the last video before the next one is encoded
                self._encoded = self._tracker.encode(self._open(prediction.sample))
                self._video = prediction.sample.video
            encode_s = time.perf_counter() - start
            track = self._tracker.track(self._encoded, keyframe=prediction.keyframe, boxes=prediction.boxes)
            track_s = time.perf_counter() - start - encode_s
        except Exception as error:
            error.add_note(f"while predicting {asked.question.sample.key}")
            raise
        return Finished(replace(prediction, track=track), {**asked.seconds, "encode": encode_s, "track": track_s})
