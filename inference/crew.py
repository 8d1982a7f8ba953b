"""A run on many workers: units go to whoever is free, replies to a tracker, and what a lost worker had to another.

The driver alone knows what is done and alone writes. Policies and trackers are told what to do one unit ahead, so that
they never wait for it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from inference import cluster, options, units
from inference.cluster import Room
from inference.output import Packed
from inference.units import Unit
from inference.workers import Job, PolicyWorker, Replies, Told, TrackerWorker, Tracks
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.family import Family
from veason.types import VideoSample

MAX_LOSSES = 3
"""Workers that may be lost over the same task, or in the same place without having finished anything."""
START_S = 600.0
"""Seconds without any worker at work, or becoming ready for it, after which the run ends."""
AHEAD = 2
"""Tasks of a worker: the one it is at, and the next."""


def predict(
    args: argparse.Namespace,
    dataset: Dataset,
    samples: Sequence[VideoSample],
    *,
    done: Container[str],
    describe: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Packed]:
    """Predictions of the `samples` whose keys are not in `done`, each once, as they are finished.

    `describe` is told what a policy says of itself with its first replies, before any of them is tracked.
    The first exception of a worker ends the run: nothing new is asked, what was answered is still tracked.
    """
    count = args.gpus or args.workers
    asking = options.asking(args)
    plan = units.plan(samples, done=done, batch_size=asking["batch_size"], workers=count)
    with cluster.rooms(count, gpu=bool(args.gpus), address=args.address) as rooms:
        crew = Crew(Job(args, dataset, samples), rooms, plan, describe=describe)
        try:
            for packed in crew.work():
                if packed.key not in done:  # a batch is asked whole, even where some of it is done
                    yield packed
        finally:
            crew.dismiss()


@dataclass
class _Task:
    """A unit on its way: first to be answered, then, with what was told, to be tracked."""

    unit: Unit
    told: list[Told] = field(default_factory=list)
    family: Family | None = None
    losses: int = 0
    """Workers lost over it, in its present state."""


@dataclass
class _Seat:
    """A worker's place; the worker may change."""

    kind: type
    room: Room
    gpu_share: float
    ahead: int = AHEAD
    actor: Any = None
    built: ray.ObjectRef | None = None
    """Under way until the worker is ready; then None."""
    tasks: dict[ray.ObjectRef, _Task] = field(default_factory=dict)
    losses: int = 0
    """In a row, nothing having been finished in between."""
    video: str = ""
    """Whose features a tracker has, or will have."""
    since: float = 0.0
    """When it last finished something or, if that was later, got something to do."""

    def has_place(self) -> bool:
        return self.built is None and len(self.tasks) < self.ahead

    def add(self, call: ray.ObjectRef, task: _Task) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks[call] = task


