"""Finds the sample of a synthetic world that a chat request is about, by its expression and its pictures.

The teacher is shown pictures that were shrunk, compressed and drawn upon in red. A picture is therefore stored as a
thumbnail of `GRID` x `GRID` mean colours, and a cell whose colour is mixed with pure red counts as unchanged.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from veason import frames, prompt
from veason.datasets.revos import ReVOS
from veason.errors import DataError
from veason.types import VideoSample

GRID = 12
"""Cells of a thumbnail along each side."""
TOLERANCE = 16.0
"""Most grey levels by which all but a twentieth of the cells may be off. Measured: known pictures with boxes, at JPEG
quality 50 and six tenths of their size, stay below 13; pictures of other scenes start at 20."""
RED_SHARE = 0.6
"""Largest share of a cell that drawn lines may cover: two pixels along each of two sides, in a small picture."""

MAX_PICTURES = 64
MAX_PICTURE_BYTES = 4 << 20
MAX_PIXELS = 4 << 20
"""Most pixels of one picture: 2048 x 2048."""

_RED = np.array([255, 0, 0], dtype=np.float32)
_TIMESTAMP = re.compile(r"(?<!\d)(\d{1,9})s\b")
_DATA_URL = re.compile(r"data:image/(?:jpe?g|png);base64,")
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Exceptions that Pillow raises on hostile pictures."""


class InquiryError(ValueError):
    """Raised for a request that cannot be understood; the message says what arrived and what was wanted."""


@dataclass(frozen=True)
class Inquiry:
    """A question to the teacher: frames with their timestamps, an expression, a keyframe."""

    expression: str
    keyframe: int
    """Frame id, one of `frame_ids`."""
    frame_ids: tuple[int, ...]
    """Frame ids in the order of the request."""
    thumbnails: np.ndarray = field(repr=False)
    """(K, GRID, GRID, 3) float32: mean colours of the pictures."""
    size_tokens: int
    """Rough length of the question in tokens: words, and a token for every 28 x 28 pixels."""


def read_inquiry(messages: object) -> Inquiry:
    """Reads the inquiry in a chat request's `messages`.

    They hold a text with ``(12s)`` before each picture, and after the last one the lines ``Expression: …`` and
    ``Keyframe: 12s``.
    """
    stamps: list[int] = []
    pictures: list[tuple[np.ndarray, int]] = []
    text, tokens = "", 0
    for kind, value in _parts(messages):
        if kind == "text":
            text += f"{value}\n"
            continue
        if len(pictures) == MAX_PICTURES:
            raise InquiryError(f"more than {MAX_PICTURES} pictures; show fewer")
        before = _TIMESTAMP.findall(text)
        if not before:
            raise InquiryError(
                f"picture {len(pictures) + 1} has no timestamp; put a text such as (12s) before it, "
                f"found {_short(text)}"
            )
        stamps.append(int(before[-1]))
        pictures.append(read_picture(value, where=f"picture {len(pictures) + 1}"))
        tokens += count_tokens(text)
        text = ""
    if not pictures:
        raise InquiryError("the last user message has no picture; put each frame in a part of type image_url")
    line = _line(text, "Keyframe:")
    named = _TIMESTAMP.search(line)
    if named is None or int(named[1]) not in stamps:
        raise InquiryError(f"the keyframe must be one of the timestamps {_short(stamps)}, found {_short(line)}")
    return Inquiry(
        expression=_line(text, "Expression:"),
        keyframe=int(named[1]),
        frame_ids=tuple(stamps),
        thumbnails=np.stack([thumbnail for thumbnail, _ in pictures]),
        size_tokens=tokens + count_tokens(text) + sum(size for _, size in pictures),
    )


def count_tokens(text: str) -> int:
    """Returns a rough count of tokens: words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _parts(messages: object) -> Iterator[tuple[str, str]]:
    """Yields ("text", text) and ("image_url", URL) of the last user message."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InquiryError(f"messages must be a list of objects, found {_short(messages)}")
    asked = [message for message in messages if message.get("role") == "user"]
    content = asked[-1].get("content") if asked else None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InquiryError(f"the last user message must have a list of parts as content, found {_short(content)}")
    for part in content:
        kind = part.get("type")
        value = part.get(kind) if kind in ("text", "image_url") else None
        if kind == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if not isinstance(value, str):
            raise InquiryError(f"a part must be a text or an image_url with its value, found {_short(part)}")
        yield kind, value


def _line(text: str, head: str) -> str:
    """Returns the rest of the one line that opens with `head`."""
    found = {line.strip().removeprefix(head).strip() for line in text.splitlines() if line.strip().startswith(head)}
    if len(found) != 1 or "" in found:
        raise InquiryError(f"wanted one line '{head} …' after the pictures, found {_short(sorted(found))}")
    return found.pop()


