"""The HTML of a comparison, in the style of the report: tables, curves, and examples with a row for every run.

As in the report everything that is anybody's text is escaped, and the page's policy allows no script at all.
"""

from __future__ import annotations

import base64
import importlib.resources
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.answers import Quality
from eval.results import Row
from inference import compare_examples, compare_tables
from inference import report_page as report
from inference.compare_examples import Example
from inference.compare_runs import Contender, Entry
from inference.overlay import PALETTE
from inference.report_page import escape
from inference.report_pictures import Picture
from inference.report_run import Outcome
from veason.types import Box, Size

LARGEST = 8_000_000
"""Bytes of a page; examples end where the next one would go beyond."""
LONGEST_REPLY = 8_000
"""Characters of a reply that are shown."""


@dataclass(frozen=True)
class Shown:
    """One run's part of an example."""

    name: str
    outcome: Outcome
    row: Row
    quality: Quality
    change: float | None
    """J&F less that of the first run; None for the first."""
    keyframe: Picture | None
    """With masks; None without a usable answer."""
    true_boxes: tuple[Box, ...]
    """On the keyframe, in video pixels."""
    frames: tuple[Picture, ...]
    notes: tuple[str, ...]
    """What could not be read, in words."""


def page(title: str, subtitle: str, sections: Sequence[str], cards: Iterator[str]) -> Iterator[str]:
    """The page, piece by piece; `cards` are drawn as they are needed, as long as the page is below `LARGEST`."""
    files = importlib.resources.files("inference")
    template = files.joinpath("compare_template.html").read_text(encoding="utf-8")
    look = files.joinpath("report_template.html").read_text(encoding="utf-8")
    style = look[look.index("<style>") + len("<style>") : look.index("</style>")]
    values = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "prediction_colour": f"rgb{PALETTE[0]}",
        "summary": "\n".join(sections),
        "legend": report.legend(truth=True),
    }
    before, after = template.replace("{{style}}", style).split("{{cards}}")
    before = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], before)
    yield before
    yield from _within(cards, LARGEST - len((before + after).encode("utf-8", "replace")))
    yield after


def _within(cards: Iterator[str], room: int) -> Iterator[str]:
    """The cards that fit into `room` bytes, and a word on the others."""
    for card in cards:
        room -= len(card.encode("utf-8", "replace"))
        if room < 0:
            yield report.note("Further examples are left out: the page would be too large to open with ease.")
            return
        yield card


def summary(contenders: Sequence[Contender], entries: Sequence[Entry], curves: Sequence[str]) -> list[str]:
    """The sections above the examples; `curves` are data URIs of pictures."""
    names = [contender.name for contender in contenders]
    sections = [
        report.section("Runs", _runs(names, compare_tables.measures(contenders, entries), len(entries)), wide=True)
    ]
    groups = compare_tables.groups(entries)
    for heading, key in (("J&F by type and targets", "jf"), ("Box IoU by type and targets", "box_iou")):
        rows = [(group.name, group.count, getattr(group, key)) for group in groups]
        sections.append(report.section(heading, _grouped(names, rows)))
    sections.append(report.section("Problems of the replies", _problems(names, entries)))
    sections.append(report.section(f"J&F of an expression against {names[0]}", _against(names, entries)))
    sections.append(_settings(contenders))
    if curves:
        pictures = "".join(f'<figure class=curves><img alt="training curves" src="{uri}"></figure>' for uri in curves)
        sections.append(report.section("Training", pictures, wide=True))
    sections.append(report.section("Examples", report.note(compare_examples.NOTE), wide=True))
    return sections


def _runs(names: Sequence[str], rows: Sequence[Mapping[str, float]], count: int) -> str:
    """A row per run, a column per measure."""
    columns = [_cells([row[name] for row in rows]) for name in compare_tables.MEASURES]
    lines = [(name, f"<td>{count}</td>", *(column[i] for column in columns)) for i, name in enumerate(names)]
    return _table(("run", "n", *compare_tables.MEASURES.values()), lines) + report.note(compare_tables.NOTE)


def _grouped(names: Sequence[str], rows: Sequence[tuple[str, int, Sequence[float]]]) -> str:
    """A row per group of expressions, a column per run."""
    return _table(("", "n", *names), [(name, f"<td>{count}</td>", *_cells(values)) for name, count, values in rows])


