"""A task that needs no video: look at one coloured square, and be paid for letters. With faults to order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from verl.engines.hf import HFEngine
from verl.protocol import Prompt, Reward


class Squares:
    """Eight prompts with one 56 x 56 picture each."""

    def __len__(self) -> int:
        return 8

    def get(self, index: int, *, epoch: int) -> Prompt:
        picture = np.full((56, 56, 3), 30 * index % 255, np.uint8)
        picture[10:30, 10:30] = (255, index, epoch)
        content = [{"type": "image"}, {"type": "text", "text": f"what is shape {index}?"}]
        message = {"role": "user", "content": content}
        return Prompt(uid=f"{epoch}/{index}", messages=[message], images=[picture], target=index)


def open_squares(config, *, split):
    return Squares()


class Letters:
    """Pays the share of letters in a reply. ``options``: ``fault`` at prompt ``target``, once with a ``marker``."""

    def __init__(self, config):
        self._options = config.options

    def score(self, prompt, replies):
        self._break(prompt)
        shares = [sum(char.isalpha() for char in reply) / max(1, len(reply)) for reply in replies]
        if self._options.get("fault") == "nan" and self._due(prompt):
            shares = [float("nan")] * len(replies)
        return [
            Reward(total=s, parts={"letters": s}, problem=None if r else "empty")
            for s, r in zip(shares, replies, strict=True)
        ]

    def _due(self, prompt):
        return prompt.target == int(self._options.get("target", -1)) and first_time(self._options.get("marker"))

    def _break(self, prompt):
        fault = self._options.get("fault")
        if fault == "raise" and self._due(prompt):
            raise ZeroDivisionError("the tracker tripped")
        if fault == "die" and self._due(prompt):
            os._exit(1)
        if fault == "hang" and self._due(prompt):
            time.sleep(600)


class MortalEngine(HFEngine):
    """Dies in its third generation, once per checkpoint folder: one process leaves a file there."""

    calls = 0

    def __init__(self, model_path, **options):
        super().__init__(model_path, **options)
        self.marker = str(Path(model_path) / "died")

    def generate(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 3 and first_time(self.marker):
            os._exit(1)
        return super().generate(*args, **kwargs)


class StoppedEngine(HFEngine):
    """Stops in its third generation, once per checkpoint folder, as a process does that hangs."""

    calls = 0

    def __init__(self, model_path, **options):
        super().__init__(model_path, **options)
        self.marker = str(Path(model_path) / "stopped")

    def generate(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 3 and first_time(self.marker):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().generate(*args, **kwargs)


class LyingEngine(HFEngine):
    """Says that every token was e times as likely as it was."""

    def generate(self, *args, **kwargs):
        batch = super().generate(*args, **kwargs)
        return batch.with_tensors(engine_logprobs=batch["engine_logprobs"] + 1)


def first_time(marker: str | None) -> bool:
    """True once for each marker file; always without one."""
    if marker is None:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
