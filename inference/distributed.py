"""A run on many workers: units go to whichever policy is free, their replies to a tracker.

The driver alone knows what is done and alone writes. Each worker has its next unit at hand, so that it never waits for
the driver. What a lost worker had is done by another.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import ray

from inference import options
from inference.output import Packed
from inference.workers import Job, PolicyWorker, Replies, TrackerWorker
from veason.datasets.base import Dataset
from veason.errors import DataError
from veason.types import VideoSample
from verl.ray import NoRoom, placement
from verl.ray.placement import Placement
from verl.ray.pool import Limits, NotBuilt, NotReady, Slot, Task, TaskFailed, TooManyLosses, WorkerPool, wait

LARGEST = 8
"""Samples in a unit, at most: enough that features are shared, few enough that a lost worker costs little."""
SHARES = 4
"""Units per worker, at least, as far as there are samples: so that all workers end at about the same time."""
MAX_LOSSES = 3
"""Workers that may be lost over the same task, or in the same place without having finished anything."""
START_S = 600.0
"""Seconds without any worker at work, or becoming ready for it, after which the run ends."""
WAIT_S = 120.0
"""Seconds to wait for the room asked for: nodes may still be joining."""
AHEAD = 2
"""Tasks that a worker has at a time: the one it is at, and the next."""
CPUS = 0.4
"""Logical CPUs of a policy and of a tracker; the two share a bundle of one."""
STORE = 512 << 20
"""Bytes of the object store of a cluster that is started here; what travels is small."""
_TERMINATED = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM ended, as a shell reports it."""


@dataclass(frozen=True)
class Unit:
    """The unit of work that a worker gets at a time: some consecutive batches."""

    batches: tuple[int, ...]
    """Their numbers: batch b holds samples b * size to (b + 1) * size."""
    video: str
    """Video of the first sample; a unit ends where a batch begins with another video."""


def predict(
    args: argparse.Namespace,
    dataset: Dataset,
    samples: Sequence[VideoSample],
    *,
    done: Container[str],
    describe: Callable[[dict[str, Any]], None] | None = None,
) -> Generator[Packed, None, None]:
    """Predictions of the `samples` whose keys are not in `done`, each once, as they are finished.

    `describe` gets a policy's description of itself with its first replies, before any of them is tracked. The first
    exception of a worker ends the run: nothing new is asked, what was answered is still tracked.
    """
    count = args.gpus or args.workers
    units = plan(samples, done=done, batch_size=options.asking(args)["batch_size"], workers=count)
    with reserved(count, gpu=bool(args.gpus), address=args.address) as rooms:
        run = DistributedRun(Job(args, dataset, samples), rooms, units, describe=describe)
        try:
            for packed in run.predictions():
                if packed.key not in done:  # a batch is asked whole, even where some of it is done
                    yield packed
        finally:
            run.close()


