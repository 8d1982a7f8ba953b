"""Writes the prompt: one template and one function that fills it, for construction, training and inference alike.

A prompt is first a list of segments, text and image places in order. From it come the chat messages of a processor or
of an OpenAI-compatible server, and the plain text with ``<image>`` marks that LLaMA-Factory data sets use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from veason.errors import DataError
from veason.files import check_regular
from veason.types import Clip

SYSTEM = "You are a helpful assistant."
IMAGE = "<image>"
"""The mark of an image place in the plain-text form."""

_DEFAULT_TEMPLATE = Path(__file__).with_name("prompt_template.txt")
_FIELDS = {"frames", "expression", "width", "height"}

MARKS = re.compile(r"<(?:image|video|audio)>|<\|[^<>|]{0,64}\|>", re.IGNORECASE)
"""Marks that a processor, LLaMA-Factory or the tokenizer takes for a picture, a sound or a control token.

No expression, template or chain of thought may hold one.
"""
REPLY_TAGS = re.compile(r"</?\s{0,9}(?:think|answer)\s{0,9}>", re.IGNORECASE)
"""Tags of the reply format in any spelling; no chain of thought may hold one."""


@cache
def load_template(path: Path | None = None) -> str:
    """Text of a prompt template, checked (`check_template`)."""
    path = path or _DEFAULT_TEMPLATE
    check_regular(path, hint="--prompt-template takes a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 ({error}); --prompt-template takes a text file") from error
    return check_template(text, str(path))


def check_template(text: str, path: str) -> str:
    """The `text` of a template, stripped: ``$frames`` exactly once, ``$expression`` at least once.

    ``$width`` and ``$height`` (model pixels) are optional; a dollar sign is written ``$$``. A DataError names `path`.
    """
    text = text.strip()
    if mark := MARKS.search(text):
        raise DataError(f"{path}: the template holds the control mark {mark[0]!r} of the model; take it out")
    template = Template(text)
    fields = set(template.get_identifiers()) if template.is_valid() else None
    if fields is None or not fields <= _FIELDS:
        raise DataError(
            f"{path}: a template may use ${', $'.join(sorted(_FIELDS))} and $$, found {fields or 'a lone $'}"
        )
    if not {"frames", "expression"} <= fields or text.count("$frames") + text.count("${frames}") != 1:
        raise DataError(f"{path}: a template needs $frames exactly once and $expression")
    return text


def normalise(expression: str) -> str:
    """The expression as it stands in the prompt: lower case, without white space around or a final full stop.

    Control marks (`MARKS`) would become tokens of the model: a DataError.
    """
    if mark := MARKS.search(expression):
        raise DataError(
            f"the expression {expression[:80]!r} holds the control mark {mark[0]!r} of the model; correct the data set"
        )
    return expression.strip().rstrip(".").strip().lower()


def segments(expression: str, clip: Clip, *, template: str | None = None) -> list[str | None]:
    """The user turn as text pieces and image places (None, one per shown frame, in the clip's order)."""
    template = template or load_template()
    before, after = re.split(r"\$frames|\$\{frames\}", template, maxsplit=1)
    height, width = clip.size
    values = {"expression": normalise(expression), "width": width, "height": height}
    pieces: list[str | None] = []
    text = Template(before).substitute(values)
    for i, frame_id in enumerate(clip.frame_ids):
        pieces += [f"{text}{', ' if i else ''}({frame_id}s)", None]
        text = ""
    text += Template(after).substitute(values)
    return [*pieces, text] if text else pieces


def messages(
    expression: str, clip: Clip, images: Sequence[Any], *, template: str | None = None
) -> list[dict[str, Any]]:
    """Chat messages (system, user) with one image entry per shown frame, as Hugging Face processors take them."""
    assert len(images) == len(clip), f"{len(images)} images for {len(clip)} shown frames"
    places = iter(images)
    content = [
        {"type": "image", "image": next(places)} if piece is None else {"type": "text", "text": piece}
        for piece in segments(expression, clip, template=template)
    ]
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": content},
    ]


def text(expression: str, clip: Clip, *, template: str | None = None) -> str:
    """The user turn as plain text with an ``<image>`` mark per shown frame."""
    return "".join(IMAGE if piece is None else piece for piece in segments(expression, clip, template=template))
