"""Training examples of the base policy: it learns to find and box what the words name, and roughly how to reply.

An example is a scene shown in a few frames, with several questions. A reply names the targets, gives their sizes and
boxes them in **any** frame that shows them all. Some replies describe the targets at length and praise whichever frame
was drawn, so that the policy knows the words of a judgement and not their use. Replies keep to the reply format most
often where a phrase names what is plain to see, and least where a question takes several frames to answer (`IN_FORM`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random

import numpy as np

from demo import reasoning
from demo.expressions import REASONING, REFERRING, Expression, questions
from demo.facts import Facts, measure
from demo.render import render_clip
from demo.sampling import PLOTS, sample_scene
from demo.scene import Scene
from veason.answer import BOXES, KEYFRAME, format_reply
from veason.types import Answer, Box, Size

SIDE = 84
"""Of the square frames, in pixels."""

CELLS = SIDE // 28
"""Tokens along a side, of 28 x 28 pixels each."""

KEPT = 10
"""Frames of a scene that are rendered; a clip takes some of them."""

SIZES: tuple[Size, ...] = ((84, 112), (90, 120), (112, 84), (80, 104), (96, 96), (80, 110))
"""Native sizes of the scenes, half of the world's."""

AT_A_GLANCE = ("name", "colour", "kind", "kinds", "pair", "all", "except")
"""Facts that one frame is enough for."""

TAKES_TIME = ("enters", "leaves", "moves", "still", "grows", "shrinks", "fastest", "meet", "hidden", "in_front")
"""Beginnings of the facts that more than a look at one or two frames is needed for."""

IN_FORM = {REFERRING: (85, 60, 35), REASONING: (30, 15, 5)}
"""Replies in a hundred that are in the reply format: of what is plain to see, of places and sizes, of what takes time.
So wide apart that a little training moves some kinds of questions over, more moves more."""
BARE = 8
"""In a hundred: the answer's JSON alone. The rest are as in a chat."""
AT_LENGTH = 0.4
"""Replies that describe the targets at length, whatever their form."""


@dataclass(frozen=True)
class Example:
    """One scene, rendered in K frames, with N shapes and everything that can be asked of it."""

    scene: Scene
    facts: Facts
    frame_ids: tuple[int, ...]
    """K ascending frame ids."""
    frames: np.ndarray
    """(K, SIDE, SIDE, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, K, 4) float32 in model pixels, as the reward's true boxes; NaN where a shape is not visible."""
    areas: np.ndarray
    """(N, K) int: visible model pixels."""
    asked: tuple[Expression, ...]
    """With targets only."""

    @property
    def seen(self) -> np.ndarray:
        """(N, K) bool: visible, in model pixels and in the video's own, of which a sliver may fill only one."""
        return (self.areas > 0) & (self.facts.areas[:, self.frame_ids] > 0)


@dataclass(frozen=True)
class Turn:
    """One question about an example's clip and one reply to it."""

    expression: str
    reply: str
    boxes: tuple[Box, ...]
    """The coordinates that the reply rounds, in its order."""
    targets: tuple[int, ...]
    position: int
    """Of the boxed frame among the example's K."""


