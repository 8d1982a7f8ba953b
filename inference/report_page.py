"""The HTML of a report: tables at the top, then one card per expression. Text in, text out; everything is escaped.

Expressions and replies are anybody's text. They only ever stand as escaped element content or in quoted attributes,
never in a script or a style; besides, the page's policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.revos import GROUPS
from inference.overlay import PALETTE
from inference.report_pictures import Picture
from inference.report_run import Outcome
from inference.report_scores import Row
from veason.types import Box, Size, VideoSample

TYPES: dict[int | None, str] = {**{type_id: name for name, type_id in GROUPS.items()}, None: "no type"}
Cell = str | int | float | None


@dataclass(frozen=True)
class Card:
    """What the page shows of one expression."""

    number: int
    """Place in the run, from 0."""
    sample: VideoSample
    outcome: Outcome
    row: Row | None
    """Scores; None where there are none."""
    keyframe: Picture | None
    """The keyframe without masks, for the boxes."""
    true_boxes: tuple[Box, ...]
    """On the keyframe, in video pixels."""
    frames: tuple[Picture, ...]
    notes: tuple[str, ...] = ()
    """What could not be read or scored, in words."""


@dataclass(frozen=True)
class Summary:
    """The top of the page: its sections are HTML, made by the functions below."""

    title: str
    subtitle: str
    sections: Sequence[str]
    types: Sequence[str]
    """Types of expressions that the cards have, to filter by."""
    problems: Mapping[str | None, int]
    scored: bool
    """There are scores and truth to filter by and to draw."""


def escape(text: object) -> str:
    """Text for element content and quoted attributes."""
    return html.escape(str(text), quote=True)


def page(summary: Summary, cards: Iterator[str]) -> Iterator[str]:
    """The page, piece by piece; `cards` are drawn as they are needed."""
    template = importlib.resources.files("inference").joinpath("report_template.html").read_text(encoding="utf-8")
    values = {
        "title": escape(summary.title),
        "subtitle": escape(summary.subtitle),
        "script_hash": script_hash(template),
        "prediction_colour": f"rgb{PALETTE[0]}",
        "summary": "\n".join(summary.sections),
        "controls": controls(summary),
        "legend": legend(summary.scored),
    }
    before, after = template.split("{{cards}}")
    yield re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], before)
    yield from cards
    yield after


def script_hash(template: str) -> str:
    """The script of a page as its content security policy names it."""
    script = template[template.index("<script>") + len("<script>") : template.rindex("</script>")]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def section(heading: str, body: str, *, wide: bool = False) -> str:
    return f"<section{' class=wide' if wide else ''}>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, lead: str = "") -> str:
    """A table whose first column names the rows; the row named `lead` stands out."""
    lines = ["<div class=scroll><table>", "<thead><tr>"]
    lines += [f"<th scope=col>{escape(name) or '<span class=hidden-text>name</span>'}</th>" for name in header]
    lines.append("</tr></thead><tbody>")
    for name, *cells in rows:
        mark = ' class="lead"' if lead and name == lead else ""
        values = "".join(f"<td>{number(cell)}</td>" for cell in cells)
        lines.append(f"<tr{mark}><th scope=row>{escape(name)}</th>{values}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def number(cell: Cell) -> str:
    """A cell: floats to two digits, as the evaluator prints them; a dash for none."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    return f"{cell:.2f}" if isinstance(cell, float) else escape(cell)


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def facts(heading: str, values: Mapping[str, object]) -> str:
    """A folded list of names and values."""
    lines = "\n".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in values.items())
    return f'<details class="wide"><summary>{escape(heading)}</summary>\n<dl class="facts">\n{lines}\n</dl></details>'


def _plain(value: object) -> object:
    return "–" if value is None else " × ".join(map(str, value)) if isinstance(value, list) else value


def warning(text: str, items: Sequence[str] = (), *, limit: int = 20) -> str:
    listed = [f"<li>{escape(item)}</li>" for item in items[:limit]]
    if len(items) > limit:
        listed.append(f"<li>… and {len(items) - limit} more</li>")
    inner = f"<ul>{''.join(listed)}</ul>" if listed else ""
    return f'<div class="wide warning" role="note">{escape(text)}{inner}</div>'


