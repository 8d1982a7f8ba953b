"""HTML pages about runs: one run with a card per expression (`__main__`), or several runs of the same expressions
(`compare`): side by side, or as the steps of one training.

All pages are made of one Jinja2 template, ``page.html.j2``. Expressions, replies, problems and settings are text that
anybody may have written. The template escapes every value (autoescape) and marks none as safe; such text stands only in
element content and in quoted attributes, never in a script or a style, and the content security policy of a page allows
no script but its own. A page is a single file that needs no network.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import jinja2

from eval.results import REVOS_TYPES
from inference.overlay import PALETTE
from inference.report import pictures


def render(page: str, *, largest: float = math.inf, **values: Any) -> Iterator[bytes]:
    """Renders a page piece by piece, so that a page of any number of cards needs the memory of one card.

    page: ``run``, ``comparison`` or ``steps``. values: the names that the template uses. ``cards`` is an iterator, from
    which a card is taken when the page has reached it. The first card of a page of several runs that would make it
    larger than `largest` bytes is left out with those behind it, and the page says so.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inference.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        "sides": pictures.sides,
        "in_drawing": pictures.in_drawing,
    }
    types: dict[int | None, str] = {None: "no type"}
    types |= {type_id: name for name, type_id in REVOS_TYPES.items()}
    written = 0

    def fits(html: str) -> bool:
        return written + len(html.encode("utf-8", "replace")) <= largest

    template = environment.get_template("page.html.j2")
    for piece in template.generate(page=page, types=types, prediction_colour=PALETTE[0], fits=fits, **values):
        encoded = piece.encode("utf-8", "replace")
        written += len(encoded)
        yield encoded


def number(value: str | int | float | None, digits: int = 2) -> str:
    """Writes a cell of a table: floats with two digits, as the evaluators print them, and a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def signed(value: float) -> str:
    """Writes a difference with its sign and two digits, and a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