def read_picture(url: str, *, where: str) -> tuple[np.ndarray, int]:
    """Returns (thumbnail, tokens) of the picture in a data URL; its size is checked before it is decoded."""
    head = _DATA_URL.match(url)
    if head is None:
        raise InquiryError(f"{where}: wanted data:image/jpeg;base64,… (nothing is fetched), found {_short(url)}")
    if len(url) - head.end() > MAX_PICTURE_BYTES * 4 // 3 + 4:
        raise InquiryError(f"{where}: larger than {MAX_PICTURE_BYTES >> 20} MiB; shrink it")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InquiryError(f"{where}: broken base64 ({error})") from None
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InquiryError(f"{where}: {width} x {height} pixels, more than {MAX_PIXELS} in all; shrink it")
            return thumbnail(image), -(-width // 28) * -(-height // 28)
    except InquiryError:
        raise
    except _BROKEN as error:
        raise InquiryError(f"{where}: cannot be decoded as JPEG or PNG ({str(error)[:120]})") from None


def thumbnail(image: Image.Image) -> np.ndarray:
    """Returns mean colours, (GRID, GRID, 3) float32. A JPEG that was only opened is decoded at a low resolution."""
    image.draft("RGB", (4 * GRID, 4 * GRID))
    return np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float32)


def difference(seen: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns (K,) grey levels between K pictures as shown (or one) and K frames, both (K, GRID, GRID, 3).

    It is the largest difference of all but a twentieth of the cells, after removing from each cell the red that
    explains it best.
    """
    known = known.astype(np.float32)
    to_red = _RED - known
    share = ((seen - known) * to_red).sum(axis=-1) / np.maximum((to_red**2).sum(axis=-1), 1)
    rest = seen - known - np.clip(share, 0, RED_SHARE)[..., None] * to_red
    cells = np.abs(rest).mean(axis=-1).reshape(len(rest), -1)
    rank = cells.shape[1] - 1 - cells.shape[1] // 20
    return np.partition(cells, rank, axis=1)[:, rank]


class WorldIndex:
    """Indexes all expressions of a world by their words, and all frames by thumbnails, in milliseconds a video."""

    def __init__(self, root: str | Path) -> None:
        self._by_words: dict[str, list[VideoSample]] = defaultdict(list)
        try:
            counts = json.loads(Path(root, "world.json").read_text())["counts"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{root}: no synthetic world; make one with python -m demo.world --out {root}") from None
        for split in (split for split, row in counts.items() if row["expressions"]):
            for sample in ReVOS(root, split=split):
                self._by_words[_words(sample.expression)].append(sample)
        videos = list({sample.video: sample for samples in self._by_words.values() for sample in samples}.values())
        self._known: dict[str, np.ndarray] = {}
        """Thumbnails of all frames by video, (T, GRID, GRID, 3) uint8."""
        for sample in tqdm(videos, desc="reading the frames", unit="videos", disable=None):  # None: terminals only
            pictures = self._known[sample.video] = np.empty((len(sample), GRID, GRID, 3), dtype=np.uint8)
            for t in range(len(sample)):
                with frames.opened(sample.frame_path(t)) as image:
                    pictures[t] = thumbnail(image)

    def recognise(self, inquiry: Inquiry) -> VideoSample:
        """Finds the sample that is asked about; InquiryError if words, timestamps or pictures are not of this world."""
        try:
            named = self._by_words.get(_words(inquiry.expression), [])
        except DataError as error:
            raise InquiryError(str(error)) from None
        if not named:
            raise InquiryError(f"no video of this world has the expression {_short(inquiry.expression)}")
        fitting = [sample for sample in named if max(inquiry.frame_ids) < len(sample)]
        if not fitting:
            lengths = sorted({len(sample) for sample in named})
            raise InquiryError(
                f"timestamp {max(inquiry.frame_ids)}s, but videos of this expression have {lengths} frames"
            )
        # the most different picture decides, and the first one already excludes most videos
        first = np.stack([self._known[sample.video][inquiry.frame_ids[0]] for sample in fitting])
        like = difference(inquiry.thumbnails[:1], first) <= TOLERANCE
        near = [sample for sample, alike in zip(fitting, like, strict=True) if alike] or fitting
        shown = list(inquiry.frame_ids)
        away = [float(difference(inquiry.thumbnails, self._known[sample.video][shown]).max()) for sample in near]
        if min(away) > TOLERANCE:
            raise InquiryError(
                f"do not know this picture: the most similar video with this expression is {min(away):.0f} grey levels"
                f" away, at most {TOLERANCE:.0f} are allowed; is it a frame of this world, at its own timestamp?"
            )
        sample = near[int(np.argmin(away))]
        if not sample.anno_ids:
            raise InquiryError(f"{sample.key}: {_short(sample.expression)} has no target here; leave such samples out")
        return sample


def _words(expression: str) -> str:
    return " ".join(prompt.normalise(expression).split())


def _short(value: Any) -> str:
    """Shortens a value for an error message to less than a line."""
    text = repr(value[:80] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
