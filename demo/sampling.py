"""Draws random scenes: a plot fixes the events of a scene, chance decides places, shapes and speeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from demo.facts import Facts, measure
from demo.scene import BACKGROUNDS, COLOURS, KINDS, REACH, TEXTURES, Scene, Shape
from veason.types import Size

STRIDE = 0.07
"""The farthest that a centre moves from one frame to the next, in short sides (a path's bow may add a little)."""

Extent = tuple[float, float]
"""(width, height) of the picture in short sides."""

PLOTS: dict[str, tuple[str, ...]] = {
    "mixed": (),
    "growth": ("grow", "shrink"),
    "crossing": ("crossing",),
    "arrival": ("enter",),
    "departure": ("leave", "leave"),
    "curtain": ("enter", "enter"),
    "giant": ("giant",),
    "parade": ("drift", "drift", "still"),
    "still": ("still", "still"),
}
"""The motions that a plot must have; the remaining shapes get random ones. Only in a curtain all shapes are outside the
picture in the first frame; "still" is the plot of a single frame."""


def sample_scene(
    rng: np.random.Generator,
    *,
    size: Size = (160, 240),
    frames: int = 16,
    shapes: tuple[int, int] = (2, 4),
    plot: str | None = None,
    background: str = "ramp",
    attempts: int = 400,
) -> Scene:
    """Draws a scene of `plot` (None: any that fits) with `shapes[0]` to `shapes[1]` shapes of distinct colours."""
    if plot is not None and plot not in PLOTS:
        raise ValueError(f"plot is {plot!r}, expected one of {', '.join(PLOTS)}")
    if background not in BACKGROUNDS:
        raise ValueError(f"background is {background!r}, expected one of {', '.join(BACKGROUNDS)}")
    short = ("mixed", "growth", "parade")  # plots that a handful of frames has room for
    long = ("crossing", "arrival", "departure")
    for _ in range(attempts):
        if plot is not None:
            chosen = plot
        elif frames == 1:
            chosen = "still"
        else:
            chosen = str(rng.choice(short + long if frames >= 8 else short))
        placed = _place_shapes(rng, size, frames, shapes, chosen)
        if placed is None:
            continue
        finished = _assign_looks(rng, placed, square=chosen == "giant")
        scene = Scene(
            size=size, frames=frames, shapes=finished, background=background, grain=int(rng.integers(1 << 31))
        )
        if is_sound(scene, measure(scene), apart=chosen not in ("crossing", "giant")):
            return scene
    raise ValueError(
        f"found no {plot or 'scene'} of {frames} frames at {size} in {attempts} attempts; allow more frames"
    )


def is_sound(scene: Scene, facts: Facts, *, apart: bool = True) -> bool:
    """Checks that every shape is large enough, and visible at its box centre in the frames where it is largest."""
    largest = facts.areas.max(axis=1, keepdims=True)
    near_largest = facts.areas >= 0.9 * largest
    sound = largest.min() >= 0.008 * facts.pixels and bool(facts.anchored[near_largest].all())
    return sound and not (apart and facts.meets.any())


def _place_shapes(
    rng: np.random.Generator, size: Size, frames: int, shapes: tuple[int, int], plot: str
) -> list[Shape] | None:
    """Draws shapes of a plot that keep apart, with placeholder looks; None if one finds no room."""
    extent = (size[1] / min(size), size[0] / min(size))
    motions = list(PLOTS[plot])
    count = max(int(rng.integers(shapes[0], shapes[1] + 1)), len(motions) + (plot == "crossing"))
    filler = {"curtain": ["enter"], "giant": ["still"], "still": ["still"], "parade": ["drift"]}
    fitting = filler.get(plot, ["drift", "drift", "still", "grow", "shrink"])
    others = [str(rng.choice(fitting)) for _ in range(count - len(motions) - (plot == "crossing"))]
    reach = STRIDE * (frames - 1)
    placed: list[Shape] = []
    for motion in others + motions if plot == "giant" else motions + others:  # the giant is in front
        moments = np.zeros(1) if motion == "giant" else np.linspace(0, 1, 25)  # a giant is only apart at first
        for _ in range(40):
            group = _draw_motion(rng, motion, extent, reach)
            if group and all(_apart(one, other, moments) for one in group for other in placed):
                placed += group
                break
        else:
            return None
    return placed


def _apart(one: Shape, other: Shape, moments: np.ndarray) -> bool:
    """Checks that the two cannot touch at any of these moments, whatever their kinds."""
    between = np.linalg.norm(one.centre(moments) - other.centre(moments), axis=1)  # (K,)
    return bool((between - REACH * (one.radius_at(moments) + other.radius_at(moments)) > 0.02).all())


def _assign_looks(rng: np.random.Generator, shapes: list[Shape], *, square: bool) -> tuple[Shape, ...]:
    """Gives each shape its colour, kind, texture and tilt; `square` makes the last one a square."""
    colours = rng.permutation(list(COLOURS))[: len(shapes)]
    available_kinds = rng.choice(KINDS, size=min(3, len(shapes)), replace=False)  # few kinds, so that some come twice
    kinds = [str(rng.choice(available_kinds)) for _ in shapes]
    if square:
        kinds[-1] = "square"  # the giant has to reach the corners
    return tuple(
        replace(
            shape, kind=kind, colour=str(colour), texture=str(rng.choice(TEXTURES)), tilt=_round(rng.uniform(-14, 14))
        )
        for shape, kind, colour in zip(shapes, kinds, colours, strict=True)
    )


def _round(value: float) -> float:
    return round(float(value), 4)  # scenes are written to JSON


def _shape(start: np.ndarray, end: np.ndarray, radius: tuple[float, float], bow: float = 0.0) -> Shape:
    """Makes a shape with a placeholder look; start and end are (2,)."""
    (x1, y1), (x2, y2), (first, last) = map(_round, start), map(_round, end), map(_round, radius)
    return Shape("circle", "red", "plain", (x1, y1), (x2, y2), (first, last), _round(bow))


def _inside(rng: np.random.Generator, radius: float, extent: Extent) -> np.ndarray:
    margin = REACH * radius + 0.02
    return np.array([rng.uniform(margin, side - margin) for side in extent])


def _is_inside(point: np.ndarray, radius: float, extent: Extent) -> bool:
    return all(REACH * radius < c < side - REACH * radius for c, side in zip(point, extent, strict=True))


def _draw_motion(rng: np.random.Generator, motion: str, extent: Extent, reach: float) -> list[Shape] | None:
    """Draws the shapes of one motion, back to front and with a placeholder look; None where they do not fit in."""
    match motion:
        case "still":
            radius = rng.uniform(0.08, 0.17)
            place = _inside(rng, radius, extent)
            return [_shape(place, place, (radius, radius))]
        case "drift":
            radius = rng.uniform(0.09, 0.16)
            start, length = _inside(rng, radius, extent), rng.uniform(0.6, 1.0) * min(reach, 0.8)
            angle = np.deg2rad(rng.choice([0, 90, 180, 270]) + rng.uniform(-18, 18))
            end = start + length * np.array([np.cos(angle), np.sin(angle)])
            drifter = _shape(start, end, (radius, radius), bow=rng.uniform(-0.05, 0.05) * min(reach, 1))
            inside = all(_is_inside(point, radius, extent) for point in drifter.centre(np.linspace(0, 1, 9)))
            return [drifter] if inside else None
        case "grow" | "shrink":
            small = rng.uniform(0.08, 0.12)
            large = small * rng.uniform(1.5, 2.0)
            start = _inside(rng, large, extent)
            end = start + rng.uniform(-0.1, 0.1, size=2) * min(reach, 1)
            end = np.clip(end, REACH * large, np.array(extent) - REACH * large)
            grower = _shape(start, end, (small, large))
            return [grower if motion == "grow" else _reversed(grower)]
        case "enter":
            return _draw_entrance(rng, extent, reach, outside=(0.18, 0.38))
        case "leave":
            group = _draw_entrance(rng, extent, reach, outside=(0.06, 0.26))
            return [_reversed(shape) for shape in group] if group else None
        case "crossing":  # the paths of two shapes meet half-way; the second passes in front of the first
            radii = rng.uniform(0.11, 0.16, size=2)
            middle = np.array(extent) * rng.uniform(0.42, 0.58, size=2)
            angle, turn = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(100, 180)) * rng.choice([-1, 1])
            length = min(reach, 0.75) * rng.uniform(0.7, 1.0)
            aside = 0.6 * radii.min() * np.array([-np.sin(angle), np.cos(angle)])
            pair = []
            for i, heading in enumerate((angle, angle + turn)):
                half = length / 2 * np.array([np.cos(heading), np.sin(heading)])
                pair.append(_shape(middle + i * aside - half, middle + i * aside + half, (radii[i], radii[i])))
            clear_at_ends = _apart(pair[0], pair[1], np.array([0.0, 0.12, 0.88, 1.0]))
            inside = all(_is_inside(shape.centre(u), shape.radius[0], extent) for shape in pair for u in (0.0, 1.0))
            return pair if clear_at_ends and inside else None
        case "giant":  # it grows until it fills the picture in the last tenth of the video
            start = np.array(extent) * rng.uniform(0.35, 0.65, size=2)
            full = 0.8 * max(extent)  # a tilted square about the middle then reaches beyond all four corners
            return [_shape(start, np.array(extent) / 2, (rng.uniform(0.1, 0.14), full))]
        case _:
            raise ValueError(f"no motion {motion!r}")