def _problems(names: Sequence[str], entries: Sequence[Entry]) -> str:
    rows = []
    for problem, counts in compare_tables.problems(entries):
        cells = [f"<td>{n}<small>{100 * n / len(entries):.1f} %</small></td>" for n in counts]
        rows.append((problem, *cells))
    return _table(("", *names), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of finished cells behind the name of each row."""
    heads = "".join(f"<th scope=col>{escape(name) or '<span class=hidden-text>name</span>'}</th>" for name in header)
    lines = [f"<tr><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>" for name, *cells in rows]
    body = "\n".join(lines)
    return (
        f"<div class=scroll><table class=numbers><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _cells(values: Sequence[float]) -> list[str]:
    """The cells of what is compared: the largest bold, all but the first with the difference to it."""
    bold = compare_tables.best(values)
    return [
        f"<td{' class=main' if i in bold else ''}>{report.number(value)}{_change(value - values[0]) if i else ''}</td>"
        for i, value in enumerate(values)
    ]


def _change(value: float) -> str:
    """A difference in small type; nothing where there is none to take."""
    if math.isnan(value):
        return ""
    return f"<small{' class=down' if value < 0 else ''}>{compare_tables.signed(value)}</small>"


def _against(names: Sequence[str], entries: Sequence[Entry]) -> str:
    """For how many expressions each further run is better, worse or the same."""
    counts = [compare_tables.against_first(entries, i) for i in range(1, len(names))]
    rows = [(name, *(f"<td>{n}</td>" for n in count.values())) for name, count in zip(names[1:], counts, strict=True)]
    return _table(("run", *counts[0]), rows)


def _settings(contenders: Sequence[Contender]) -> str:
    """What else the runs differ in, folded."""
    settings = [contender.run.settings for contender in contenders]
    names = [name for name in dict.fromkeys(name for s in settings for name in s) if _differ(name, settings)]
    rows = [(name, *(f'<td class="text">{escape(s.get(name, "–"))}</td>' for s in settings)) for name in names]
    table = _table(("", *(c.name for c in contenders)), rows) if rows else report.note("None.")
    return f'<details class="wide"><summary>Settings in which the runs differ</summary>\n{table}</details>'


def _differ(name: str, settings: Sequence[Mapping[str, object]]) -> bool:
    return any(s.get(name) != settings[0].get(name) for s in settings)


def card(example: Example, number: int, runs: Sequence[Shown]) -> str:
    """One expression, with a row for every run."""
    sample = example.entry.sample
    words = {"gain": "gain", "loss": "loss", "typical": "typical", "absent": "no target"}[example.kind]
    head = (
        f'<header><div><h3 id="h{number}" dir="auto">{escape(sample.expression)}</h3>\n'
        f'<p class="where"><bdi>{escape(sample.key)}</bdi> '
        f'<span class="tag">{escape(report.TYPES[sample.type_id])}</span></p></div>\n'
        f'<div class="kind"><b>{compare_tables.signed(example.entry.change)}</b>{words}</div></header>'
    )
    rows = "\n".join(_row(shown, sample.size) for shown in runs)
    return f'<article class="card" id="e{number}" aria-labelledby="h{number}">{head}\n{rows}\n</article>\n'


def _row(shown: Shown, size: Size) -> str:
    frames = "".join(
        f"<figure>{report.svg(picture, picture.drawing, report.outlines(picture), picture.describe())}"
        f"<figcaption>frame {picture.frame_id}</figcaption></figure>"
        for picture in shown.frames
    )
    return f'<div class="answer">{_name(shown)}{_keyframe(shown, size)}{frames}{_said(shown)}</div>'


def _name(shown: Shown) -> str:
    change = "" if shown.change is None else _change(shown.change)
    parts = [f'<div class="main"><dt>J&amp;F</dt><dd>{shown.row.jf:.2f}{change}</dd></div>']
    if shown.quality.targets:
        values = (("keyframe ratio", shown.quality.keyframe_ratio), ("box IoU", shown.quality.box_iou))
        parts += [f"<div><dt>{name}</dt><dd>{100 * value:.1f}</dd></div>" for name, value in values]
    return f'<div class="name"><h4 dir="auto">{escape(shown.name)}</h4><dl>{"".join(parts)}</dl></div>'


def _keyframe(shown: Shown, size: Size) -> str:
    """The chosen frame with masks and boxes over it."""
    picture = shown.keyframe
    if picture is None:
        words = "says there is no target" if shown.outcome.problem == "no_boxes" else "no usable answer"
        return f'<div class="empty key">{words}</div>'
    drawn = picture.drawing
    predicted, true = (in_drawing(boxes, size, drawn) for boxes in (shown.outcome.boxes, shown.true_boxes))
    shapes = report.outlines(picture)
    shapes += "".join(report.rect(box, "pb", drawn) for box in predicted)
    shapes += "".join(report.rect(box, "tb", drawn) for box in true)
    words = f"keyframe {picture.frame_id}, boxes: {len(predicted)} predicted, {len(true)} true"
    return (
        f'<figure class="key">{report.svg(picture, drawn, shapes, words)}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def in_drawing(boxes: Sequence[Box], size: Size, drawn: Size) -> list[Box]:
    """Boxes of a frame of `size` in its drawing; corners are inclusive, so it is the far edges that scale."""
    sy, sx = drawn[0] / size[0], drawn[1] / size[1]
    return [(x1 * sx, y1 * sy, (x2 + 1) * sx - 1, (y2 + 1) * sy - 1) for x1, y1, x2, y2 in boxes]


def _said(shown: Shown) -> str:
    outcome = shown.outcome
    problems = [outcome.detail or outcome.problem] if outcome.problem is not None else []
    lines = "".join(f'<p class="problem" dir="auto">{escape(text)}</p>' for text in (*problems, *shown.notes))
    reply, more = outcome.reply[:LONGEST_REPLY], len(outcome.reply) - LONGEST_REPLY
    cut = report.note(f"… and {more} more characters.") if more > 0 else ""
    return f'<div class="said">{lines}<pre class="raw" dir="auto">\n{escape(reply)}</pre>{cut}</div>'


def data_uri(data: bytes, kind: str) -> str:
    """A picture file of the type `kind` for the page."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
