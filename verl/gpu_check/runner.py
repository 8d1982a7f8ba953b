"""Run checks in processes of their own, one for each rank, under a time limit: a crash, a hang or a full card ends one
check, and the next begins with a clean device."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from verl.gpu_check.plan import BUILD, FAILED, OK, SKIPPED, Check, Outcome

POLL_S = 0.05
GRACE_S = 10.0
"""After one rank has failed, how long the others may take to say so, too: they may be waiting for it for ever."""


class Runner:
    """Starts processes ahead of their orders; to be used in a ``with``, so that none outlives it."""

    def __init__(
        self, jobs: Sequence[tuple[Check, str]], *, cpu: bool, ranks: int, work: Path, limit_s: float, total_s: float
    ) -> None:
        """`jobs`: checks with their sizes, the sizes one after the other; `ranks`: of a check that runs on all devices;
        `work`: an empty folder for models, logs and what checks write; `limit_s` is for one check, `total_s` for all
        from now on."""
        self._jobs, self._cpu, self._ranks, self._work = jobs, cpu, ranks, work
        self._limit_s, self._total_s, self._end = limit_s, total_s, time.monotonic() + total_s
        self._to_start = sum(self._ranks_of(check) for check, _ in jobs)
        self._spares: list[_Process] = []
        self._busy: list[_Process] = []

    def __enter__(self) -> Runner:
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._spares + self._busy:
            process.kill()

    def outcomes(self) -> Iterator[Outcome]:
        """What comes of each job, in order; whatever goes wrong in one is in its outcome."""
        for number, (check, size) in enumerate(self._jobs):
            yield self._outcome(check, size)
            if size not in {later for _, later in self._jobs[number + 1 :]}:
                self._forget_policy(size)

    def _outcome(self, check: Check, size: str) -> Outcome:
        ranks = self._ranks_of(check)
        if check.needs_policy and check != BUILD and not self._policy(size).exists():
            return Outcome(check.name, size, ranks, SKIPPED, "there is no policy, since build failed")
        if self._left_s() <= 0:
            return Outcome(check.name, size, ranks, FAILED, f"not begun: the {self._total_s:g} s for all are over")
        scratch = self._work / f"{check.name}_{size}"
        scratch.mkdir()
        self._begin(check, size, scratch)
        self._fill()
        outcome = _merged(check, size, self._found())
        shutil.rmtree(scratch)
        if check == BUILD and outcome.state != OK:
            self._forget_policy(size)
        return outcome

    def _begin(self, check: Check, size: str, scratch: Path) -> None:
        ranks = self._ranks_of(check)
        self._busy, self._spares = self._spares[:ranks], self._spares[ranks:]
        port = free_port()
        for rank, process in enumerate(self._busy):
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            environment = {name: str(value) for name, value in {**where, "MASTER_PORT": port}.items()}
            folders = {"model": str(self._policy(size)), "scratch": str(scratch)}
            process.begin({"run": check.run, "size": size, "environment": environment, **folders})

    def _found(self) -> list[dict[str, Any]]:
        """What each rank's process came to, by rank. Those that do not end are killed, and it is said why."""
        # what a process takes to come up counts for all checks together, not for this one
        self._wait(lambda: all(process.begun() or not process.running() for process in self._busy), self._left_s())
        limit_s = max(0.0, min(self._limit_s, self._left_s()))
        self._wait(lambda: any(process.failed() for process in self._busy) or not self._working(), limit_s)
        reason = f"did not finish within {limit_s:.0f} s"
        if self._working() and any(process.failed() for process in self._busy):
            self._wait(lambda: not self._working(), GRACE_S)
            reason = "was left waiting by another rank"
        found = [process.found(unfinished=reason) for process in self._busy]
        for process in self._busy:
            process.kill()
        return found

    def _left_s(self) -> float:
        return self._end - time.monotonic()

    def _working(self) -> bool:
        return any(process.running() for process in self._busy)

    def _wait(self, until: Callable[[], bool], limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not until() and time.monotonic() < end:
            time.sleep(POLL_S)

    def _fill(self) -> None:
        """As many processes waiting for an order as any check could need, and no more than all need together."""
        while len(self._spares) < self._ranks and self._to_start > 0:
            self._spares.append(_Process(self._work / f"process_{self._to_start}", cpu=self._cpu))
            self._to_start -= 1

    def _ranks_of(self, check: Check) -> int:
        return self._ranks if check.on_all else 1

    def _policy(self, size: str) -> Path:
        return self._work / f"policy_{size}"

    def _forget_policy(self, size: str) -> None:
        """A mid-size one takes 2 GB of the disk."""
        shutil.rmtree(self._policy(size), ignore_errors=True)


class _Process:
    """A `verl.gpu_check.child`: first without an order, then with one."""

    def __init__(self, path: Path, *, cpu: bool) -> None:
        """`path`, with suffixes, names its files."""
        self._log, self._begun, self._result = (path.with_suffix(end) for end in (".log", ".begun", ".json"))
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        loopback = {"GLOO_SOCKET_IFNAME": "lo"}  # all ranks are on this machine
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verl.gpu_check.child"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**loopback, **os.environ, **offline, **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})},
                start_new_session=True,  # so that what it starts can be ended with it
            )

    def begin(self, order: dict[str, Any]) -> None:
        line = json.dumps({**order, "begun": str(self._begun), "result": str(self._result)})
        with contextlib.suppress(BrokenPipeError):  # it died at its start: `found` says how
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()  # and stays open: its end tells the child that we are gone

    def begun(self) -> bool:
        return self._begun.exists()

    def running(self) -> bool:
        return self._process.poll() is None

    def failed(self) -> bool:
        """It has ended, and not well."""
        return not self.running() and self.found(unfinished="")["state"] == FAILED

    def found(self, *, unfinished: str) -> dict[str, Any]:
        """What the child wrote, or the same fields about its end; `unfinished` is why it has not ended."""
        code = self._process.poll()
        if code == 0:
            return {"died": False, **json.loads(self._result.read_text())}
        why = unfinished if code is None else f"the process ended with {_named(code)}"
        printed = self._log.read_text(errors="replace")[-3000:]
        blank = {"seconds": 0.0, "peak_gib": 0.0, "numbers": {}, "edges": [], "device": ""}
        return {"state": FAILED, "why": why, "trace": printed, "died": code is not None, **blank}

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()


def _merged(check: Check, size: str, found: Sequence[dict[str, Any]]) -> Outcome:
    """One outcome of all ranks. Where several failed, a death explains the others, else the first exception does."""
    failed = [each for each in found if each["state"] == FAILED]
    reasons = sorted(failed, key=lambda each: (not each["died"], not each["device"], each["seconds"]))
    told = (reasons or found)[0]
    return Outcome(
        check=check.name,
        size=size,
        ranks=len(found),
        state=told["state"],
        why=told["why"],
        seconds=max(each["seconds"] for each in found),
        peak_gib=max(each["peak_gib"] for each in found),
        numbers=told["numbers"],
        edges=told["edges"],
        trace=told["trace"],
        device=told["device"],
    )


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