def _draw_entrance(
    rng: np.random.Generator, extent: Extent, reach: float, *, outside: tuple[float, float]
) -> list[Shape] | None:
    """Draws a shape that comes in over one border; `outside`: bounds of the share of its way before it is seen."""
    length, late = min(reach, 1.1) * rng.uniform(0.85, 1.0), rng.uniform(*outside)
    radius = min(rng.uniform(0.09, 0.16), (1 - late) * length / (2 * REACH) - 0.01)
    if radius < 0.08:
        return None
    axis, far = int(rng.integers(2)), bool(rng.integers(2))
    along = rng.uniform(REACH * radius, extent[1 - axis] - REACH * radius, size=2)
    along[1] = along[0] + np.clip(along[1] - along[0], -0.1, 0.1)
    depth = np.array([-REACH * radius - late * length, (1 - late) * length - REACH * radius])
    if depth[1] > extent[axis] - REACH * radius:
        return None
    across = extent[axis] - depth if far else depth
    ends = [np.array((across[i], along[i]) if axis == 0 else (along[i], across[i])) for i in range(2)]
    return [_shape(ends[0], ends[1], (radius, radius))]


def _reversed(shape: Shape) -> Shape:
    return replace(shape, start=shape.end, end=shape.start, radius=shape.radius[::-1])
