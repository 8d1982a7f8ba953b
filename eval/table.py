"""Prints the paper's result tables with your own rows: published numbers for reference, and measured ones marked so.

    python -m eval.table runs/3b runs/7b
    python -m eval.table 3B=runs/3b/scores 3B=runs/3b-mevis/scores --format latex --out table.tex

RUN is a folder that an evaluator wrote to (``--out``), a run folder with such a folder ``scores`` in it, or a
results.json; NAME=RUN names the row. There is a table for each data set, and a method may have scores of several.

Any two rows of one table must be of one protocol, one split, one kind of robustness and the same ground-truth files
(by their SHA-256): whatever differs is shown, and there is no table. Results with broken predictions are refused. A row
with missing predictions says how many. A row over another number of videos or expressions than the published split has
is marked as a part, and is not set in bold: its numbers are no match for the published ones.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval import published, scores_file
from eval.results import Results
from eval.scores_file import Scores
from veason import atomic
from veason.command import run_command
from veason.datasets import NAMES
from veason.doctor.published import SPLITS
from veason.errors import DataError

_J_F = {"J": ("overall", "J"), "F": ("overall", "F"), "J&F": ("overall", "JF")}
COLUMNS: dict[str, dict[str, tuple[str, str]]] = {
    "revos": {
        "referring J&F": ("referring", "JF"),
        "reasoning J&F": ("reasoning", "JF"),
        "overall J&F": ("overall", "JF"),
        "R": ("overall", "R"),
    },
    "mevis": _J_F,
    "reasonvos": _J_F,
    "refytvos": _J_F,
    "refdavis": _J_F,
    "vicas": {"mAP": ("overall", "mAP"), "J&F": ("overall", "JF")},
}
"""Columns of a data set's table: name -> group and column of ``results.json``."""

TITLES = {
    "revos": "ReVOS",
    "mevis": "MeViS",
    "reasonvos": "ReasonVOS",
    "refytvos": "Ref-YouTube-VOS",
    "refdavis": "Ref-DAVIS17",
    "vicas": "ViCaS",
}


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    method: str
    values: Mapping[str, float | None]
    """By column, in per cent."""
    measured: bool
    source: str
    part: bool = False
    """True if its number of videos or expressions differs from the published split."""


@dataclass(frozen=True)
class Table:
    """The table of one data set."""

    dataset: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, str]
    """Protocol and data, which all measured rows have in common."""


def tables(scores: Sequence[Scores]) -> list[Table]:
    """Makes a table for each data set in `scores`; raises DataError if scores of one data set are not comparable."""
    found = []
    for dataset in (name for name in NAMES if any(s.results.dataset == name for s in scores)):
        those = [s for s in scores if s.results.dataset == dataset]
        _check_names(those)
        scores_file.check_comparable(those)
        found.append(_table(dataset, those))
    return found


def _check_names(scores: Sequence[Scores]) -> None:
    """Raises DataError if two scores of one data set have one name; it tells the commands that make tables of them."""
    by_name: dict[str, list[Scores]] = {}
    for one in scores:
        by_name.setdefault(one.name, []).append(one)
    for name, alike in by_name.items():
        if len(alike) == 1:
            continue
        protocols = {str(one.results.protocol.get("name")) for one in alike}
        if len(protocols) == len(alike):
            error = DataError(
                f"{name!r} has scores of {len(alike)} protocols ({', '.join(sorted(protocols))}), which never stand in "
                "one table; make a table of each:"
            )
            commands = [f"{name}={one.path}" for one in alike]
        else:
            error = DataError(
                f"{len(alike)} scores on {alike[0].results.dataset} are called {name!r}; give each its own name:"
            )
            commands = [" ".join(shlex.quote(f"{name}-{i}={one.path}") for i, one in enumerate(alike, start=1))]
        for command in commands:
            error.add_note(f"python -m eval.table {command if len(commands) == 1 else shlex.quote(command)}")
        raise error


def _table(dataset: str, scores: Sequence[Scores]) -> Table:
    columns, first = COLUMNS[dataset], scores[0].results
    printed, notes = list(published.ROWS.get(dataset, ())), []
    if dataset in published.NOTES:
        notes.append(published.NOTES[dataset])
    robustness = first.protocol.get("robustness")
    r_name = "R" if robustness in (None, "visa") else f"R ({robustness})"
    own = {r_name if name == "R" else name: place for name, place in columns.items()}
    if robustness == "binary":
        notes.append("R (binary) is not the published R: the published one depends on stored grey values.")
    split = published.SPLITS.get(dataset, first.split)
    if first.split != split:
        notes.append(f"The published rows are of the split {split}, the measured ones of {first.split}.")
    sizes = {s.path: _other_size(s.results) for s in scores}
    if any(sizes.values()):
        notes.append("A row marked as a part is over another number of samples than the published split has.")

    def source(results: Results) -> str:
        counts = results.counts
        lost = f", {counts['missing']} missing ({results.protocol.get('missing')})" if counts["missing"] else ""
        return f"measured: {counts['scored']} of {counts['expected']} expressions{lost}"

    theirs = dict.fromkeys(name for row in printed for name in row.values)
    lines = [Line(row.method, row.values, measured=False, source=row.source) for row in printed]
    lines += [
        Line(
            s.name,
            {name: _or_none(s.results.mean(group, column)) for name, (group, column) in own.items()},
            measured=True,
            source=source(s.results) + (f"; {sizes[s.path]}" if sizes[s.path] else ""),
            part=sizes[s.path] is not None,
        )
        for s in scores
    ]
    return Table(
        dataset=dataset,
        title=f"{TITLES[dataset]}, {first.split}",
        columns=tuple(dict.fromkeys([*theirs, *own])),
        lines=tuple(lines),
        notes=tuple(notes),
        settings=scores_file.common_settings(scores),
    )


