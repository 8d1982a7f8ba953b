"""Packs training examples into tensors: many questions about one clip in one sequence, with the clip in it once.

``[system, frames][question 1, reply 1][question 2, reply 2]…``: a block sees the frames and itself, not the others, and
its positions follow the frames' as if it were alone. The instructions between question and reply, the same in every
prompt, may be left out: their positions are skipped, so that the reply stands where it will stand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from demo.policy import build_processor
from demo.pretraining_data import CELLS, SIDE, Turn
from demo.scene import COLOURS, KINDS
from veason import prompt
from veason.types import Clip

TOKENS = CELLS**2
"""Number of tokens of a frame."""
COORDINATE, SIZE, NAME = 1, 2, 3
"""Kinds of reply tokens: a number of a box, a number of a size, a colour or kind of shape; 0 is any other token."""


@dataclass(frozen=True)
class Pack:
    """B clips of equally many frames with the questions about them; L tokens with padding."""

    ids: Tensor
    """(B, L) int64"""
    positions: Tensor
    """(3, B, L) int64: positions of M-RoPE."""
    blocks: Tensor
    """(B, L) int64: 0 for the frames, 1 … for the questions, -1 for padding."""
    learned: Tensor
    """(B, L) bool: True for reply tokens."""
    kinds: Tensor
    """(B, L) int64: kind of each reply token."""
    values: Tensor
    """(B, L) float32: the number that a coordinate or size token rounds."""
    patches: Tensor
    """(B · frames · 36, 1176) float32, as the image processor makes them."""

    def mask(self) -> Tensor:
        """Returns (B, 1, L, L) bool: which queries may attend to which keys."""
        length = self.ids.shape[1]
        keys, queries = self.blocks[:, None, :], self.blocks[:, :, None]
        seen = ((keys == 0) | (keys == queries)) & torch.ones(length, length, dtype=torch.bool).tril()
        return seen[:, None]


class Packer:
    """Turns clips, questions and replies into packs; keeps the tokens of the prompt's fixed parts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
        self.tokenizer, self.model = tokenizer, model
        pictures = build_processor(tokenizer).image_processor
        self.mean, self.std = (
            torch.tensor(value)[:, None, None] for value in (pictures.image_mean, pictures.image_std)
        )
        self.numbers = torch.tensor([tokenizer.convert_tokens_to_ids(str(n)) for n in range(101)])
        """(101,) token ids of 0 … 100."""
        self._number_of = {token: n for n, token in enumerate(self.numbers.tolist())}
        self._names = {tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in (*COLOURS, *KINDS)}
        self._brackets = {tokenizer.convert_tokens_to_ids("[["), tokenizer.convert_tokens_to_ids("[")}
        self._colon = tokenizer.convert_tokens_to_ids(":")
        self._end = tokenizer.eos_token_id
        self._prompts: dict[tuple[int, ...], tuple[list[int], str, list[int], Tensor]] = {}

    def pack(
        self,
        clips: Sequence[tuple[Sequence[int], np.ndarray]],
        turns: Sequence[Sequence[Turn]],
        *,
        instructions: bool,
    ) -> Pack:
        """Packs clips, each given by frame ids and frames (F, SIDE, SIDE, 3), with the turns about each.

        `instructions`: put the instructions between question and reply; False skips their positions.
        """
        rows = [self._row(ids, asked, instructions) for (ids, _), asked in zip(clips, turns, strict=True)]
        length = max(len(row["ids"]) for row in rows)
        columns = {name: torch.zeros(len(rows), length, dtype=dtype) for name, dtype in _COLUMNS.items()}
        columns["blocks"].fill_(-1)
        positions = torch.zeros(3, len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            size = len(row["ids"])
            for name, column in columns.items():
                column[i, :size] = torch.as_tensor(row[name], dtype=column.dtype)
            positions[:, i, :size] = row["positions"]
        frames = torch.from_numpy(np.concatenate([frames for _, frames in clips]))
        return Pack(**columns, positions=positions, patches=self.patches(frames))

    def patches(self, frames: Tensor) -> Tensor:
        """Cuts frames (N, SIDE, SIDE, 3) uint8 into the image processor's rows.

        Four patches (2 x 2) that become one token follow each other; every picture counts twice in time.
        """
        pixels = (frames.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std  # (N, 3, SIDE, SIDE)
        grid = CELLS
        cut = pixels.reshape(-1, 3, grid, 2, 14, grid, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
        return cut[:, :, :, :, :, :, None].expand(*cut.shape[:6], 2, 14, 14).reshape(-1, 3 * 2 * 14 * 14)

    def _row(self, frame_ids: Sequence[int], asked: Sequence[Turn], instructions: bool) -> dict[str, Any]:
        """Builds the columns of one clip's sequence, without padding."""
        prefix, before, tail, start = self._prompt(tuple(frame_ids))
        row: dict[str, Any] = {
            "ids": list(prefix), "blocks": [0] * len(prefix), "learned": [False] * len(prefix),
            "kinds": [0] * len(prefix), "values": [0.0] * len(prefix),
        }  # fmt: skip
        positions = [start]
        for number, turn in enumerate(asked, start=1):
            question = self._tokens(f"{prompt.normalise(turn.expression)}{before}")
            reply = [*self._tokens(turn.reply), self._end]
            kinds, values = [0] * len(reply), [0.0] * len(reply)  # a coordinate's unrounded value, a size's integer
            coordinates = iter([value for box in turn.boxes for value in box])
            in_boxes = False
            for i, token in enumerate(reply):
                in_boxes |= token in self._brackets
                if token in self._names:
                    kinds[i] = NAME
                elif token in self._number_of and (in_boxes or reply[i - 1] == self._colon):
                    kinds[i] = COORDINATE if in_boxes else SIZE
                    values[i] = next(coordinates) if in_boxes else float(self._number_of[token])
            skipped = 0 if instructions else len(tail)
            asking = question + (tail if instructions else [])
            row["ids"] += asking + reply
            row["blocks"] += [number] * (len(asking) + len(reply))
            row["learned"] += [False] * len(asking) + [True] * len(reply)
            row["kinds"] += [0] * len(asking) + kinds
            row["values"] += [0.0] * len(asking) + values
            first = int(start.max()) + 1
            steps = torch.arange(len(asking) + len(reply))
            steps[len(asking) :] += skipped
            positions.append((first + steps).expand(3, -1))
        row["positions"] = torch.cat(positions, dim=1)
        return row

    def _prompt(self, frame_ids: tuple[int, ...]) -> tuple[list[int], str, list[int], Tensor]:
        """Splits the prompt of a clip at the expression.

        Returns the P tokens before it, the text from it to the end of its line, the tokens of the instructions, and the
        (3, P) positions of the first part.
        """
        if frame_ids in self._prompts:
            return self._prompts[frame_ids]
        messages = prompt.messages("expression", Clip(frame_ids=frame_ids, size=(SIDE, SIDE)), [None] * len(frame_ids))
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)  # by tokenize=False
        text = text.replace("<|image_pad|>", "<|image_pad|>" * TOKENS)
        before, after = re.split(r'(?<=")expression(?=")', text)
        line, _, tail = after.partition("\n")
        ids = torch.tensor([self._tokens(before)])
        is_image = ids == self.model.config.image_token_id
        grid = torch.tensor([[1, SIDE // 14, SIDE // 14]] * len(frame_ids))
        positions, _ = self.model.model.get_rope_index(
            ids, mm_token_type_ids=is_image.long(), image_grid_thw=grid, attention_mask=torch.ones_like(ids)
        )
        parts = (ids[0].tolist(), line + "\n", self._tokens(tail), positions[-3:, 0])
        self._prompts[frame_ids] = parts
        return parts

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


_COLUMNS = {
    "ids": torch.long, "blocks": torch.long, "learned": torch.bool, "kinds": torch.long, "values": torch.float32,
}  # fmt: skip