def plan(samples: Sequence[VideoSample], *, done: Container[str], batch_size: int, workers: int) -> list[Unit]:
    """Units that hold every batch in which a sample is not `done`, long videos first."""
    starts = range(0, len(samples), batch_size)
    left = [start for start in starts if any(s.key not in done for s in samples[start : start + batch_size])]
    largest = max(1, min(LARGEST, len(left) * batch_size // (SHARES * workers)) // batch_size)  # in batches
    groups: list[list[int]] = []
    for start in left:
        last = groups[-1] if groups else None
        if last is None or len(last) == largest or samples[last[0]].video != samples[start].video:
            groups.append([])
        groups[-1].append(start)
    units = [Unit(tuple(start // batch_size for start in group), samples[group[0]].video) for group in groups]
    length = {sample.video: len(sample) for sample in samples}
    return sorted(units, key=lambda unit: -length[unit.video])  # stable: a video's units stay together


@contextlib.contextmanager
def reserved(count: int, *, gpu: bool, address: str | None) -> Iterator[Placement]:
    """`count` bundles, each for a policy and a tracker, on the cluster at `address` or on one that is started here.

    Each is a group of its own, for which Ray looks for another place if its node is lost. They are given back at the
    end. DataError, with what there is, if the room does not come in time. SIGTERM, by which SLURM or a service manager
    asks a process to end, ends this one in order.
    """
    rooms: Placement | None = None
    terminated = threading.Event()

    def end(number: int, frame: object) -> NoReturn:
        if not terminated.is_set():
            terminated.set()
            sys.stderr.write("stopped by SIGTERM; the same command goes on where this one was\n")
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    try:
        placement.connect(address=address, cpus=count, quiet=True, store_bytes=STORE)
        if gpu and not ray.cluster_resources().get("GPU"):  # waiting would be in vain
            raise DataError(f"--gpus {count}, but {placement.there()}; give --workers N to run on CPUs")
        rooms = placement.reserve(
            count,
            1,
            {"CPU": 1.0, **({"GPU": 1.0} if gpu else {})},
            wanted=f"{count} workers",
            remedy="Ask for fewer with --gpus or --workers, or free what other runs hold",
            timeout_s=WAIT_S,
        )
        yield rooms
    except NoRoom as error:
        raise DataError(str(error)) from None
    except SystemExit:  # of whose status Ray makes a 1, where it waits
        if terminated.is_set():
            raise SystemExit(_TERMINATED) from None
        raise
    finally:
        if rooms is not None:
            rooms.free()
        ray.shutdown()


class DistributedRun:
    """Policies and trackers, one of each in a bundle, and the units that they work on."""

    def __init__(
        self,
        job: Job,
        rooms: Placement,
        units: Sequence[Unit],
        *,
        describe: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        args = job.args
        self._describe = describe
        self._failure: Exception | None = None
        strategies = [rooms.slot(number) for number in range(len(rooms))]
        limits = Limits(
            losses=MAX_LOSSES, stuck_s=args.stuck_after, stuck_key="--stuck-after", start_s=START_S, build_s=START_S
        )
        job_ref = ray.put(job)

        def pool(worker: type, share: float, strategies: Sequence[Any], ahead: int, calls: int) -> WorkerPool[Unit]:
            gpus = share if rooms.gpu else 0.0
            return WorkerPool(
                worker,
                (job_ref, gpus),
                strategies=strategies,
                cpus=CPUS,
                gpus=gpus,
                limits=limits,
                ahead=ahead,
                concurrency=calls,
            )

        # a server's requests are bounded for the whole run: one policy asks them all, many units at once
        served = args.policy == "openai"
        ahead = math.ceil(args.requests / LARGEST) + 1 if served else AHEAD
        policy_share = args.policy_gpus if args.policy in options.ON_GPU else 0.0
        tracker_share = args.tracker_gpus if args.tracker in options.ON_GPU else 0.0
        self._policies = pool(PolicyWorker, policy_share, strategies[:1] if served else strategies, ahead, ahead)
        self._trackers = pool(TrackerWorker, tracker_share, strategies, AHEAD, 1)
        self._policies.waiting.extend(Task("answer", (unit.batches,), unit) for unit in units)

    def wait_until_built(self) -> None:
        """Wait until each worker has loaded what it needs, or failed to. `predictions` starts with those that have."""
        for pool in (self._policies, self._trackers):
            pool.wait_until_built()

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for pool in (self._policies, self._trackers):
            pool.close()

    def predictions(self) -> Iterator[Packed]:
        """Predictions as they are finished. DataError where workers are lost too often, or none becomes ready."""
        while True:
            if self._failure is not None:  # what was answered is still tracked
                self._policies.waiting.clear()
            try:
                self._policies.hand_out()
                self._trackers.hand_out(self._choose)
                if not any(pool.busy or pool.waiting for pool in (self._policies, self._trackers)):
                    break
                finished = wait(self._policies, self._trackers)
            except NotBuilt as error:
                raise error.failure.exception() from None
            except TaskFailed as error:
                raise RuntimeError(f"a worker's task could not be pickled\n\n{error}") from error
            except NotReady:
                raise DataError(
                    f"no worker was ready after {START_S:g} s; {placement.there()}. Run the same command again when "
                    "there is room: what is finished is kept"
                ) from None
            except TooManyLosses as error:
                over = f" over {error.tasks[0].item.video}" if error.tasks else ""
                raise DataError(
                    f"{error.count} workers in a row were lost{over}, the last one because {error.reason}. Often "
                    "memory is short: lower --batch-size, --workers or the GPU shares. What is finished is kept"
                ) from None
            for task, result in finished:
                if result.failure is not None and self._failure is None:  # the first one is raised at the end
                    self._failure = result.failure.exception()
                if not isinstance(result, Replies):
                    yield from result.packed
                    continue
                if self._describe is not None:
                    self._describe(result.policy)
                    self._describe = None
                if result.replies:
                    self._trackers.waiting.append(Task("track", (result.replies, result.family), task.item))
        if self._failure is not None:
            raise self._failure

    def _choose(self, slot: Slot[Unit]) -> Task[Unit]:
        """The first answered task of the video whose features the tracker has, else of a video that no other tracker
        has, else of any."""
        videos = {other: other.last.item.video for other in self._trackers.slots if other.last is not None}
        elsewhere = {video for other, video in videos.items() if other is not slot}
        waiting = self._trackers.waiting

        def rank(position: int) -> int:
            video = waiting[position].item.video
            return 0 if video == videos.get(slot) else 1 if video not in elsewhere else 2

        position = min(range(len(waiting)), key=rank)
        task = waiting[position]
        del waiting[position]
        return task
