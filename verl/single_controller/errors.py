"""What can go wrong in a group of workers: one of them raised, one of them is gone, or there is no room for them."""

from __future__ import annotations


class WorkerError(RuntimeError):
    """A worker raised. Running again would raise again."""

    def __init__(self, rank: int, task: str, text: str) -> None:
        super().__init__(f"rank {rank} failed in {task}\n\n{text.rstrip()}")
        self.rank, self.task, self.text = rank, task, text
        """`text` is the worker's own traceback."""


class WorkerLost(RuntimeError):
    """A worker's process or node is gone, hangs, or cannot be reached by its peers. A new group may fare better."""

    def __init__(self, rank: int, task: str, cause: str) -> None:
        super().__init__(f"rank {rank} was lost in {task}: {cause}")
        self.rank, self.task, self.cause = rank, task, cause


class NoRoom(RuntimeError):
    """The cluster does not have what the run wants."""
