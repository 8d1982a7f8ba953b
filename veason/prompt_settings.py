"""How a checkpoint wants to be asked: ``veason.json`` beside its weights, written by SFT and by export.

A policy that learned on 4 frames of 84 pixels answers nothing useful when it is shown 8 of 560. The record says what it
was trained with, so that inference and GRPO can take it, or say what differs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from veason import atomic, files
from veason.errors import DataError
from veason.family import BY_MODEL_TYPE
from veason.types import Size

NAME = "veason.json"
"""The file's name in a checkpoint folder."""


@dataclass(frozen=True)
class PromptSettings:
    """The settings of a question that a checkpoint was trained with."""

    frames: int
    """Frames shown of a video, nominally: a shorter video, and the grid of training, show fewer."""
    size: Size
    """Model (height, width) in pixels."""
    family: str
    """Name of the `veason.family.Family`."""
    prompt_template: str | None
    """Text of the prompt template; None: the one that comes with this project."""
    max_new_tokens: int
    """Room for a reply, in tokens."""

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise DataError(problem)


def read(folder: str | Path) -> PromptSettings | None:
    """The record of a checkpoint folder; None if it has none, as published models and hub names have.

    DataError for a file that is no such record: it names the file and the entry.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return None
    record = files.load_json(path)
    names = [field.name for field in fields(PromptSettings)]
    if not isinstance(record, dict) or sorted(record) != sorted(names):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{path}: expected an object of {', '.join(names)}, found {found}; correct or remove it")
    size = record["size"]
    try:
        return PromptSettings(**{**record, "size": tuple(size) if isinstance(size, list) else size})
    except DataError as error:
        raise DataError(f"{path}: {error}; correct or remove it") from error


def write(folder: str | Path, asked: PromptSettings) -> None:
    """Put the record beside the weights, in place of an earlier one."""
    atomic.write_json(Path(folder) / NAME, {**asdict(asked), "size": list(asked.size)})


def differences(asked: PromptSettings, **now: Any) -> list[str]:
    """One line for each setting in use (by the names of `PromptSettings`) that differs from the checkpoint's training.

    >>> differences(PromptSettings(4, (84, 84), "Qwen2.5-VL", None, 256), frames=8, size=(84, 84))
    ['frames is 8, the checkpoint was trained with 4']
    """
    return [
        f"{name} is {_shown(value)}, the checkpoint was trained with {_shown(getattr(asked, name))}"
        for name, value in now.items()
        if value != getattr(asked, name)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return "the built-in one"
    return json.dumps(value if len(value) <= 60 else f"{value[:59]}…") if isinstance(value, str) else str(value)


def _problem(asked: PromptSettings) -> str | None:
    """What is wrong with the values of a record, if anything."""
    families = [family.name for family in BY_MODEL_TYPE.values()]
    for name in ("frames", "max_new_tokens"):
        if not _positive(getattr(asked, name)):
            return f"{name} must be a positive whole number, found {getattr(asked, name)!r}"
    if not (isinstance(asked.size, tuple) and len(asked.size) == 2 and all(map(_positive, asked.size))):
        return f"size must be [height, width] in pixels, found {asked.size!r}"
    if asked.family not in families:
        return f"family must be one of {', '.join(families)}, found {asked.family!r}"
    if not isinstance(asked.prompt_template, str | None):
        return f"prompt_template must be text or null, found {asked.prompt_template!r}"
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