class Crew:
    """Policies and trackers, one of each in a room, at work on a plan."""

    def __init__(
        self,
        job: Job,
        rooms: Sequence[Room],
        plan: Sequence[Unit],
        *,
        describe: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        args = job.args
        self._describe, self._described = describe, False
        self._job = ray.put(job)
        self._waiting = deque(_Task(unit) for unit in plan)
        self._answered: deque[_Task] = deque()
        self._failure: Exception | None = None
        self._patience_s: float = args.stuck_after
        # a server's requests are bounded for the whole run: one policy asks them all, many units at once
        calls = math.ceil(args.requests / units.LARGEST) + 1 if args.policy == "openai" else AHEAD
        policies = rooms[:1] if args.policy == "openai" else rooms
        shares = (
            args.policy_gpus if args.policy in options.ON_GPU else 0.0,
            args.tracker_gpus if args.tracker in options.ON_GPU else 0.0,
        )
        self._policies = [_Seat(PolicyWorker, room, shares[0], ahead=calls) for room in policies]
        self._trackers = [_Seat(TrackerWorker, room, shares[1]) for room in rooms]
        for seat in self._seats:
            self._fill(seat)

    @property
    def _seats(self) -> list[_Seat]:
        return [*self._policies, *self._trackers]

    def ready(self) -> None:
        """Wait until each worker has loaded what it needs, or failed to. `work` starts with those that have."""
        loading = [seat.built for seat in self._seats if seat.built is not None]
        ray.wait(loading, num_returns=len(loading), timeout=START_S)

    def dismiss(self) -> None:
        """End all workers, whatever they are doing."""
        for seat in self._seats:
            ray.kill(seat.actor)

    def work(self) -> Iterator[Packed]:
        while True:
            self._hand_out()
            if not any(seat.tasks for seat in self._seats) and not self._left():
                break
            refs = {ref: seat for seat in self._seats for ref in (*seat.tasks, *filter(None, [seat.built]))}
            busy = [seat for seat in self._seats if seat.tasks]
            patience = min((seat.since + self._patience_s for seat in busy), default=math.inf) - time.monotonic()
            ready, _ = ray.wait(list(refs), num_returns=1, timeout=max(patience, 0.0) if busy else START_S)
            if ready:
                yield from self._take(refs[ready[0]], ready[0])
            elif busy:
                self._replace_stuck(busy)
            else:
                raise DataError(
                    f"no worker was ready after {START_S:g} s; {cluster.there()}. Run the same command again when "
                    "there is room: what is finished is kept"
                )
        if self._failure:
            raise self._failure

    def _left(self) -> bool:
        """Something is still to be handed out. After a failure only what was answered is."""
        return bool(self._answered) or (self._failure is None and bool(self._waiting))

    def _hand_out(self) -> None:
        for seat in sorted(self._policies, key=lambda seat: len(seat.tasks)):
            while self._failure is None and self._waiting and seat.has_place():
                task = self._waiting.popleft()
                seat.add(seat.actor.answer.remote(task.unit.batches), task)
        for seat in sorted(self._trackers, key=lambda seat: len(seat.tasks)):
            while self._answered and seat.has_place():
                task = self._choose(seat)
                seat.video = task.unit.video
                seat.add(seat.actor.track.remote(task.told, task.family), task)

    def _choose(self, seat: _Seat) -> _Task:
        """The first answered task of the seat's own video, else of a video that no other tracker has, else of any."""
        others = {other.video for other in self._trackers if other is not seat}
        ranks = [0 if t.unit.video == seat.video else 1 if t.unit.video not in others else 2 for t in self._answered]
        position = ranks.index(min(ranks))
        task = self._answered[position]
        del self._answered[position]
        return task

    def _take(self, seat: _Seat, ref: ray.ObjectRef) -> Iterator[Packed]:
        """What came of one call."""
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # not lost: something does not pickle
            raise RuntimeError(f"a worker's task could not travel\n\n{error}") from error
        except ray.exceptions.RayError as error:
            self._replace(seat, _first_line(error))
            return
        if ref == seat.built:
            if result is not None:
                raise result.exception()
            seat.built = None
            return
        task, seat.losses, seat.since = seat.tasks.pop(ref), 0, time.monotonic()
        if result.failure is not None and self._failure is None:  # the first one is told
            self._failure = result.failure.exception()
        if isinstance(result, Replies):
            if self._describe is not None and not self._described:
                self._describe(result.policy)
                self._described = True
            if result.told:
                self._answered.append(_Task(task.unit, result.told, result.family))
        else:
            assert isinstance(result, Tracks)
            yield from result.packed

    def _replace_stuck(self, busy: Sequence[_Seat]) -> None:
        """Workers that finished nothing for too long: one that hangs would hold the run for ever."""
        for seat in busy:
            if time.monotonic() - seat.since >= self._patience_s:
                self._replace(seat, f"it finished nothing for {self._patience_s:g} s (--stuck-after)")

    def _replace(self, seat: _Seat, reason: str) -> None:
        """A worker is lost: its tasks go back to the head of the line, and another takes its seat."""
        ray.kill(seat.actor)
        queue = self._waiting if seat.kind is PolicyWorker else self._answered
        lost = list(seat.tasks.values())
        queue.extendleft(reversed(lost))
        seat.tasks, seat.video, seat.losses = {}, "", seat.losses + 1
        for task in lost:
            task.losses += 1
        worst = max((task.losses for task in lost), default=0)
        if max(worst, seat.losses) > MAX_LOSSES:
            over = f" over {lost[0].unit.video}" if lost else ""
            raise DataError(
                f"{max(worst, seat.losses)} workers in a row were lost{over}, the last one because: {reason}. Often "
                "memory is short: lower --batch-size, --workers or the GPU shares. What is finished is kept"
            )
        self._fill(seat)

    def _fill(self, seat: _Seat) -> None:
        calls = seat.ahead if seat.kind is PolicyWorker else 1
        seat.actor = seat.room.start(seat.kind, gpu_share=seat.gpu_share, calls=calls)
        seat.built = seat.actor.build.remote(self._job, seat.gpu_share if seat.room.gpu else 0)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
