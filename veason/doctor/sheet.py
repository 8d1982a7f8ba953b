"""Draws the contact sheet: the frames in which masks and pictures disagree most, side by side in one PNG.

Blue is the outline of the annotated mask, orange that of the oracle's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from veason import atomic

TILE = (240, 320)
"""(height, width) of a picture on the sheet."""
COLUMNS = 4
_LABEL = 34
_ANNOTATED, _TRACKED = (86, 180, 233), (230, 159, 0)  # sky blue and orange of Okabe and Ito


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet, scaled down."""

    picture: np.ndarray
    """(h, w, 3) uint8 RGB, not larger than `TILE`."""
    label: tuple[str, str]
    """Two lines of text above the picture."""


def tile(frame: np.ndarray, annotated: np.ndarray, tracked: np.ndarray, label: tuple[str, str]) -> Tile:
    """A frame (H, W, 3) uint8 RGB with the outlines of two (H, W) bool masks."""
    scale = min(TILE[0] / frame.shape[0], TILE[1] / frame.shape[1])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))  # OpenCV: width first
    picture = np.ascontiguousarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
    for mask, colour in ((annotated, _ANNOTATED), (tracked, _TRACKED)):
        small = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, (16, 16, 16), 3)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return Tile(picture, label)


def write(path: Path, tiles: Sequence[Tile]) -> None:
    """Write the sheet, whole or not at all; `tiles` row by row."""
    rows = math.ceil(len(tiles) / COLUMNS)
    height, width = TILE[0] + _LABEL, TILE[1] + 8
    sheet = Image.new("RGB", (COLUMNS * width, max(1, rows) * height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, shown in enumerate(tiles):
        top, left = i // COLUMNS * height, i % COLUMNS * width + 4
        sheet.paste(Image.fromarray(shown.picture), (left, top + _LABEL))
        for line, text in enumerate(shown.label):
            if font.getlength(text) > TILE[1]:  # the middle is left out
                shorter = (f"{text[:n]}…{text[len(text) - n :]}" for n in range(len(text) // 2, 0, -1))
                text = next((words for words in shorter if font.getlength(words) <= TILE[1]), "…")
            draw.text((left, top + 2 + 15 * line), text, fill=(0, 0, 0), font=font)
    ok, data = cv2.imencode(".png", cv2.cvtColor(np.asarray(sheet), cv2.COLOR_RGB2BGR))
    assert ok, f"a sheet of {sheet.size} could not be encoded"
    atomic.write_bytes(path, data.tobytes())
