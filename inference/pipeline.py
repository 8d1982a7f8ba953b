"""Ask, parse, place, track: an inference sample's way, with decoding, policy and tracking running beside each other."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from inference.policies import Policy
from veason import boxes, frames
from veason.answer import place, read_reply
from veason.family import Family
from veason.trackers.base import Tracker
from veason.types import Clip, MaskTrack, Prediction, Question, Size, VideoSample

_T = TypeVar("_T")

FrameOpener = Callable[[VideoSample], Sequence[np.ndarray]]
"""Opens the frames of a sample's video, T x (H, W, 3) uint8 RGB at native size."""


@dataclass(frozen=True)
class Sampling:
    """Which frames a policy is shown, and how large."""

    n: int = 8
    size: Size = (560, 560)
    """Model (height, width)."""

    def clip(self, sample: VideoSample) -> Clip:
        return frames.sample_clip(len(sample), policy="linspace", n=self.n, size=self.size)


@dataclass(frozen=True)
class Asked:
    """A question, its images gone, with the policy's reply to it and the seconds that took, by stage."""

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
    then: Callable[[Finished], _T] | None = None,
) -> Iterator[_T | Finished]:
    """Predict `samples` in order, leaving out those whose keys are in `done` (finished by an earlier run).

    Batches are cut from the whole list, so an interrupted run asks the policy the very same batches again. One thread
    decodes the next batch while the policy answers this one, another thread tracks the one before, and a third does
    `then` (encode and write) to what is tracked; its results are what comes out, the predictions themselves without it.
    `reading`: of replies (`veason.answer.READINGS`).
    """
    finisher, failures = Finisher(tracker, open_frames, reading=reading), []
    batches = [b for b in cut(samples, batch_size) if any(sample.key not in done for sample in b)]
    asked = ask(batches, policy=policy, sampling=sampling, in_flight=in_flight, seed=seed, open_frames=open_frames)
    tracking, storing = ThreadPoolExecutor(1, "track"), ThreadPoolExecutor(1, "store")
    with _half_the_cores(), tracking, storing, contextlib.closing(asked):
        pending: deque[tuple[Future[Finished], Future[_T | Finished]]] = deque()
        try:
            for items in _until_failure(asked, failures):
                for item in items:
                    if item.question.sample.key not in done:
                        tracked = tracking.submit(finisher.finish, item, policy.family)
                        pending.append((tracked, storing.submit(_after, tracked, then)))
                while len(pending) > 2 * batch_size:
                    yield pending.popleft()[1].result()
            while pending:
                yield pending.popleft()[1].result()
        finally:
            for future in itertools.chain.from_iterable(pending):
                future.cancel()
    if failures:
        raise failures[0]


def _after(tracked: Future[Finished], then: Callable[[Finished], _T] | None) -> _T | Finished:
    return tracked.result() if then is None else then(tracked.result())


@contextlib.contextmanager
def _half_the_cores() -> Iterator[None]:
    """Policy and tracker compute beside each other; two teams of torch's threads, each as large as the machine, would
    wait for one another in busy loops. Who has not loaded torch by now will not need it."""
    torch = sys.modules.get("torch")
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
    """The batches in which `samples` are asked about."""
    return [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]


def ask(
    batches: Sequence[Sequence[VideoSample]],
    *,
    policy: Policy,
    sampling: Sampling,
    in_flight: int = 1,
    seed: int = 0,
    open_frames: FrameOpener = frames.VideoFrames,
) -> Iterator[list[Asked]]:
    """The replies to each batch in order, the next batch being decoded meanwhile.

    `in_flight`: batches that are asked at once; more than one only of a policy that may be called from several threads.
    Where one of them fails, what the others in flight bring still comes out before the failure is raised. Where the
    caller stops asking, as at an interrupt, the policy's `cancel` ends those in flight, if it has one.
    """

    def answer(questions: list[Question], decode_s: float) -> list[Asked]:
        start = time.perf_counter()
        texts = policy.answer(questions, seed=_batch_seed(seed, questions[0].sample))
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
    """`answer` to everything `loaded`, in order, `in_flight` at once. `cancel` ends those that nobody waits for."""
    waiting: deque[Future[list[Asked]]] = deque()
    failures: list[Exception] = []
    with ThreadPoolExecutor(in_flight, "ask") as asking:
        try:
            for load in _until_failure(loaded, failures):
                waiting.append(asking.submit(answer, *load))
                if len(waiting) == 2 * in_flight:  # the pictures of so many are held
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
    """`items`; a failure to make the next one ends them and is kept, so that those before it can be finished first."""
    try:
        yield from items
    except Exception as error:
        failures.append(error)


def ground(text: str, question: Question, family: Family, *, reading: str = "lenient") -> Prediction:
    """Read a reply and place it in the video: the prediction before tracking, its track still empty."""
    reply = place(read_reply(text, reading=reading), question.clip)
    sample = question.sample
    keyframe, found = None, ()
    if reply.usable:
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


def _batch_seed(seed: int, first: VideoSample) -> int:
    """A seed that depends on the batch, not on how many batches came before it."""
    return zlib.crc32(f"{seed}/{first.key}".encode())


class _ClipLoader:
    """Makes questions of samples: chooses each clip and decodes its frames once for all expressions of a video."""

    def __init__(self, policy: Policy, sampling: Sampling, open_frames: FrameOpener, pool: ThreadPoolExecutor) -> None:
        self._policy, self._sampling, self._open, self._pool = policy, sampling, open_frames, pool
        self._shown: dict[tuple[str, int, Size], np.ndarray] = {}

    def load_all(self, batches: Sequence[Sequence[VideoSample]]) -> Iterator[tuple[list[Question], float]]:
        """`load` of every batch in order, the next one always under way in the pool."""
        waiting = deque(self._pool.submit(self.load, batch) for batch in batches[:1])
        for i in range(len(batches)):
            if i + 1 < len(batches):
                waiting.append(self._pool.submit(self.load, batches[i + 1]))
            yield waiting.popleft().result()

    def load(self, batch: Sequence[VideoSample]) -> tuple[list[Question], float]:
        """(the questions of a batch, seconds)"""
        start = time.perf_counter()
        kept, questions = {}, []
        for sample in batch:
            clip = self._policy.choose_clip(sample) or self._sampling.clip(sample)
            keys = [(sample.video, t, clip.size) for t in clip.frame_ids] if self._policy.looks else []
            for key in keys:
                kept[key] = kept.get(key, self._shown.get(key))
                if kept[key] is None:
                    kept[key] = frames.resize(self._open(sample)[key[1]], clip.size)
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
        """Read the reply, place it, track it. An exception bears a note that names the sample."""
        try:
            prediction = ground(asked.text, asked.question, family, reading=self._reading)
            if prediction.keyframe is None:
                return Finished(prediction, {**asked.seconds, "encode": 0.0, "track": 0.0})
            start = time.perf_counter()
            encoded = self._encode(prediction.sample)
            encode_s = time.perf_counter() - start
            track = self._tracker.track(encoded, keyframe=prediction.keyframe, boxes=prediction.boxes)
            track_s = time.perf_counter() - start - encode_s
        except Exception as error:
            error.add_note(f"while predicting {asked.question.sample.key}")
            raise
        return Finished(replace(prediction, track=track), {**asked.seconds, "encode": encode_s, "track": track_s})

    def _encode(self, sample: VideoSample) -> Any:
        if self._video != sample.video:
            self._video, self._encoded = None, None  # let go of the last video before the next one is encoded
            self._encoded = self._tracker.encode(self._open(sample))
            self._video = sample.video
        return self._encoded
