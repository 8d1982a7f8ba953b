"""Describes scenes of coloured shapes: where each is and how large it is at any moment. No pixels, no randomness.

Lengths are in units of the picture's **short side**, the origin is the top-left corner, x to the right and y down.
Time is `u`, 0 at the first frame and 1 at the last.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from veason.types import Size

Point = tuple[float, float]
"""(x, y) in short sides."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (232, 40, 42),
    "green": (42, 214, 66),
    "blue": (44, 84, 242),
    "yellow": (250, 222, 46),
    "purple": (168, 52, 226),
    "orange": (255, 140, 22),
    "pink": (255, 134, 196),
    "cyan": (50, 222, 232),
    "white": (244, 244, 240),
}
"""RGB of each colour word; they are far from every background and from each other."""

KINDS = ("circle", "square", "triangle", "star", "ellipse")
TEXTURES = ("plain", "stripes", "checks", "dots")
BACKGROUNDS = ("ramp", "cloud", "plain")
"""ramp: red grows along x and green along y, so a colour tells its place; cloud: soft blotches; plain: grey."""


def _regular(corners: int, radius: float) -> np.ndarray:
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2  # the first corner points up
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


OUTLINES: dict[str, np.ndarray] = {
    "circle": _regular(96, 1.0),
    "square": 0.9 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
    "triangle": _regular(3, 1.25),
    "star": _regular(10, 1.25) * np.where(np.arange(10) % 2, 0.52, 1.0)[:, None],
    "ellipse": _regular(96, 1.0) * [1.28, 0.7],
}
"""Corners (V, 2) of each kind at radius 1, around its centre."""

REACH = 1.3
"""No corner of any kind is farther than this many radii from the centre."""


@dataclass(frozen=True)
class Shape:
    """One shape: it moves from `start` to `end` while its radius changes from the first value to the second."""

    kind: str
    colour: str
    texture: str
    start: Point
    """Centre in the first frame; may be outside the picture."""
    end: Point
    """Centre in the last frame."""
    radius: tuple[float, float]
    """Radius in short sides, in the first and in the last frame."""
    bow: float = 0.0
    """Sideways bulge of the path half-way, in short sides."""
    tilt: float = 0.0
    """Clockwise rotation in degrees."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.colour not in COLOURS or self.texture not in TEXTURES:
            raise ValueError(f"no such shape: a {self.texture} {self.colour} {self.kind}")

    @property
    def name(self) -> str:
        """Colour and kind: ``red circle``."""
        return f"{self.colour} {self.kind}"

    def centre(self, u: float | np.ndarray) -> np.ndarray:
        """Returns (x, y) in short sides; (K, 2) for K moments."""
        (x, y), (dx, dy) = self.start, np.subtract(self.end, self.start)
        length = math.hypot(dx, dy)
        aside = 4 * u * (1 - u) * self.bow / length if length else 0.0 * u
        return np.stack([x + u * dx - aside * dy, y + u * dy + aside * dx], axis=-1)

    def radius_at(self, u: float | np.ndarray) -> float | np.ndarray:
        """Returns the radius in short sides."""
        return self.radius[0] + u * (self.radius[1] - self.radius[0])

    def outline(self, u: float) -> np.ndarray:
        """Returns the corners (V, 2) in short sides."""
        turn = np.deg2rad(self.tilt)
        turned = OUTLINES[self.kind] @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return self.centre(u) + self.radius_at(u) * turned


@dataclass(frozen=True)
class Scene:
    """All that fixes the pixels of a video."""

    size: Size
    """Native (height, width); a clip may be rendered at any other, stretched as a resized video would be."""
    frames: int
    """Number of frames T."""
    shapes: tuple[Shape, ...]
    """From the back to the front: a later shape hides an earlier one."""
    background: str = "ramp"
    grain: int = 0
    """Seed of the background's texture."""

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background is {self.background!r}, expected one of {', '.join(BACKGROUNDS)}")

    def moment(self, frame_id: int) -> float:
        """Returns the time `u` of a frame."""
        return frame_id / (self.frames - 1) if self.frames > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Scene:
        shapes: list[Shape] = []
        for shape in record["shapes"]:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}
            shapes.append(Shape(**fields))
        return cls(**{**record, "size": tuple(record["size"]), "shapes": tuple(shapes)})
