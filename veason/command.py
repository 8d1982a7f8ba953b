"""Runs the body of a command: messages go to stderr, and what the user can put right is one line and exit code 2."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from veason.errors import DataError
from veason.safe_text import printable

_DISK = {
    errno.ENOSPC: "no space left; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some and run the same command again",
    errno.EROFS: "the file system is read-only; choose a place that can be written",
    errno.EACCES: "permission denied; choose a place that this user may read and write",
    errno.EPERM: "operation not permitted; choose a place that this user may read and write",
    errno.EIO: "the disk or the network file system reported an error",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file where a folder is needed",
    errno.EISDIR: "this is a folder where a file is needed",
    errno.EEXIST: "a file of this name is in the way",
    errno.ELOOP: "the links of this path lead in a circle",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n 4096`) and run the same command again",
}
"""The remedy for each error number that an operating system gives for files and that a user can put right."""

_LOGGED = (
    *("veason", "verl", "grpo_reward", "training_data_construction", "inference", "eval", "demo", "benchmarks"),
    "__main__",  # the module that `python -m` runs
)
"""Loggers whose INFO messages a command shows; libraries are heard from WARNING on."""


def run_command(main: Callable[[], int | None]) -> int:
    """Run the body of a command and return its exit status, for ``sys.exit``.

    While the body runs, log messages go to stderr as `set_up_logging` says. A `DataError` and an error of the disk are
    printed as one line each on stderr (2), an interrupt likewise (130), and so is SIGTERM (143), which unwinds the body
    as an interrupt does, so that temporary files and workers go; a second SIGTERM ends the process at once. Every other
    exception is a defect of ours and propagates.
    """
    try:
        with _logging_to_stderr(), _unwound_by_sigterm():
            return main() or 0
    except DataError as error:
        lines = [str(error), *getattr(error, "__notes__", [])]
        print("error: " + "\n".join(printable(line) for line in lines), file=sys.stderr)
        return 2
    except OSError as error:
        remedy = disk_remedy(error)
        if remedy is None:
            raise
        print(f"error: {printable(remedy)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    except _Terminated:
        print("terminated; the same command goes on where this one was", file=sys.stderr)
        return 128 + signal.SIGTERM


def set_up_logging() -> None:
    """Send log messages of this process to stderr: INFO of our own modules as they are, ``warning: …`` above.

    Each message is one printable line, and a progress bar on the terminal is redrawn below it. `run_command` does this
    for a command; a worker process calls it itself. A second call changes nothing.
    """
    logging.getLogger().addHandler(_STDERR)
    for name in _LOGGED:
        logging.getLogger(name).setLevel(logging.INFO)


class _StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time, above the progress bars of tqdm."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        lines = [level + printable(record.getMessage())]
        if record.exc_info:
            lines.append(logging.Formatter().formatException(record.exc_info))
        return "\n".join(lines)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if "tqdm" in sys.modules:  # otherwise there is no bar, and loading it takes longer than OpenCV
                from tqdm import tqdm

                tqdm.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr)
        except Exception:  # as every handler of the standard library: logging may not end the program
            self.handleError(record)


_STDERR = _StderrHandler()


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Does `set_up_logging` for this block, and takes it back where it was not in force before."""
    root = logging.getLogger()
    if _STDERR in root.handlers:
        yield
        return
    levels = {name: logging.getLogger(name).level for name in _LOGGED}
    set_up_logging()
    try:
        yield
    finally:
        root.removeHandler(_STDERR)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _Terminated(BaseException):
    """The process was sent SIGTERM."""


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `_Terminated` within this block, unless a handler is there or this is not the main thread."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is unwind:  # the body may have set a handler of its own
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def disk_remedy(error: OSError) -> str | None:
    """One line, file and remedy, for an error of the file system that a user can put right; None for any other."""
    if error.errno not in _DISK:
        return None
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names) or error.strerror}: {_DISK[error.errno]}"
