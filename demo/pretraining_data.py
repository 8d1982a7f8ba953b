"""Makes the training examples of the base policy, from which it learns to box named objects and roughly how to reply.

An example is a scene shown in a few frames, with several questions. A reply names the targets, gives their sizes and
boxes them in **any** frame that shows them all. Some replies describe the targets at length and call whichever frame
was drawn the best one, so that the policy learns these words but not the choice of the keyframe. Replies follow the
reply format most often for phrases that one frame answers, and least for questions that need several (`IN_FORMAT`).
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
"""Side of the square frames, in pixels."""

CELLS = SIDE // 28
"""Number of tokens along a side, each of 28 x 28 pixels."""

KEPT = 10
"""Number of frames of a scene that are rendered; a clip takes some of them."""

SIZES: tuple[Size, ...] = ((84, 112), (90, 120), (112, 84), (80, 104), (96, 96), (80, 110))
"""Native sizes of the scenes, half of those of a world."""

ONE_FRAME = ("name", "colour", "kind", "kinds", "pair", "all", "except")
"""Facts that one frame shows."""

SEVERAL_FRAMES = ("enters", "leaves", "moves", "still", "grows", "shrinks", "fastest", "meet", "hidden", "in_front")
"""Prefixes of the facts that take several frames to see."""

IN_FORMAT = {REFERRING: (85, 60, 35), REASONING: (30, 15, 5)}
"""Percentage of replies in the reply format: facts of one frame, places and sizes, facts of several frames. They differ
so much that a little training changes some kinds of questions, and more training more of them."""
BARE_PERCENT = 8
"""Percentage of replies that are the answer's JSON alone. All others are free text."""
LONG_SHARE = 0.4
"""Share of the replies that describe the targets at length, in any format."""


@dataclass(frozen=True)
class Example:
    """One scene of N shapes, rendered in K frames, with all expressions that can be asked of it."""

    scene: Scene
    facts: Facts
    frame_ids: tuple[int, ...]
    """K ascending frame ids."""
    frames: np.ndarray
    """(K, SIDE, SIDE, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, K, 4) float32 in model pixels, as the reward computes true boxes; NaN where a shape is not visible."""
    areas: np.ndarray
    """(N, K) int: number of visible model pixels."""
    asked: tuple[Expression, ...]
    """Expressions that have targets."""

    @property
    def seen(self) -> np.ndarray:
        """(N, K) bool: visible both in model pixels and in native pixels; a sliver may be visible in only one."""
        return (self.areas > 0) & (self.facts.areas[:, self.frame_ids] > 0)


@dataclass(frozen=True)
class Turn:
    """One question about an example's clip and one reply to it."""

    expression: str
    reply: str
    boxes: tuple[Box, ...]
    """Boxes of the reply before rounding, in its order."""
    targets: tuple[int, ...]
    position: int
    """Index of the boxed frame among the example's K."""


def make_examples(count: int, *, seed: int, workers: int = 2) -> list[Example]:
    """Draw `count` examples in worker processes; they depend on the seed alone."""
    rngs = (np.random.default_rng([seed, i]) for i in range(count))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(draw_example, rngs, chunksize=50))


