"""Rewards that the tests of the pool use. What they do is in the reply, where they have been is in files."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl.config import RewardConfig
from verl.protocol import Prompt, Reward


class Lengths:
    """The total is the length of the reply; a reply may also be an order. A prompt's target is a folder for notes."""

    def __init__(self, config: RewardConfig) -> None:
        self.folder = Path(config.options["folder"])
        self.note("built")

    def note(self, name: str) -> int:
        """Notes a name and returns how often it has been noted."""
        with open(self.folder / name, "a") as file:
            file.write(f"{os.getpid()}\n")
        return len((self.folder / name).read_text().splitlines())

    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        self.folder = Path(prompt.target)
        self.note(f"scored {prompt.uid}")
        for reply in replies:
            getattr(self, f"on_{reply}", lambda: None)()
        brightness = float(sum(image.sum() for image in prompt.images))
        return [Reward(float(len(reply)), {"brightness": brightness, "pid": os.getpid()}) for reply in replies]

    def on_crash_once(self) -> None:
        if self.note("crash") == 1:
            os._exit(1)

    def on_crash(self) -> None:
        os._exit(1)

    def on_hang_once(self) -> None:
        if self.note("hang") == 1:
            time.sleep(600)

    def on_slow(self) -> None:
        time.sleep(0.5)

    def on_bug(self) -> None:
        raise Unpicklable("the tracker got no box")


class Unpicklable(Exception):
    def __init__(self, message: str, *, _lock: Any = None) -> None:
        super().__init__(message)
        self.lock = (i for i in ())


class TooFew(Lengths):
    def score(self, prompt: Prompt, replies: Sequence[str]) -> list[Reward]:
        return super().score(prompt, replies)[1:]


def not_buildable(config: RewardConfig) -> Lengths:
    raise FileNotFoundError("weights.pt")