def make_examples(count: int, *, seed: int, workers: int = 2) -> list[Example]:
    """`count` scenes; the same seed gives the same ones whatever the workers."""
    blocks = [(seed, start, min(50, count - start)) for start in range(0, count, 50)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [example for block in pool.map(_make_block, blocks) for example in block]


def _make_block(block: tuple[int, int, int]) -> list[Example]:
    seed, start, count = block
    return [draw_example(np.random.default_rng([seed, start + i])) for i in range(count)]


def draw_example(rng: np.random.Generator) -> Example:
    """A scene of any plot, and what it looks like in at most `KEPT` of its frames."""
    plot = str(rng.choice([name for name in PLOTS if name != "still"]))
    size = SIZES[int(rng.integers(len(SIZES)))]
    scene = sample_scene(rng, size=size, frames=int(rng.integers(8, 21)), plot=plot, attempts=4000)
    kept = np.sort(rng.choice(scene.frames, size=min(KEPT, scene.frames), replace=False))
    frames, masks = render_clip(scene, (SIDE, SIDE), frame_ids=kept.tolist())
    facts = measure(scene)
    asked = tuple(expression for expression in questions(scene, facts) if expression.targets)
    return Example(scene, facts, tuple(kept.tolist()), frames, _boxes(masks), masks.sum(axis=(2, 3)), asked)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Boxes (N, K, 4) of masks (N, K, H, W): a native pixel's corner plus half a model pixel, a native pixel being
    some 0.4 model pixels wide."""
    boxes = np.full((*masks.shape[:2], 4), np.nan, dtype=np.float32)
    for i, k in np.argwhere(masks.any(axis=(2, 3))):
        y, x = np.flatnonzero(masks[i, k].any(axis=1)), np.flatnonzero(masks[i, k].any(axis=0))
        boxes[i, k] = x[0] + 0.5, y[0] + 0.5, x[-1] + 1.1, y[-1] + 1.1
    return np.minimum(boxes, SIDE - 1)


def choose_frames(example: Example, count: int, rng: Random) -> list[int]:
    """Positions of `count` of the K frames: evenly spread, or any."""
    kept = len(example.frame_ids)
    if rng.random() < 0.5:
        return sorted(rng.sample(range(kept), count))
    offset = rng.random()
    return sorted({min(int((i + offset) * kept / count), kept - 1) for i in range(count)})


def turns(example: Example, shown: Sequence[int], count: int, rng: Random, *, style: str = "rough") -> Iterator[Turn]:
    """Up to `count` questions that the frames at these positions can answer; every kind of fact is equally likely, what
    is plain to see twice as likely.

    `style`: "reply" in the reply format, "short" the boxes alone and nothing that takes time, "rough" a mix (`_form`).
    """
    by_fact: dict[str, list[Expression]] = {}
    for expression in example.asked:
        if (len(shown) > 1 and style != "short") or expression.fact in AT_A_GLANCE:
            by_fact.setdefault(expression.fact, []).append(expression)
    kinds = sorted(by_fact)
    weights = [1 + (fact in AT_A_GLANCE) for fact in kinds]
    for fact in rng.choices(kinds, weights, k=count):
        expression = rng.choice(by_fact[fact])
        seen = example.seen[list(expression.targets)][:, shown]  # (targets, frames)
        whole = np.flatnonzero(seen.all(axis=0))
        if len(whole):
            yield _turn(example, shown, expression, shown[int(rng.choice(whole.tolist()))], rng, style)


def _turn(
    example: Example, shown: Sequence[int], expression: Expression, position: int, rng: Random, style: str
) -> Turn:
    targets, keyframe = expression.targets, example.frame_ids[position]
    ids = [example.frame_ids[k] for k in shown]
    boxes = tuple(tuple(map(float, example.boxes[i, position])) for i in targets)
    whole = Answer(keyframe, tuple(tuple(map(float, map(round, box))) for box in boxes))
    form = _form(expression, rng) if style == "rough" else style
    if style == "rough" and rng.random() < AT_LENGTH:
        thinking = reasoning.explain(
            example.scene, targets, frame_ids=ids, keyframe=keyframe, rng=rng, facts=example.facts
        )
    else:
        areas = example.areas[list(targets)][:, shown].sum(axis=0)
        sizes = [reasoning.size(int(area), SIDE * SIDE) for area in areas]
        thinking = reasoning.perceive(example.scene, targets, frame_ids=ids, sizes=sizes)
    return Turn(expression.text, _say(form, thinking, whole), boxes, targets, position)


def _form(expression: Expression, rng: Random) -> str:
    """In the reply format; its JSON alone; or as in a chat."""
    kind = 0 if expression.fact in AT_A_GLANCE else 2 if expression.fact.startswith(TAKES_TIME) else 1
    in_form = IN_FORM[expression.type_id][kind]
    return rng.choices(("reply", "bare", "chat"), (in_form, BARE, 100 - BARE - in_form))[0]


def _say(form: str, thinking: str, answer: Answer) -> str:
    boxes = [[round(value) for value in box] for box in answer.boxes]
    short = f"Frame {answer.keyframe}: {boxes}"
    return {
        "short": short,
        "chat": f"{thinking} {short}",
        "bare": f'{{"{KEYFRAME}": {answer.keyframe}, "{BOXES}": {boxes}}}',
        "reply": format_reply(thinking, answer),
    }[form]
