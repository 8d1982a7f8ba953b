"""Runs a check in spawned processes of its own, one for each rank, under a time limit: a crash, a hang or a full card
ends one check, and the next begins with a clean device."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from outcome import FAILED, OK, SKIPPED, Outcome

READY = "ready"
GRACE_S = 10.0
"""After one rank has failed, how long the others may take to say so, too: they may be waiting for it for ever."""
STARTS = 3
"""Number of times that a process may be started for a check, if it ends before it has loaded everything."""


class Processes:
    """Starts the next check's processes while this one's are at work: to import torch takes longer than most checks.
    To be used in a ``with``, so that no process outlives it."""

    def __init__(self, work: Path, *, cpu: bool, ranks: int, limit_s: float, total_s: float) -> None:
        """`work`: an empty folder for logs and what checks write; `ranks`: of a check that runs on all devices;
        `limit_s` is for one check, `total_s` for all from now on."""
        self._work, self._cpu, self._ranks = work, cpu, ranks
        self._limit_s, self._total_s, self._end = limit_s, total_s, time.monotonic() + total_s
        self._spares: list[_Child] = []
        self._busy: list[_Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._spares + self._busy:
            child.kill()

    def run(self, check: Callable[..., Any], *, size: str, model: Path, on_all: bool = False) -> Outcome:
        """Runs a check, a function of a module which gets a `Place`; any failure is part of the outcome."""
        name, ranks = check.__name__, self._ranks if on_all else 1
        if time.monotonic() >= self._end:
            return Outcome(name, size, ranks, FAILED, f"not begun: the {self._total_s:g} s for all are over")
        missing = self._take(ranks)
        if missing:
            return Outcome(**{**missing, "check": name, "size": size, "ranks": ranks})
        scratch = self._work / f"{name}_{size}"
        scratch.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            environment = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
        for rank, child in enumerate(self._busy):
            where = {"RANK": rank, "LOCAL_RANK": rank, **environment}
            child.order(check, {key: str(value) for key, value in where.items()}, size, model, scratch)
        self._start(ranks)  # the next check most likely wants as many
        found = self._found()
        shutil.rmtree(scratch)
        # where several ranks failed, a death explains the others, else the first exception does
        failed = [each for each in found if each["state"] == FAILED]
        told = min(failed, key=lambda each: (not each["died"], not each["device"], each["seconds"]), default=found[0])
        largest = {key: max(each[key] for each in found) for key in ("seconds", "peak_gib")}
        return Outcome(**{**told, **largest, "check": name, "size": size, "ranks": ranks})

    def _take(self, count: int) -> dict[str, Any] | None:
        """Make `count` processes busy that have loaded everything; the fields of an `Outcome` if they do not come up.
        One that ends before it has an order says nothing about the check, so another takes its place."""
        starts = 0
        self._busy = []
        while len(self._busy) < count:
            self._start(count - len(self._busy))
            child = self._spares.pop(0)
            self._busy.append(child)
            if not child.pipe.poll(max(0.0, self._end - time.monotonic())):
                return self._give_up(child.lost("did not come up in the time that was left", died=False))
            answer = child.answer()
            if answer != READY:
                starts += 1
                if starts == STARTS:
                    return self._give_up({**answer, "why": f"did not come up: {answer['why']}"})
                print(f"a process did not come up, another is started: {answer['trace']}", file=sys.stderr)
                self._busy.remove(child)
                child.kill()
        return None

    def _give_up(self, fields: dict[str, Any]) -> dict[str, Any]:
        for child in self._busy:
            child.kill()
        return fields

    def _start(self, count: int) -> None:
        while len(self._spares) < count:
            self._spares.append(_Child(self._work, cpu=self._cpu))

    def _found(self) -> list[dict[str, Any]]:
        """Collects the result of each rank. Ranks that do not end are killed, and the reason is recorded."""
        found: dict[_Child, dict[str, Any]] = {}
        limit_s = max(0.0, min(self._limit_s, self._end - time.monotonic()))
        end, reason = time.monotonic() + limit_s, f"did not finish within {limit_s:.0f} s"
        while len(found) < len(self._busy) and (left_s := end - time.monotonic()) > 0:
            ready = wait([child.pipe for child in self._busy if child not in found], left_s)
            for child in (each for each in self._busy if each.pipe in ready):
                found[child] = child.answer()
                if found[child]["state"] == FAILED:
                    end, reason = min(end, time.monotonic() + GRACE_S), "was left waiting by another rank"
        every = [found.get(child) or child.lost(reason, died=False) for child in self._busy]
        for child in self._busy:
            child.kill()
        return every


class _Child:
    """A process: first without an order, then with one."""

    def __init__(self, work: Path, *, cpu: bool) -> None:
        number = len(list(work.glob("*.log")))
        self._log = work / f"{number}.log"
        self._log.touch()
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        with _environment(cpu):
            self._process = spawn.Process(target=_serve, args=(theirs, self._log, os.getpid()))
            self._process.start()
        theirs.close()  # so that its death ends the pipe

    def order(self, *order: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died at its start: `answer` says how
            self.pipe.send(order)

    def answer(self) -> Any:
        """`READY`, then the fields of an `Outcome`, also if the process has died."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            named = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return self.lost(f"the process ended with {named}", died=True)

    def lost(self, why: str, *, died: bool) -> dict[str, Any]:
        """The fields for a process that has told nothing."""
        printed = self._log.read_text(errors="replace")[-3000:]
        return asdict(Outcome("", "", 0, FAILED, why, trace=printed, died=died))

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # it may not have had the time to open its own group
        self._process.join()
        self.pipe.close()


@contextlib.contextmanager
def _environment(cpu: bool) -> Iterator[None]:
    """Sets the environment that a child process inherits."""
    before = dict(os.environ)
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, log: Path, parent: int) -> None:
    """The life of a child: load everything, wait for an order, carry it out, tell what came of it. `parent`: its id."""
    os.setsid()  # so that what it starts can be ended with it
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    import engine_checks  # noqa: F401  all that most checks need, before there is an order
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipe.send(READY)
    try:
        check, environment, *where = pipe.recv()
    except EOFError:
        return
    os.environ.update(environment)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # several ranks share a few cores
    pipe.send(carry_out(check, *where))
    # what other libraries left running must not keep a finished check from ending
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """End this process after its parent has ended. The sentinel of `multiprocessing.parent_process` is a pipe, which
    ends, too, when a library in the parent closes a file descriptor that is not its own; the parent's id stays."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def carry_out(check: Callable[..., Any], size: str, model: Path, scratch: Path) -> dict[str, Any]:
    """Run a check in this process: fields of an `Outcome`; whatever the check raises is what there is to report."""
    import torch
    import transformers
    from place import Place

    from verl.utils.runtime import peak_memory_gib

    place = Place(size=size, model=model, scratch=scratch)
    start = time.perf_counter()
    try:
        numbers, state, why, trace = check(place), OK, "", ""
    except Exception as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        why = f"{type(error).__name__}: {text}"[:300]
        numbers, state, trace = {}, FAILED, traceback.format_exc()
    if isinstance(numbers, str):
        numbers, state, why = {}, SKIPPED, numbers
    name = torch.cuda.get_device_name(place.device) if place.on_gpu else f"CPU ({platform.machine()})"
    return {
        "state": state,
        "why": why,
        "seconds": time.perf_counter() - start,
        "peak_gib": peak_memory_gib(place.device),
        "numbers": {name: float(value) for name, value in numbers.items()},
        "edges": place.edges,
        "trace": trace,
        "device": f"{name}, torch {torch.__version__}, transformers {transformers.__version__}",
        "died": False,
    }