def controls(summary: Summary) -> str:
    """The form that sorts and filters; it shows only where scripts run."""
    scores = [("jf", "J&F"), ("j", "J"), ("f", "F")] if summary.scored else []
    orders = [("i up", "data-set order")]
    orders += [(f"{key} {way}", f"{name}, {word}") for key, name in scores for way, word in _WAYS]
    orders += [("video up", "video, A to Z"), ("video down", "video, Z to A")]
    count = sum(summary.problems.values())
    troubled = count - summary.problems.get(None, 0)
    problems = [("", f"all ({count})"), ("-", f"none ({count - troubled})"), ("*", f"any ({troubled})")]
    problems += [(name, f"{name} ({n})") for name, n in summary.problems.items() if name is not None]
    parts = [
        '<form id="controls" role="search" aria-label="Sort and filter the expressions">',
        '<label>Search <input type="search" name="search" placeholder="expression, reply, video"></label>',
        _select("Sort by", "sort", orders),
        _select("Type", "type", [("", "all"), *((name, name) for name in summary.types)]),
        _select("Problem", "problem", problems),
    ]
    if summary.scored:
        limit = '<input type="number" min="0" max="100" step="any"'
        low = f'<label>J&amp;F from {limit} name="min" aria-label="lowest J and F"></label>'
        high = f'<label>to {limit} name="max" aria-label="highest J and F"></label>'
        parts.append(f"<span>{low}{high}</span>")
    parts.append('<label><input type="checkbox" name="prediction" checked> prediction</label>')
    if summary.scored:
        parts.append('<label><input type="checkbox" name="truth" checked> truth</label>')
    return "\n".join([*parts, "</form>"])


_WAYS = (("up", "lowest first"), ("down", "highest first"))


