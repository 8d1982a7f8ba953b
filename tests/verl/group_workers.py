"""Workers that the tests of the worker group run: each does one thing that can happen to a rank."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any


class Worker:
    """A rank that joins a gloo group when asked to; torch is only loaded then, to start fast."""

    def __init__(self, base: int = 0, *, fail_on: int | None = None, unfit_on: int | None = None) -> None:
        self.rank = int(os.environ["RANK"])
        self.base = base
        if self.rank == fail_on:
            raise ValueError(f"rank {self.rank} cannot be built")
        if self.rank == unfit_on:
            from verl.config import ConfigError

            raise ConfigError(f"no weights for rank {self.rank}")

    def pid(self) -> int:
        return os.getpid()

    def environment(self, *names: str) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def add(self, number: int, *, times: int = 1) -> int:
        return (self.base + number + 10 * self.rank) * times

    def slow_first(self) -> int:
        time.sleep(0.3 * (self.rank == 0))
        return self.rank

    def join(self) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=timedelta(minutes=10))

    def sum_of_ranks(self) -> float:
        import torch
        import torch.distributed as dist

        total = torch.tensor([float(self.rank + 1)])
        dist.all_reduce(total)
        return total.item()

    def barrier_unless(self, rank: int, act: str) -> None:
        """This one acts, the others wait for it in a barrier."""
        if self.rank == rank:
            time.sleep(0.5)
            getattr(self, act)()
        import torch.distributed as dist

        dist.barrier()

    def raise_(self) -> None:
        raise Unpicklable("no such frame: 17")

    def die(self) -> None:
        os._exit(1)

    def give_back(self, thing: Any) -> Any:
        return thing


class Unpicklable(Exception):
    """An exception that does not come back from a pickle: it has a second argument."""

    def __init__(self, message: str, *, _lock: Any = None) -> None:
        super().__init__(message)
        self.lock = (i for i in ())


class Stubborn:
    """A rank whose peers never notice that it is gone: no connection, only a long wait."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])

    def die_or_wait(self) -> None:
        if self.rank == 1:
            os._exit(1)
        time.sleep(600)
