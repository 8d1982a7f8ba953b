"""Running the real commands, and what they leave behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(module: str, *arguments: object, code: int = 0) -> str:
    """Standard output of a command that must end with `code`; standard error instead where that is not 0."""
    done = subprocess.run(command(module, *arguments), capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def heed_interrupts() -> None:
    """For a child process: an interrupt is none where the tests run in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tree(path: Path) -> dict[str, bytes]:
    """Reads the files that every run must write equally: the masks and ``predictions.jsonl``."""
    files = [p for p in (path / "Annotations").rglob("*") if p.is_file()]
    assert files
    return {str(p.relative_to(path)): p.read_bytes() for p in [*files, path / "predictions.jsonl"]}
