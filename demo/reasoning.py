"""Writes true sentences about shapes of a scene: their names, what they do, their sizes and places.

`explain` writes a whole chain of thought in randomly chosen words; `perceive` names the shapes and their sizes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from demo.facts import NEVER, Facts, measure
from demo.scene import Scene

NAME_SENTENCES = ("The target is {names}.", "I see {names}.", "This is {names}.")
KEYFRAME_SENTENCES = ("The keyframe is {k}s.", "At {k}s {it} {is} seen best.", "{It} {is} best seen at {k}s.")
MIN_GROWTH, MIN_DISPLACEMENT = 0.3, 0.1
"""Growth (logarithm of the areas' ratio) and displacement (short sides) below these are not mentioned."""


def explain(
    scene: Scene,
    targets: Sequence[int],
    *,
    frame_ids: Sequence[int],
    keyframe: int,
    rng: Random,
    facts: Facts | None = None,
) -> str:
    """Writes a chain of thought: what the target is and does, why this keyframe, where the target is in it.

    `targets`: indices of shapes. `frame_ids`: the shown frames, of which `keyframe` is one that shows a target.
    `facts`: the measures of the scene; None measures them.
    """
    facts = facts or measure(scene)
    many = len(targets) > 1
    words = {"names": names(scene, targets), "k": keyframe}
    words |= {"it": "they", "It": "They", "is": "are"} if many else {"it": "it", "It": "It", "is": "is"}
    sentences = [
        rng.choice(NAME_SENTENCES).format(**words),
        *actions(facts, targets),
        sizes_sentence(facts, targets, frame_ids),
        rng.choice(KEYFRAME_SENTENCES).format(**words),
        *places(scene, facts, targets, keyframe),
    ]
    return " ".join(sentences)


def perceive(scene: Scene, targets: Sequence[int], *, frame_ids: Sequence[int], sizes: Sequence[int]) -> str:
    """Names the targets and their size in each shown frame, without a word on which frame is best."""
    return f"This is {names(scene, targets)}. {sizes_text(frame_ids, sizes)}"


def names(scene: Scene, targets: Sequence[int]) -> str:
    """Lists the targets: ``the red circle, the blue star and the pink square``."""
    each = [f"the {scene.shapes[i].name}" for i in targets]
    return " and ".join([", ".join(each[:-1]), each[-1]] if len(each) > 1 else each)


def sizes_sentence(facts: Facts, targets: Sequence[int], frame_ids: Sequence[int]) -> str:
    """States frame ids and the `size` of all targets together: ``Sizes 0:12, 3:15.``"""
    areas = [int(facts.areas[list(targets), t].sum()) for t in frame_ids]
    return sizes_text(frame_ids, [size(area, facts.pixels) for area in areas])


def sizes_text(frame_ids: Sequence[int], sizes: Sequence[int]) -> str:
    return f"Sizes {', '.join(f'{t}:{value}' for t, value in zip(frame_ids, sizes, strict=True))}."


def size(area: float, pixels: int) -> int:
    """Returns the side of a square of this area, where the picture's is 100; 0 only if nothing is visible."""
    return max(round(100 * (area / pixels) ** 0.5), int(area > 0))


def actions(facts: Facts, targets: Sequence[int]) -> Iterator[str]:
    """Yields one sentence on the actions that all targets share: ``It grows and moves to the left.``"""
    each: list[list[str]] = []
    for shape in targets:
        found = []
        if facts.leaves(shape) not in (None, NEVER):
            found.append("leaves the picture")
        if facts.enters(shape) not in (None, NEVER):
            found.append("comes into the picture")
        growth = facts.growth(shape)
        if growth is not None and abs(np.log(growth)) >= MIN_GROWTH:
            found.append("grows" if growth > 1 else "shrinks")
        way = facts.displacement(shape)
        if way is not None and np.abs(way).max() >= MIN_DISPLACEMENT:
            if abs(way[0]) >= abs(way[1]):
                found.append("moves to the left" if way[0] < 0 else "moves to the right")
            else:
                found.append("moves upwards" if way[1] < 0 else "moves downwards")
        each.append(found)
    shared = [verb for verb in each[0] if all(verb in found for found in each)]
    if not shared:
        return
    verbs = " and ".join(shared[:2])
    if len(targets) == 1:
        yield f"It {verbs}."
    else:
        plural = {"grows": "grow", "shrinks": "shrink", "moves": "move", "leaves": "leave", "comes": "come"}
        yield "They " + " ".join(plural.get(word, word) for word in verbs.split()) + "."


def places(scene: Scene, facts: Facts, targets: Sequence[int], frame_id: int) -> Iterator[str]:
    """Yields where a lone target is in a frame: ``It is at the top left.``"""
    if len(targets) != 1:
        return
    x, y = facts.centres[targets[0], frame_id] * min(scene.size) / np.array(scene.size[::-1])  # shares
    across, down = (("left", "", "right")[_third(x)], ("top", "", "bottom")[_third(y)])
    if down:
        yield f"It is at the {down} {across}".rstrip() + "."
    else:
        yield f"It is on the {across}." if across else "It is in the middle."


def _third(share: float) -> int:
    return min(int(3 * share), 2)
