"""Log lines of a run on stderr: each names the step under way and, in a worker process, whose line it is.

Modules log through ``logging.getLogger(__name__)``. The driver's lines look like ``[step 12] validating``, those of a
rank like ``[step 12 rank 0] warning: …``; before the first step and after the last there is no step to name.
"""

from __future__ import annotations

import logging
import sys


class _Handler(logging.Handler):
    """Writes to whatever ``sys.stderr`` is at the time, so that a redirection later on is followed. Control characters,
    which names of files and samples may hold, are shown as escapes."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process
        self.step: int | None = None

    def format(self, record: logging.LogRecord) -> str:
        place = " ".join(filter(None, ["" if self.step is None else f"step {self.step}", self.process]))
        prefix = f"[{place}] " if place else ""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return printable(f"{prefix}{level}{super().format(record)}")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)  # as every handler of logging does


def configure(process: str = "") -> None:
    """Send this process's log to stderr: of `verl` what is informative, of other packages what is a warning or worse.

    `process` names it in each line, such as ``rank 0``; the driver has no name. A second call replaces the first.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler(process))
    logging.getLogger("verl").setLevel(logging.INFO)


def set_step(step: int | None) -> None:
    """Name `step`, counted from 1 as in ``metrics.jsonl``, in this process's lines from here on; None: name no step."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.step = step


def printable(text: str) -> str:
    """`text` with control characters as escapes, for a terminal; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
