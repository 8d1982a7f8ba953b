"""Holds the teacher's prompt: the frames with their timestamps, three steps to reason through, one worked example.

The lines ``Expression: …`` and ``Keyframe: …s`` occur once in the instructions, each on a line of its own, so that a
test teacher can read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any

from veason.types import Clip

SYSTEM = "You explain, patiently and exactly, how somebody finds an object in a video."

INSTRUCTIONS = """\
Above are {count} frames of one video in order of time, each after its timestamp. A sentence about the video means \
one object or several: the target. In every frame where the target is visible, it is enclosed in red boxes. They were \
added for you; the video has none, and nobody who reads your text will see them.

Expression: {expression}
Keyframe: {keyframe}s

Write down the reasoning of a careful viewer who has only the plain frames and the expression and has to find out the \
target and the best frame to point it out in. Three steps, one paragraph each:
1. What happens in the video: what there is to see, what moves or changes from frame to frame, and which part of it \
the expression asks about.
2. Why the keyframe: what makes {keyframe}s, among the frames shown, the right frame to see the target in, such as \
its size, its sharpness, or how much of it is hidden.
3. Where the target is and what it does: its place in the picture at {keyframe}s, its looks, its action, and how it \
differs from whatever could be mistaken for it. If the target is several objects, every one of them.

Rules:
- English prose, 80 to 220 words altogether. No headings, no lists, no tags, no JSON, no coordinates.
- Not a word about red boxes, outlines, marks or annotations, nor about having been told the target or the keyframe.
- Frames are called by their timestamps, as in "at {keyframe}s", and no other frame is called the keyframe.
- Only what the frames show. What you cannot make out, leave out.

The manner in which to write, shown on another video (take over neither its content nor its phrases):
{example}"""

EXAMPLES = {
    "account": """\
A kitchen counter is filmed from one side. At 0s two kittens sit next to a bowl; from 4s on the grey one stretches \
towards the shelf above, and by 12s it has left the counter while the striped one still sniffs at the bowl. The \
expression asks which of them will jump, so the change between 8s and 12s is what matters.
The grey kitten is in view from 0s to 8s. At 0s half of it is behind the bowl, and at 12s only its tail is left at \
the upper border. At 8s it is drawn up to its full length and nothing covers it, which makes 8s the keyframe.
At 8s the kitten stands a little right of the middle, hind legs on the counter and front paws against the shelf. Its \
plain grey coat tells it from the striped kitten at the lower left, which keeps all four feet on the counter.""",
    "elimination": """\
Who could be meant? Four cyclists pass a corner between 0s and 15s. The expression speaks of the one who gives way, \
so somebody has to slow down or swerve. The two in front keep their distance all along; of the two behind, one moves \
out to the kerb at 6s and stays there until the other has passed at 9s.
At 3s this rider is still hidden behind the others, and at 12s small in the distance. That leaves 6s and 9s. In both \
the rider is whole, but at 6s closer to the camera and free of the bicycle that overtakes, so 6s is the keyframe.
At 6s the rider is on the far left, close to the kerb, leaning slightly with the head turned back. It cannot be the \
rider in the middle of the road, who wears a similar dark jacket but looks straight ahead and gains on everybody.""",
    "walkthrough": """\
First the story. At 0s a tray with three cups stands on a table. A hand comes in from the right at 5s, lifts one cup, \
and at 10s puts it down beside the tray; the other cups are never touched. Being moved is what the expression is \
about, so the target must be the cup in the hand.
Next the moment. The fingers wrap around the cup at 5s and hide most of it. At 15s it stands free, but the hand's \
shadow falls across it. At 10s its whole side, handle included, faces the camera in good light. I take 10s as the \
keyframe.
Last the place. At 10s the cup stands to the right of the tray, near the lower border, with the fingertips just \
letting go of its rim. It is white with a thin blue line; the cups on the tray look the same, and only their place, \
untouched on the tray from the first frame to the last, sets them apart.""",
}
"""Worked examples by style; one is drawn per sample, so that the chains of thought vary in style."""


def draw_style(rng: Random) -> str:
    """Draws the name of a worked example."""
    return rng.choice(sorted(EXAMPLES))


def instructions(expression: str, *, keyframe: int, count: int, style: str) -> str:
    """Returns the text after the `count` frames."""
    line = " ".join(expression.split())  # the expression stays on its own line
    return INSTRUCTIONS.format(expression=line, keyframe=keyframe, count=count, example=EXAMPLES[style])


def messages(expression: str, clip: Clip, urls: Sequence[str], *, keyframe: int, style: str) -> list[dict[str, Any]]:
    """Builds the chat request: the timestamp and the picture of each shown frame, then the instructions."""
    content: list[dict[str, Any]] = []
    for frame_id, url in zip(clip.frame_ids, urls, strict=True):
        content.append({"type": "text", "text": f"({frame_id}s)"})
        content.append({"type": "image_url", "image_url": {"url": url}})
    text = instructions(expression, keyframe=keyframe, count=len(clip), style=style)
    content.append({"type": "text", "text": text})
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def fingerprint() -> str:
    """Returns a short hash of the prompt's wording: answers to two wordings do not belong in one file."""
    return hashlib.sha256("\n".join([SYSTEM, INSTRUCTIONS, *EXAMPLES.values()]).encode()).hexdigest()[:16]
