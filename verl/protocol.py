"""The records that travel between the trainer, its workers and its plug-ins. Read this file first.

Tensor names carry their axes: B rollouts (of this rank, group after group), R response positions (right-padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from verl.config import ConfigError


@dataclass(frozen=True)
class Prompt:
    """One question for the policy, as a data set plug-in gives it."""

    uid: str
    """Unique within the run's epoch."""
    messages: list[dict[str, Any]]
    """Chat messages; an image entry is ``{"type": "image"}`` and takes the next of `images`."""
    images: Any
    """(H, W, 3) uint8 RGB arrays in the order of the messages, or a Ray reference to such a list."""
    target: Any = field(repr=False)
    """The data that the reward needs to score a reply. It is opaque here and must pickle."""
    note: str = field(default="", repr=False)
    """The question and its true answer, for a person who reads the rollouts."""


@dataclass(frozen=True)
class Outline:
    """The part of a prompt that is known before a picture is decoded."""

    key: str
    """Name of the prompt among all of its data set, whatever the epoch."""
    group: str
    """Name that prompts of the same origin share."""
    kind: str
    """Kind of the prompt, of which there are few or many; validation is drawn to hold each kind equally often."""
    messages: list[dict[str, Any]] = field(repr=False)
    """Chat messages of the longest prompt that it may become in any epoch."""
    image_sizes: tuple[tuple[int, int], ...] = field(repr=False)
    """(height, width) in pixels of that prompt's images."""


class PromptError(ConfigError):
    """Data that the user can put right; a plug-in raises it when it is opened and in `get`."""


class PromptDataset(Protocol):
    """A data set plug-in. `get` may be called from several threads.

    Four more methods are optional:

    - ``outline(index) -> Outline``: the part of a prompt that is known before a picture is decoded. With it, over-long
      prompts are found before the run starts, validation is drawn evenly, and its keys are kept;
    - ``notes(model_path) -> list[str]``: lines that a user should read before the run starts, such as settings that the
      checkpoint was not trained with;
    - ``fingerprint() -> dict[str, str]``: a digest of each file that prompts are read from, by its role. A run that is
      resumed must find the same ones;
    - ``asked() -> dict``: the prompt settings of a checkpoint of the run, which are saved and exported with it.
    """

    def __len__(self) -> int: ...

    def get(self, index: int, *, epoch: int) -> Prompt:
        """Prompt number `index`; what is random in it depends on the plug-in's seed, `epoch` and `index` alone."""
        ...


@dataclass(frozen=True)
class Rollout:
    """One reply to a prompt, in text."""

    uid: str
    index: int
    """Number within the group of the prompt."""
    text: str
    prompt_tokens: int
    response_tokens: int
    finished: bool
    """The reply ended by itself; False if it was cut off at the longest length."""


@dataclass(frozen=True)
class Reward:
    """The reward of one reply."""

    total: float
    parts: dict[str, float]
    """Every term on its own, by name; logged as means."""
    problem: str | None = None
    """Code of the fault in the reply's form, None if there is none; counted by code."""


@dataclass
class Batch:
    """Tensors and lists over the same B rows."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Each (B, …)."""
    lists: dict[str, list[Any]] = field(default_factory=dict)
    """Each of length B."""

    def __post_init__(self) -> None:
        sizes = {name: len(tensor) for name, tensor in self.tensors.items()}
        sizes |= {name: len(items) for name, items in self.lists.items()}
        assert len(set(sizes.values())) <= 1, f"rows disagree: {sizes}"

    def __len__(self) -> int:
        """The number of rows B."""
        return next((len(rows) for rows in self.tensors.values()), len(next(iter(self.lists.values()), ())))

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name] if name in self.tensors else self.lists[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.lists

    def select(self, rows: Sequence[int]) -> Batch:
        """The rows of these numbers, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return Batch(
            {name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()},
            {name: [items[row] for row in rows] for name, items in self.lists.items()},
        )

    def with_tensors(self, **tensors: Tensor) -> Batch:
        """This batch with more (or other) tensors."""
        return Batch({**self.tensors, **tensors}, self.lists)

    def to(self, device: torch.device | str) -> Batch:
        return Batch({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.lists)
