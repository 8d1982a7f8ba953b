"""Defines the linear probe that pretrains the vision tower: it predicts from each token of a frame what its cell shows.

A token stands for a cell of 28 x 28 pixels. The probe, one linear layer, predicts whether the centre of a shape's box
lies in the cell, and the colour, kind and box of that shape. The probe is discarded after this stage. Without it the
text layers would have to train the tower through their attention, which takes far longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from demo.pretraining_data import CELLS, SIDE, Example
from demo.scene import COLOURS, KINDS

BINS = SIDE + 1
"""Number of values of a coordinate, 0 … SIDE."""
SPREAD = 1.5
"""Standard deviation of a coordinate's soft label, in pixels."""
_COLOURS, _KINDS = list(COLOURS), list(KINDS)


@dataclass(frozen=True)
class LabelledFrames:
    """N frames with labels for each of their cells, row by row."""

    frames: Tensor
    """(N, SIDE, SIDE, 3) uint8"""
    occupied: Tensor
    """(N, cells) bool: the box centre of a shape lies in the cell; the front one counts if there are several."""
    boxes: Tensor
    """(N, cells, 4) float32 in pixels; like the labels below, 0 where not occupied."""
    colours: Tensor
    """(N, cells) int64: index of the colour."""
    kinds: Tensor
    """(N, cells) int64: index of the kind."""


def label_frames(examples: Sequence[Example], rng: Random) -> LabelledFrames:
    """Draw one frame of each example at random and label it."""
    count = len(examples)
    occupied, boxes = np.zeros((count, CELLS**2), bool), np.zeros((count, CELLS**2, 4), np.float32)
    colours, kinds = np.zeros((2, count, CELLS**2), np.int64)
    frames = []
    for n, example in enumerate(examples):
        k = rng.randrange(len(example.frame_ids))
        frames.append(example.frames[k])
        for i, shape in enumerate(example.scene.shapes):
            if example.areas[i, k]:
                x1, y1, x2, y2 = box = example.boxes[i, k]
                cell = int((y1 + y2) / 2 // 28) * CELLS + int((x1 + x2) / 2 // 28)
                occupied[n, cell], boxes[n, cell] = True, box
                colours[n, cell], kinds[n, cell] = _COLOURS.index(shape.colour), _KINDS.index(shape.kind)
    labels = map(torch.from_numpy, (occupied, boxes, colours, kinds))
    return LabelledFrames(torch.from_numpy(np.stack(frames)), *labels)


class Probe(nn.Module):
    """Predicts the labels of a cell from its token, by one linear layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.facts = nn.Linear(hidden, 1 + len(COLOURS) + len(KINDS) + 4 * BINS)

    def forward(self, tokens: Tensor, labelled: LabelledFrames) -> tuple[Tensor, Tensor]:
        """Return the loss over tokens (N, cells, hidden) and the predicted boxes (M, 4) of the M occupied cells."""
        occupied, colours, kinds, boxes = self.facts(tokens).split([1, len(COLOURS), len(KINDS), 4 * BINS], dim=-1)
        found = labelled.occupied
        logprobs = boxes[found].reshape(-1, 4, BINS).log_softmax(dim=-1)
        distance = torch.arange(BINS) - labelled.boxes[found][..., None]
        soft = (-0.5 * (distance / SPREAD) ** 2).softmax(dim=-1)
        loss = (
            binary_cross_entropy_with_logits(occupied[..., 0], found.float())
            + 0.3 * cross_entropy(colours[found], labelled.colours[found])
            + 0.3 * cross_entropy(kinds[found], labelled.kinds[found])
            - (soft * logprobs).sum(dim=-1).mean()
        )
        return loss, logprobs.argmax(dim=-1).float()
