"""Decides which of the teacher's replies are fit to train on: `rejection` names the fault of one, or None.

The patterns are conservative where the target itself could be meant ("the red square moves") and strict where only the
drawn boxes can be ("the red bounding box"): a sound reply that is rejected costs a request, an unsound one that is
trained on teaches the policy to see boxes that do not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from veason.completion import Completion
from veason.early_stop import EarlyStop
from veason.errors import DataError
from veason.prompt import MARKS, REPLY_TAGS
from veason.safe_text import printable

MAX_CHARS = 8000
"""Most characters of a reply: about twice the length of the policy's 1024 tokens."""

REASONS = {
    "empty": "the reply is empty",
    "only_thinking": "the reply is nothing but the teacher's own thinking; raise --max-tokens, or start the server "
    "without its reasoning parser (vLLM: without --reasoning-parser)",
    "cut_off": "the reply was cut off: raise --max-tokens",
    "filtered": "the server withheld the reply",
    "too_long": f"the reply is longer than {MAX_CHARS} characters",
    "tags": "the reply holds tags of the reply format or control marks of the model",
    "mentions_boxes": "the reply mentions the boxes drawn for the teacher",
    "other_keyframe": "the reply calls another frame the keyframe",
}
"""The reasons by code, in the order in which they are checked."""

_AROUND = (
    r"(?:drawn|overlaid|around|surrounding|surrounds|enclosing|encloses|highlighting|indicating|outlining|marking)"
)
_BOXES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # a red box; "square" is missing on purpose, the target may be one
        r"\bred(?:[ -](?:colou?red|thin|dashed|solid|drawn|overlaid))*[ -]"
        r"(?P<word>box|rectangle|outline|frame|border|contour|overlay|annotation|highlighting|bounding|bbox)(?:es|s)?\b",
        rf"\bred (?P<word>square|circle|line)s? {_AROUND} (?!\(?\d)",
        r"\bred[ -](?P<word>outlined|boxed|bordered|highlighted|circled)\b",
        r"\b(?P<word>thin) red lines?\b",
        r"\b(?P<word>highlighted|outlined|marked|circled|boxed|enclosed|drawn|annotated|bordered|indicated) in "
        r"(?:the |a |thin |bright )*red\b",
        r"\b(?P<word>bounding)[ -]?box(?:es)?\b|\bb-?box(?:es)?\b",
        rf"\b(?P<word>box|rectangle|outline)(?:es|s)? (?:that )?(?:is |are |was |were )?{_AROUND}\b(?! \(?\d)",
        r"\b(?:drawn|overlaid|highlighted|annotated) (?P<word>box|rectangle|outline)(?:es|s)?\b",
        r"\b(?P<word>annotation|annotated|annotator|ground[- ]truth)s?\b",
        r"红色?.{0,3}框|边界框|标注框",
    )
]

_TIME = (
    r"(?:(?:timestamp|second|t ?=) ?\(?(?P<named>\d+(?:\.\d+)?)(?![\d:])|"
    r"\(?(?P<counted>\d+(?:\.\d+)?) ?(?:s|secs?|seconds?)\b)"
)
_KEYFRAME = r"\bkey[- ]?frame\b"
_LINK = (
    r"(?:is|was|as|at|be|of|should|must|would|will|lies|sits|falls|serves|works|makes|becomes|chosen|selected|taken|"
    r"picked|therefore|thus|then|clearly|simply|the|a|an|our|my|this|best|ideal|natural|right|obvious|clearest|frame|"
    r"moment|timestamp|time|video's)"
)
_NAMED = [
    re.compile(rf"{_KEYFRAME}(?:[ :=(]{{1,2}}{_LINK}\b){{0,7}}[ :=(]{{1,2}}{_TIME}", re.IGNORECASE),
    re.compile(rf"{_TIME}\)?(?: {_LINK}){{1,7}} {_KEYFRAME}", re.IGNORECASE),
    re.compile(
        r"\bkey[- ]?frame(?:'s)?[ _]time(?:stamp)?\"?(?: is| of| ?[:=]) ?(?P<named>\d+(?:\.\d+)?)(?![\d:])",
        re.IGNORECASE,
    ),
]
_CONSIDERED = re.compile(r"\b(?:not|than|instead of|neither|nor|over|if|unlike|why|were|cannot)\b[^.]*$", re.IGNORECASE)
"""Words before a frame that is considered and not chosen: "rather than taking 3s as the keyframe"."""


FIRST = 20
"""Number of answers after which a run stops if all of them were unfit for one reason."""


class FirstReplies:
    """Stops a run whose first answers are all unfit for the same reason."""

    def __init__(self) -> None:
        self._first = EarlyStop(FIRST)

    def add(self, reason: str | None, text: str) -> None:
        """Counts one answer by its reason code; None is fit. Raises a DataError at the last of `FIRST` unfit ones."""
        if self._first.add(reason) and reason is not None:
            raise DataError(
                f"the first {FIRST} answers are all unusable for one reason: {REASONS[reason]}; no more requests "
                f"are sent. All answers are kept; the last one was {printable(text, limit=200)!r}"
            )


def rejection(reply: Completion, *, expression: str, keyframe: int) -> str | None:
    """Returns the code of the first fault of a reply (`REASONS`), None if it is fit; linear time for any text."""
    text = reply.text
    if reply.finish_reason == "length":
        return "cut_off"
    if reply.finish_reason == "content_filter":
        return "filtered"
    if not text.strip():
        return "only_thinking" if reply.reasoning.strip() else "empty"
    if len(text) > MAX_CHARS:
        return "too_long"
    if REPLY_TAGS.search(text) or MARKS.search(text):
        return "tags"
    text = " ".join(text.replace("*", "").split())  # one space between words, no emphasis: fewer cases below
    if mentions_boxes(text, expression):
        return "mentions_boxes"
    if any(time != keyframe for time in keyframes_named(text)):
        return "other_keyframe"
    return None


def mentions_boxes(text: str, expression: str) -> bool:
    """Checks if the text mentions the drawn boxes. Words of the expression itself ("the red box") do not count."""
    words = re.findall(r"\w+", expression.lower())
    own = {form for word in words for form in (word, word.removesuffix("s"), word.removesuffix("es"))}
    matches = (match for pattern in _BOXES for match in pattern.finditer(text))
    return any((match.groupdict().get("word") or "").lower() not in own for match in matches)


def keyframes_named(text: str) -> Iterator[float]:
    """Yields timestamps that the text calls the keyframe: "the keyframe is 12s" or "12s is the keyframe"."""
    for pattern in _NAMED:
        for match in pattern.finditer(text):
            if not _CONSIDERED.search(text[max(0, match.start() - 30) : match.start()]):
                yield float(match["named"] or match["counted"])