def draw_example(rng: np.random.Generator) -> Example:
    """Draw a scene of any plot and render at most `KEPT` of its frames."""
    plot = str(rng.choice([name for name in PLOTS if name != "still"]))
    size = SIZES[int(rng.integers(len(SIZES)))]
    scene = sample_scene(rng, size=size, frames=int(rng.integers(8, 21)), plot=plot, attempts=4000)
    kept = np.sort(rng.choice(scene.frames, size=min(KEPT, scene.frames), replace=False))
    frames, masks = render_clip(scene, (SIDE, SIDE), frame_ids=kept.tolist())
    facts = measure(scene)
    asked = tuple(expression for expression in questions(scene, facts) if expression.targets)
    return Example(scene, facts, tuple(kept.tolist()), frames, _boxes(masks), masks.sum(axis=(2, 3)), asked)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return boxes (N, K, 4) of masks (N, K, H, W), as the reward computes true boxes from native ones.

    It is a native pixel's corner plus half a model pixel, a native pixel being some 0.4 model pixels wide.
    """
    boxes = np.full((*masks.shape[:2], 4), np.nan, dtype=np.float32)
    for i, k in np.argwhere(masks.any(axis=(2, 3))):
        y, x = np.flatnonzero(masks[i, k].any(axis=1)), np.flatnonzero(masks[i, k].any(axis=0))
        boxes[i, k] = x[0] + 0.5, y[0] + 0.5, x[-1] + 1.1, y[-1] + 1.1
    return np.minimum(boxes, SIDE - 1)


def choose_frames(example: Example, count: int, rng: Random) -> list[int]:
    """Choose indices of `count` of the K frames: half of the time evenly spread, else at random."""
    kept = len(example.frame_ids)
    if rng.random() < 0.5:
        return sorted(rng.sample(range(kept), count))
    offset = rng.random()
    return sorted({min(int((i + offset) * kept / count), kept - 1) for i in range(count)})


def turns(example: Example, shown: Sequence[int], count: int, rng: Random, *, style: str = "rough") -> Iterator[Turn]:
    """Draw up to `count` questions that the frames `shown` (indices) can answer, and reply to them.

    Every kind of fact is equally likely, those of one frame twice as likely. `style`: "reply" is the reply format,
    "short" the boxes alone and only facts of one frame, "rough" a mix of formats.
    """
    by_fact: dict[str, list[Expression]] = {}
    for expression in example.asked:
        if (len(shown) > 1 and style != "short") or expression.fact in ONE_FRAME:
            by_fact.setdefault(expression.fact, []).append(expression)
    kinds = sorted(by_fact)
    weights = [1 + (fact in ONE_FRAME) for fact in kinds]
    ids = [example.frame_ids[k] for k in shown]
    for fact in rng.choices(kinds, weights, k=count):
        expression = rng.choice(by_fact[fact])
        targets = expression.targets
        seen = example.seen[list(targets)][:, shown]  # (targets, frames)
        whole = np.flatnonzero(seen.all(axis=0))
        if not len(whole):
            continue
        position = shown[int(rng.choice(whole.tolist()))]
        keyframe = example.frame_ids[position]
        format_ = _draw_format(expression, rng) if style == "rough" else style
        if style == "rough" and rng.random() < LONG_SHARE:
            thinking = reasoning.explain(
                example.scene, targets, frame_ids=ids, keyframe=keyframe, rng=rng, facts=example.facts
            )
        else:
            areas = example.areas[list(targets)][:, shown].sum(axis=0)
            sizes = [reasoning.size(int(area), SIDE * SIDE) for area in areas]
            thinking = reasoning.perceive(example.scene, targets, frame_ids=ids, sizes=sizes)
        corners = [[float(value) for value in example.boxes[i, position]] for i in targets]
        boxes = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in corners)
        reply = _reply(format_, thinking, keyframe, boxes)
        yield Turn(expression.text, reply, boxes, targets, position)


def _draw_format(expression: Expression, rng: Random) -> str:
    """Draw the format of a reply: "reply", "bare" or "chat"."""
    kind = 0 if expression.fact in ONE_FRAME else 2 if expression.fact.startswith(SEVERAL_FRAMES) else 1
    percent = IN_FORMAT[expression.type_id][kind]
    return rng.choices(("reply", "bare", "chat"), (percent, BARE_PERCENT, 100 - BARE_PERCENT - percent))[0]


def _reply(format_: str, thinking: str, keyframe: int, boxes: tuple[Box, ...]) -> str:
    """Write a reply in the format "reply", "bare", "chat" or "short"."""
    rounded = [[round(value) for value in box] for box in boxes]
    short = f"Frame {keyframe}: {rounded}"
    if format_ == "short":
        return short
    if format_ == "chat":
        return f"{thinking} {short}"
    if format_ == "bare":
        return f'{{"{KEYFRAME}": {keyframe}, "{BOXES}": {rounded}}}'
    answer = Answer(keyframe, tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in rounded))
    return format_reply(thinking, answer)
