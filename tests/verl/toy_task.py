"""A task that needs no video: look at one coloured square, and be paid for letters. Named as ``tests.verl.toy_task:…``."""

from __future__ import annotations

import numpy as np

from verl.protocol import Prompt, Reward


class Squares:
    """Eight prompts with one 56 x 56 picture each."""

    def __init__(self, length: int = 8) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def get(self, index: int, *, epoch: int) -> Prompt:
        picture = np.full((56, 56, 3), 30 * index % 255, np.uint8)
        picture[10:30, 10:30] = (255, index, epoch)
        content = [{"type": "image"}, {"type": "text", "text": f"what is shape {index}?"}]
        return Prompt(uid=f"{epoch}/{index}", messages=[{"role": "user", "content": content}], images=[picture], target=index)


def open_squares(config, *, split):
    return Squares()


class Letters:
    """Pays the share of letters in a reply."""

    def score(self, prompt, replies):
        rewards = []
        for reply in replies:
            share = sum(char.isalpha() for char in reply) / max(1, len(reply))
            rewards.append(Reward(total=share, parts={"letters": share}, problem=None if reply else "empty"))
        return rewards


def open_letters(config):
    return Letters()