def _select(label: str, name: str, options: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{escape(label)} <select name="{name}">{inner}</select></label>'


def legend(truth: bool) -> str:
    """How predictions are told from truth: by filling and dashes, not by colour alone."""
    blob = 'd="M9 4C14 0 24 3 24 9S16 17 10 15 3 9 9 4z"'
    entries = [("predicted mask", f'<path class="p" {blob}/>')]
    entries += [("true mask", f'<path class="t" {blob}/>')] if truth else []
    entries += [("predicted box", '<rect class="pb" x="4" y="3" width="22" height="12"/>')]
    entries += [("true box", '<rect class="tb" x="4" y="3" width="22" height="12"/>')] if truth else []
    items = "".join(
        f'<li><svg viewBox="0 0 30 18" aria-hidden="true">{shape}</svg>{name}</li>' for name, shape in entries
    )
    return f'<ul class="legend" aria-label="Legend">{items}</ul>'


def card(c: Card) -> str:
    """One expression as an article."""
    data = {
        "i": c.number,
        "video": c.sample.video,
        "type": TYPES[c.sample.type_id],
        "problem": c.outcome.problem or "-",
    }
    if c.row is not None:
        data |= {"jf": c.row.jf, "j": c.row.j, "f": c.row.f}
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    return "\n".join(
        part
        for part in (
            f'<article class="card" id="e{c.number}" aria-labelledby="h{c.number}" {attributes}>',
            _card_header(c),
            *(f'<p class="problem" dir="auto">{escape(text)}</p>' for text in _card_problems(c)),
            _pictures(c),
            _said(c),
            "</article>\n",
        )
        if part
    )


def _card_header(c: Card) -> str:
    bad = f'<span class="tag bad">{escape(c.outcome.problem)}</span>' if c.outcome.problem is not None else ""
    return (
        f'<header><div><h3 id="h{c.number}" dir="auto">{escape(c.sample.expression)}</h3>\n'
        f'<p class="where"><a href="#e{c.number}"><bdi>{escape(c.sample.key)}</bdi></a> '
        f'<span class="tag">{escape(TYPES[c.sample.type_id])}</span>{bad}</p></div>\n{_scores(c.row)}</header>'
    )


def _scores(row: Row | None) -> str:
    if row is None:
        return ""
    level = f'<span class="level" aria-hidden="true"><i style="width:{min(max(row.jf, 0), 100):.1f}%"></i></span>'
    parts = [f'<div class="main"><dt>J&amp;F</dt><dd>{row.jf:.2f}{level}</dd></div>']
    parts += [f"<div><dt>{name}</dt><dd>{value:.2f}</dd></div>" for name, value in (("J", row.j), ("F", row.f))]
    return f'<dl class="scores">{"".join(parts)}</dl>'


def _card_problems(c: Card) -> list[str]:
    said = [c.outcome.detail or c.outcome.problem] if c.outcome.problem is not None else []
    return [*said, *c.notes]


def _pictures(c: Card) -> str:
    strip = "".join(_frame(picture, c) for picture in c.frames)
    flat = "" if c.keyframe is not None else " flat"
    return f'<div class="pictures{flat}">{_keyframe(c)}<div class="strip">{strip}</div></div>'


def _frame(picture: Picture, c: Card) -> str:
    key = " · keyframe" if picture.frame_id == c.outcome.keyframe else ""
    return (
        f"<figure>{svg(picture, picture.drawing, outlines(picture), picture.describe())}"
        f"<figcaption>frame {picture.frame_id}{key}</figcaption></figure>"
    )


def _keyframe(c: Card) -> str:
    if c.keyframe is None:
        return ""
    predicted, true = c.outcome.boxes, c.true_boxes
    shapes = "".join(rect(box, "pb", c.sample.size) for box in predicted)
    shapes += "".join(rect(box, "tb", c.sample.size) for box in true)  # dashed, so both show where they agree
    counts = f"{len(predicted)} predicted" + (f", {len(true)} true" if c.row is not None else "")
    words = f"keyframe {c.keyframe.frame_id}, boxes: {counts}"
    caption = f"<figcaption>{escape(words)}</figcaption>"
    return f'<figure class="key">{svg(c.keyframe, c.sample.size, shapes, words)}{caption}</figure>'


def outlines(picture: Picture) -> str:
    """The masks of a picture, filled where predicted and dashed where true, in the pixels of its drawing."""
    drawn = (("p", picture.prediction), ("t", picture.truth))
    return "".join(f'<path class="{name}" d="{d}"/>' for name, d in drawn if d)


def svg(picture: Picture, size: Size, shapes: str, label: str) -> str:
    """A picture with SVG `shapes` in the pixels of a frame of `size` over it; `label` says what it shows."""
    return (
        f'<svg class="{picture.css_class}" viewBox="-.5 -.5 {size[1]} {size[0]}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(label)}">{shapes}</svg>'
    )


def rect(box: Box, css_class: str, size: Size) -> str:
    """A box of inclusive corners; far outside it ends a little beyond the picture of `size`."""
    height, width = size
    x1, x2 = (min(max(x, -9), width + 9) for x in (box[0] - 0.5, box[2] + 0.5))
    y1, y2 = (min(max(y, -9), height + 9) for y in (box[1] - 0.5, box[3] + 0.5))
    sides = {"x": x1, "y": y1, "width": max(0, x2 - x1), "height": max(0, y2 - y1)}
    return f'<rect class="{css_class}" ' + " ".join(f'{name}="{value:.1f}"' for name, value in sides.items()) + "/>"


def _said(c: Card) -> str:
    shown = ", ".join(map(str, c.outcome.frame_ids))
    boxes = "; ".join(", ".join(f"{value:.1f}" for value in box) for box in c.outcome.boxes)
    thinking = '<pre dir="auto">\n' + escape(c.outcome.thinking) + "</pre>" if c.outcome.thinking else note("none")
    return (
        '<details class="said"><summary>Thinking and reply</summary>'
        f"<h4>Thinking</h4>{thinking}"
        f'<h4>Raw reply</h4><pre class="raw" dir="auto">\n{escape(c.outcome.reply)}</pre>'
        + note(f"Shown frames: {shown}. Boxes in video pixels (x1, y1, x2, y2): {boxes or 'none'}.")
        + "</details>"
    )
