"""A task whose prompts are known before a picture is drawn: `count` films of three scenes each, two kinds of question.

Prompt i asks for film i // 3; ``data.train_files`` says how many films there are and, after a slash, how many words the
longest question has: ``4/50``. What a reward may refuse is here, too.
"""

from __future__ import annotations

import numpy as np

from verl.protocol import Outline, Prompt, PromptError


class Films:
    def __init__(self, text: str) -> None:
        films, _, words = text.partition("/")
        if not films.isdecimal():
            raise PromptError(f"data.train_files={text}: expected the number of films")
        self.films, self.words = int(films), int(words or 1)

    def __len__(self) -> int:
        return 3 * self.films

    def messages(self, index: int) -> list[dict]:
        words = self.words if index == 0 else 1
        text = "what happens" + " then" * (words - 1) + "?"
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]

    def get(self, index: int, *, epoch: int) -> Prompt:
        picture = np.zeros((56, 56, 3), np.uint8)
        return Prompt(f"{index // 3}/{index % 3}", self.messages(index), [picture], index, note=f"asked: scene {index}")

    def outline(self, index: int) -> Outline:
        kind = "long" if index % 3 == 2 else "short"
        return Outline(f"{index // 3}/{index % 3}", f"film {index // 3}", kind, self.messages(index), ((56, 56),))

    def notes(self, model_path: str) -> list[str]:
        return ["every film is short"]

    def fingerprint(self) -> dict[str, str]:
        return {"films": str(self.films)}


def open_films(config, *, split):
    return Films(config.train_files if split == "train" else config.val_files or config.train_files)


class Fussy:
    """A reward that wants an option."""

    def __init__(self, config):
        raise AssertionError("never built")

    @staticmethod
    def check(config):
        if "longest" not in config.options:
            raise ValueError("worker.reward.options.longest is not set: give the most words a reply may have")
