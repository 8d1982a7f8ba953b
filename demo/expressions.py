"""Generates the expressions that can be asked of a scene: each is measured to be true, and its answer is clear.

Every rule below reads the facts of *all* shapes and asks only where each shape is clearly on one side: "growing" needs
one shape well above 1 and all others at 1. A scene with a shape in between gets no such question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from demo.facts import NEVER, Facts, measure
from demo.scene import COLOURS, KINDS, Scene

T = TypeVar("T")

REFERRING, REASONING, ABSENT = 0, 1, 2

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True)
class Expression:
    """A sentence about a scene, with its true targets."""

    text: str
    targets: tuple[int, ...]
    """Indices of shapes, ascending; empty where the scene has no such shape."""
    type_id: int
    """0 referring, 1 reasoning (a question), 2 absent target."""
    fact: str
    """The kind of fact that makes it true: "kind", "grows", "leaves_first" …"""


def questions(scene: Scene, facts: Facts | None = None) -> list[Expression]:
    """Returns everything that can be asked of a scene, always in the same order."""
    facts = measure(scene) if facts is None else facts
    return [
        *_names(scene),
        *_places_and_sizes(scene, facts),
        *_changes(scene, facts),
        *_borders_and_overlaps(scene, facts),
    ]


def _ask(fact: str, targets: list[int], statement: str, question: str) -> Iterator[Expression]:
    """Yields the same fact as a phrase that refers and as a question; both are of type 2 without a target."""
    found = tuple(sorted(targets))
    yield Expression(statement, found, REFERRING if found else ABSENT, fact)
    yield Expression(question, found, REASONING if found else ABSENT, fact)


def _names(scene: Scene) -> Iterator[Expression]:
    """Yields expressions that need no measuring: single shapes, groups, and shapes that are absent."""
    everyone = tuple(range(len(scene.shapes)))
    names = [shape.name for shape in scene.shapes]
    kinds = [shape.kind for shape in scene.shapes]
    for i, shape in enumerate(scene.shapes):
        yield Expression(f"the {shape.name}", (i,), REFERRING, "name")
        yield Expression(f"the {shape.colour} shape", (i,), REFERRING, "colour")
        yield Expression(f"which shape is {shape.colour}?", (i,), REASONING, "colour")
        if kinds.count(shape.kind) == 1:
            yield Expression(f"the {shape.kind}", (i,), REFERRING, "kind")
            yield Expression(f"which of the shapes is {_a(shape.kind)}?", (i,), REASONING, "kind")

    if len(everyone) >= 2:
        yield Expression("all shapes", everyone, REFERRING, "all")
        yield Expression(f"the {names[0]} and the {names[1]}", (0, 1), REFERRING, "pair")
    for kind in dict.fromkeys(kinds):
        same = tuple(i for i in everyone if kinds[i] == kind)
        if len(same) >= 2:
            yield Expression(f"the {NUMBERS[len(same)]} {kind}s", same, REFERRING, "kinds")
            yield Expression(f"which shapes are {kind}s?", same, REASONING, "kinds")
    if len(everyone) >= 3:
        for i in everyone:
            others = tuple(j for j in everyone if j != i)
            yield Expression(f"all shapes except the {names[i]}", others, REFERRING, "except")

    # absent: near misses first, a colour of the scene with a kind it does not have, then colours that are not there
    for i, shape in enumerate(scene.shapes):
        other = KINDS[(KINDS.index(shape.kind) + 1 + i % 2) % len(KINDS)]
        yield Expression(f"the {shape.colour} {other}", (), ABSENT, "name")
    missing = [colour for colour in COLOURS if colour not in {shape.colour for shape in scene.shapes}]
    for i in range(3):
        colour = missing[(scene.grain + i) % len(missing)]
        yield Expression(f"the {colour} {KINDS[(scene.grain + i) % len(KINDS)]}", (), ABSENT, "name")
    for kind in KINDS:
        if kind not in kinds:
            yield Expression(f"which of the shapes is {_a(kind)}?", (), ABSENT, "kind")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _places_and_sizes(scene: Scene, facts: Facts) -> Iterator[Expression]:
    """Yields who is far left, far right, top, bottom, largest, smallest: throughout, or in the first and last frame."""
    moments = ((0, "at the beginning"), (-1, "at the end")) if scene.frames > 1 else ()
    sides = {"far left": (0, -1), "far right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
    for name, (axis, sign) in sides.items():
        where = f"on the {name}" if axis == 0 else f"at the {name}"
        along, edge = sign * facts.centres[:, :, axis], sign * facts.boxes[:, :, axis + (2 if sign > 0 else 0)]
        fact = name.replace(" ", "_")
        each = [_winner(along[:, t], 0.1, facts, t) for t in range(scene.frames)]
        each = [i if i is None or edge[i, t] == np.nanmax(edge[:, t]) else None for t, i in enumerate(each)]
        if len(set(each)) == 1 and each[0] is not None:
            most = {"far left": "leftmost", "far right": "rightmost", "top": "topmost", "bottom": "lowest"}[name]
            yield from _ask(fact, [each[0]], f"the {most} shape", f"which shape is {where} of the picture?")
            continue
        for t, when in moments:
            if (winner := each[t]) is not None:
                text = f"{where} of the picture {when}"
                yield from _ask(f"{fact}_{when[7:]}", [winner], f"the shape {text}", f"which shape is {text}?")

    size = np.log(np.where(facts.areas > 0, facts.areas, np.nan))
    whole = [facts.clear[facts.areas[:, t] > 0, t].all() for t in range(scene.frames)]
    for name, sign in (("largest", 1), ("smallest", -1)):
        each = [_winner(sign * size[:, t], np.log(1.35), facts, t) if whole[t] else None for t in range(scene.frames)]
        if len(set(each)) == 1 and each[0] is not None:
            yield from _ask(name, [each[0]], f"the {name} shape", f"which shape is the {name}?")
            continue
        for t, when in moments:
            if (winner := each[t]) is not None:
                text = f"the {name} {when}"
                yield from _ask(f"{name}_{when[7:]}", [winner], f"the shape that is {text}", f"which shape is {text}?")


def _winner(values: np.ndarray, margin: float, facts: Facts, t: int) -> int | None:
    """Returns the shape far ahead of all others seen in a frame; None without one, or if some shape is hardly seen."""
    seen = np.flatnonzero(facts.areas[:, t])
    hardly = facts.areas[seen, t] < 0.5 * facts.areas[seen].max(axis=1)
    shrunk = facts.clear[seen, t]  # small but whole
    if len(seen) < 2 or (hardly & ~shrunk).any():
        return None
    order = seen[np.argsort(values[seen])]
    return int(order[-1]) if values[order[-1]] - values[order[-2]] >= margin else None


def _changes(scene: Scene, facts: Facts) -> Iterator[Expression]:
    """Yields who grows, shrinks, moves one way, is the fastest, or does not move."""
    everyone = range(len(scene.shapes))
    growth = _known(facts.growth(i) for i in everyone)
    if growth is not None:
        for fact, verb, sign in (("grows", "growing", 1), ("shrinks", "shrinking", -1)):
            found = _clear_winners([sign * float(np.log(ratio)) for ratio in growth], 0.35, 0.08)
            if found is not None:
                yield from _either(fact, found, f"that {{is|are}} {verb}", f"{{is|are}} {verb}?")

    if facts.areas.max() > 0.5 * facts.pixels:
        return  # one outgrows the picture: the visible rest does not show where it goes
    directions = (("to the left", 0, -1), ("to the right", 0, 1), ("upwards", 1, -1), ("downwards", 1, 1))
    ways = _known(facts.displacement(i) for i in everyone)
    for name, axis, sign in directions:
        if ways is None:
            break
        along = [float(sign * way[axis]) for way in ways]
        found = _clear_winners(along, 0.15, 0.05)
        if found is None or any(abs(ways[i][1 - axis]) > 0.6 * along[i] for i in found):
            continue  # one goes both ways
        fact = f"moves_{name.split()[-1]}"
        yield from _either(fact, found, f"that move{{s|}} {name}", f"move{{s|}} {name}?")
    speeds = _known(facts.speed(i) for i in everyone)
    if speeds is not None and len(speeds) >= 2:
        order = np.argsort(speeds)
        if speeds[order[-1]] >= max(1.5 * speeds[order[-2]], 0.015):
            yield from _ask("fastest", [int(order[-1])], "the fastest shape", "which shape moves the fastest?")

    if scene.frames == 1 or ways is None or growth is None:
        return
    moved = [float(np.linalg.norm(way)) for way in ways]
    if any(way < 0.12 and abs(np.log(ratio)) > 0.08 for way, ratio in zip(moved, growth, strict=True)):
        return  # one grows on the spot: it is unclear whether that counts as still
    found = _clear_winners([-m for m in moved], -0.02, -0.12)
    if found is not None:
        yield from _either("still", found, "that {does|do} not move", "{does|do} not move?")


def _borders_and_overlaps(scene: Scene, facts: Facts) -> Iterator[Expression]:
    """Yields who leaves the picture, enters it, crosses or hides another shape, or fills the picture."""
    everyone = range(len(scene.shapes))
    for fact, verb, frames in (
        ("leaves", "leave{s|} the picture", _known(facts.leaves(i) for i in everyone)),
        ("enters", "come{s|} into the picture later", _known(facts.enters(i) for i in everyone)),
    ):
        if scene.frames == 1 or frames is None:
            continue
        found = [i for i in everyone if frames[i] != NEVER]
        yield from _either(fact, found, f"that {verb}", f"{verb}?")
        order = sorted(found, key=frames.__getitem__)
        short = verb.replace("{s|}", "s").removesuffix(" later")
        for place, one, gap in (("first", order[:1], order[:2]), ("last", order[-1:], order[-2:])):
            if len(order) >= 2 and frames[gap[1]] - frames[gap[0]] >= 2 and not (fact == "enters" and place == "first"):
                text = f"{short} {place}"
                yield from _ask(f"{fact}_{place}", one, f"the one that {text}", f"which shape {text}?")

    hidden = facts.hidden.max(axis=1)
    meets = np.asarray(facts.meets.any(axis=2))  # (N, N)
    if not meets.any():
        yield from _ask("hidden", [], "the shape hidden by another one", "which shape is hidden by another one?")
    elif meets.sum() == 2:  # one pair
        back, front = (int(i) for i in np.flatnonzero(meets.any(axis=1)))  # shapes are ordered back to front
        if hidden[back] >= 0.25 and hidden[front] <= 0.03:
            name = scene.shapes[back].name
            yield from _ask("meet", [back, front], "the two shapes that cross", "which two shapes cross each other?")
            yield from _ask(
                "hidden", [back], "the shape hidden by another one", "which shape is hidden by another one?"
            )
            yield from _ask("in_front", [front], f"the shape in front of the {name}", f"which shape hides the {name}?")

    full = facts.areas.max(axis=1) == facts.pixels
    if full.sum() == 1:
        text = "fills the whole picture at the end"
        yield from _ask("fills", [int(np.argmax(full))], f"the shape that {text}", f"which shape {text}?")


def _known(values: Iterable[T | None]) -> list[T] | None:
    """Returns the values; None if one of them is unknown."""
    known = list(values)
    return None if any(value is None for value in known) else [value for value in known if value is not None]


def _clear_winners(values: list[float], yes: float, no: float) -> list[int] | None:
    """Returns the indices of values >= `yes` if all others are <= `no`; None if one is in between."""
    if any(no < value < yes for value in values):
        return None
    return [i for i, value in enumerate(values) if value >= yes]


def _either(fact: str, found: list[int], statement: str, question: str) -> Iterator[Expression]:
    """Asks in the singular for one shape or none, in the plural for several; "{one|many}" marks the choice."""
    plural = len(found) > 1
    noun, which = ("the shapes", "which shapes") if plural else ("the shape", "which shape")
    return _ask(fact, found, f"{noun} {_number(statement, plural)}", f"{which} {_number(question, plural)}")


def _number(text: str, plural: bool) -> str:
    while "{" in text:
        before, rest = text.split("{", 1)
        choice, after = rest.split("}", 1)
        text = before + choice.split("|")[plural] + after
    return text
