"""Workers on Ray: where they run (`placement`), ranks driven as one (`group`), pools that survive losses (`pool`).

This module says what can go wrong with them: exceptions for the caller, and a value that carries a worker's exception
from its process to the caller's. It loads without Ray.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass


class NoRoom(RuntimeError):
    """The cluster cannot be reached, or does not have what the run asks for."""


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


@dataclass(frozen=True)
class Failure:
    """A worker's exception as a value, so that nothing about the exception has to pickle."""

    text: str
    """The message of an exception that the user can put right; the traceback of any other."""
    user_error: type[Exception] | None = None
    """The class of an exception that the user can put right; None for any other."""
    notes: tuple[str, ...] = ()
    peer_gone: bool = False
    """The exception is about the connection to another worker."""

    @classmethod
    def of(cls, error: Exception, *, user_error: type[Exception] | None = None, peer_gone: bool = False) -> Failure:
        """`user_error`: the class of the exceptions whose message is all that the user needs."""
        if user_error is not None and isinstance(error, user_error):
            return cls(str(error), user_error, tuple(getattr(error, "__notes__", ())))
        return cls("".join(traceback.format_exception(error)), peer_gone=peer_gone)

    def exception(self) -> Exception:
        """The exception to raise where the value arrives."""
        if self.user_error is None:
            return RuntimeError(f"a worker failed\n\n{self.text.rstrip()}")
        error = self.user_error(self.text)
        for note in self.notes:
            error.add_note(note)
        return error


def first_line(error: Exception) -> str:
    """The first line of an exception's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
