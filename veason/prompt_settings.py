"""The prompt settings that a checkpoint was trained with: ``veason.json`` beside its weights, from SFT and export.

A policy that learned on 4 frames of 84 pixels answers nothing useful when it is shown 8 of 560. So inference and GRPO
take their settings from this record, or print what differs.
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
    """The settings of a prompt, as a checkpoint was trained with them; DataError for a value that cannot be one."""

    frames: int
    """Frames shown of a video, nominally: of a shorter video, and by the grid of training, fewer are shown."""
    size: Size
    """Model (height, width) in pixels."""
    family: str
    """Name of the `veason.family.Family`."""
    prompt_template: str | None
    """Text of the prompt template; None: the one that comes with this project."""
    max_new_tokens: int
    """The longest reply, in tokens."""

    def __post_init__(self) -> None:
        families = [family.name for family in BY_MODEL_TYPE.values()]
        for name in ("frames", "max_new_tokens"):
            if not _positive(getattr(self, name)):
                raise DataError(f"{name} must be a positive whole number, found {getattr(self, name)!r}")
        if not (isinstance(self.size, tuple) and len(self.size) == 2 and all(map(_positive, self.size))):
            raise DataError(f"size must be [height, width] in pixels, found {self.size!r}")
        if self.family not in families:
            raise DataError(f"family must be one of {', '.join(families)}, found {self.family!r}")
        if not isinstance(self.prompt_template, str | None):
            raise DataError(f"prompt_template must be text or null, found {self.prompt_template!r}")


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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


def write(folder: str | Path, settings: PromptSettings) -> None:
    """Put the record beside the weights, in place of an earlier one."""
    atomic.write_json(Path(folder) / NAME, {**asdict(settings), "size": list(settings.size)})


def differences(settings: PromptSettings, **now: Any) -> list[str]:
    """One line for each setting in use (by the names of `PromptSettings`) that differs from the checkpoint's training.

    >>> differences(PromptSettings(4, (84, 84), "Qwen2.5-VL", None, 256), frames=8, size=(84, 84))
    ['frames is 8, the checkpoint was trained with 4']
    """
    return [
        f"{name} is {_shown(value)}, the checkpoint was trained with {_shown(getattr(settings, name))}"
        for name, value in now.items()
        if value != getattr(settings, name)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return "the built-in one"
    return json.dumps(value if len(value) <= 60 else f"{value[:59]}…") if isinstance(value, str) else str(value)
