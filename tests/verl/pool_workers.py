"""Workers that the tests of the worker pool run: tasks say what happens, files in a folder what has happened."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from verl.ray import Failure


class PoolWorker:
    def build(self, folder: str, fault: str) -> Failure | None:
        """`fault`: ``raise`` or ``die``, in every process; ``die once``, in the first one that gets here."""
        self.folder, self.given = Path(folder), []
        if fault == "raise":
            return Failure("no weights")
        if fault == "die" or (fault == "die once" and self.first_time("build")):
            os._exit(1)
        return None

    def first_time(self, what: str) -> bool:
        try:
            (self.folder / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def double(self, number: int) -> tuple[int, int]:
        """Twice the number, and how many tasks this process has had."""
        self.given.append(number)
        return 2 * number, len(self.given)

    def die(self) -> None:
        os._exit(1)

    def die_once(self, number: int) -> tuple[int, int]:
        if self.first_time(f"die {number}"):
            os._exit(1)
        return self.double(number)

    def hang_once(self, number: int) -> tuple[int, int]:
        if self.first_time(f"hang {number}"):
            time.sleep(600)
        return self.double(number)

    def unpicklable(self) -> object:
        return threading.Lock()
