"""The first lesson, for the vision tower alone: what is in each cell of a picture, and where does it reach.

Each token of a frame (a cell of 28 x 28 pixels) says through one linear layer whether a shape's box centre lies in it,
and of which colour, kind and box that shape is. The layer is thrown away afterwards; what stays are tokens that hold
these facts ready to be read. Without this start the text layers have to teach the tower through their attention, which
takes far longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from veason.synthetic.lessons import CELLS, SIDE, Lesson
from veason.synthetic.world import COLOURS, KINDS

BINS = SIDE + 1
"""Values of a coordinate, 0 … SIDE."""
SPREAD = 1.5
"""Standard deviation of a coordinate's soft label, in pixels."""
_COLOURS, _KINDS = list(COLOURS), list(KINDS)


@dataclass(frozen=True)
class Views:
    """N frames and what is in each of their cells, row by row."""

    frames: Tensor
    """(N, SIDE, SIDE, 3) uint8"""
    full: Tensor
    """(N, cells) bool: a shape's box centre lies in the cell; where several do, the front one counts."""
    boxes: Tensor
    """(N, cells, 4) float32 in pixels; 0 where not full, as below."""
    colours: Tensor
    """(N, cells) int64"""
    kinds: Tensor
    """(N, cells) int64"""


def look(lessons: Sequence[Lesson], rng: Random) -> Views:
    """One frame of each lesson, any."""
    count = len(lessons)
    full, boxes = np.zeros((count, CELLS**2), bool), np.zeros((count, CELLS**2, 4), np.float32)
    colours, kinds = np.zeros((2, count, CELLS**2), np.int64)
    frames = []
    for n, lesson in enumerate(lessons):
        k = rng.randrange(len(lesson.frame_ids))
        frames.append(lesson.frames[k])
        for i, shape in enumerate(lesson.scene.shapes):
            if lesson.areas[i, k]:
                x1, y1, x2, y2 = box = lesson.boxes[i, k]
                cell = int((y1 + y2) / 2 // 28) * CELLS + int((x1 + x2) / 2 // 28)
                full[n, cell], boxes[n, cell] = True, box
                colours[n, cell], kinds[n, cell] = _COLOURS.index(shape.colour), _KINDS.index(shape.kind)
    return Views(torch.from_numpy(np.stack(frames)), *map(torch.from_numpy, (full, boxes, colours, kinds)))


class Reader(nn.Module):
    """The linear layer that reads the facts off a token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.facts = nn.Linear(hidden, 1 + len(COLOURS) + len(KINDS) + 4 * BINS)

    def forward(self, tokens: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """The loss over tokens (N, cells, hidden), and the boxes (M, 4) that it reads off the M full cells."""
        full, colours, kinds, boxes = self.facts(tokens).split([1, len(COLOURS), len(KINDS), 4 * BINS], dim=-1)
        found = views.full
        logprobs = boxes[found].reshape(-1, 4, BINS).log_softmax(dim=-1)
        distance = torch.arange(BINS) - views.boxes[found][..., None]
        soft = (-0.5 * (distance / SPREAD) ** 2).softmax(dim=-1)
        loss = (
            binary_cross_entropy_with_logits(full[..., 0], found.float())
            + 0.3 * cross_entropy(colours[found], views.colours[found])
            + 0.3 * cross_entropy(kinds[found], views.kinds[found])
            - (soft * logprobs).sum(dim=-1).mean()
        )
        return loss, logprobs.argmax(dim=-1).float()