def _other_size(results: Results) -> str | None:
    """Says how many samples a result is over if the published split has another number of them; else returns None."""
    size = SPLITS.get((results.dataset, results.split))
    if size is None:
        return None
    pairs = (("videos", "videos", size.videos), ("expected", "expressions", size.expressions))
    other = [
        f"{results.counts[key]} {what}, the published split has {there}"
        for key, what, there in pairs
        if there is not None
        and results.counts.get(key, there) != there
        and not (key == "expected" and "unit" in results.protocol)  # of something else than expressions
    ]
    return "a part: " + "; ".join(other) if other else None


def _or_none(mean: float) -> float | None:
    return None if math.isnan(mean) else mean


def markdown(found: Sequence[Table]) -> str:
    """Writes tables in Markdown, with the notes and the rules of the measured rows below each."""
    parts = []
    for table in found:
        rows = []
        for line in table.lines:
            method = line.method.replace("|", "\\|")
            if line.part:
                method = f"*{method} (part)*"
            elif line.measured:
                method = f"**{method}**"
            rows.append([method, *(_cell(line, c, "–") for c in table.columns), line.source])
        head = ["method", *table.columns, "source"]
        marks = ["---", *["---:"] * len(table.columns), "---"]
        grid = "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])
        rules = "; ".join(f"{name.removeprefix('protocol: ')} {value}" for name, value in table.settings.items())
        parts.append("\n\n".join([f"### {table.title}", grid, *table.notes, f"Measured rows: {rules}."]))
    return "\n\n".join(parts) + "\n"


def _cell(line: Line, column: str, nothing: str) -> str:
    value = line.values.get(column)
    return nothing if value is None else f"{value:.1f}"


_LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                       "\\": r"\textbackslash{}", "–": "--", "…": r"\dots{}"})  # fmt: skip


def latex(found: Sequence[Table]) -> str:
    """Writes tables for the package booktabs; measured rows are set in bold and stand below a rule."""
    return "\n".join(_latex_table(table) for table in found)


def _latex_table(table: Table) -> str:
    rows: list[str] = []
    for measured in (False, True):
        lines = [line for line in table.lines if line.measured == measured]
        if rows and lines:
            rows.append(r"\midrule")
        for line in lines:
            method = line.method.translate(_LATEX)
            if line.part:
                method = rf"\textit{{{method} (part)}}"
            elif measured:
                method = rf"\textbf{{{method}}}"
            cells = [_cell(line, column, "--") for column in table.columns]
            rows.append(" & ".join([method, *cells, "measured" if measured else "published"]) + r" \\")
    head = " & ".join(["method", *(column.translate(_LATEX) for column in table.columns), "source"]) + r" \\"
    caption = " ".join([f"{table.title}.", *table.notes, *dict.fromkeys(
        f"Published rows: {line.source}." for line in table.lines if not line.measured)])  # fmt: skip
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}l}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def json_text(found: Sequence[Table]) -> str:
    """Writes everything, with unrounded values."""
    documents = []
    for table in found:
        rows = [
            {
                "method": line.method,
                "measured": line.measured,
                "part": line.part,
                "source": line.source,
                "values": {column: line.values.get(column) for column in table.columns},
            }
            for line in table.lines
        ]
        documents.append(
            {
                "dataset": table.dataset,
                "title": table.title,
                "columns": list(table.columns),
                "rows": rows,
                "notes": list(table.notes),
                "settings": dict(table.settings),
            }
        )
    return json.dumps(documents, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": markdown, "latex": latex, "json": json_text}


def find_scores(arguments: Sequence[str]) -> list[Scores]:
    """Reads the scores of each argument, RUN or NAME=RUN."""
    found = []
    for argument in arguments:
        name, equals, place = argument.partition("=")
        path = Path(place if equals else argument)
        # Of a folder itself, else of its subfolders (Ref-DAVIS17 has one for each protocol), else of its folder scores.
        files = [path] if path.is_file() else []
        for folder in (path, path / "scores"):
            own = folder / "results.json"
            files = files or ([own] if own.is_file() else sorted(folder.glob("*/results.json")))
        if not files:
            raise DataError(f"{path}: holds no results.json, nor does its folder scores; score the run first")
        for file in files:
            # The name of a run is that of the first folder upwards that is not called after its scores.
            folder_name = next((n for n in reversed(file.resolve().parent.parts) if n != "scores"), file.stem)
            found.append(Scores(name if equals else folder_name, file, scores_file.read_summary(file)))
    unknown = [s for s in found if s.results.dataset not in COLUMNS]
    if unknown:
        raise DataError(f"{unknown[0].path}: there is no table for the data set {unknown[0].results.dataset[:80]!r}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with scores, or NAME=FOLDER")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of the terminal")
    args = parser.parse_args(argv)

    def body() -> None:
        text = FORMATS[args.format](tables(find_scores(args.runs)))
        if args.out:
            atomic.write_bytes(args.out, text.encode("utf-8", "replace"))
        else:
            print(text, end="")

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
