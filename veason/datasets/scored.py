"""Finds out whether a split is scored by the benchmark: nothing may be trained on it, whatever it is called.

A split's name says so, or a file's name, or what is in it: the samples to train on are compared with the expression
files of the scored splits that lie beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from veason.datasets import base, fields
from veason.datasets.mixture import TRAINING, Part, check_trainable
from veason.errors import DataError

EXPRESSIONS = {
    "revos": "meta_expressions_{}_.json",
    "mevis": "{}/meta_expressions.json",
    "refytvos": "meta_expressions/{}/meta_expressions.json",
    "refdavis": "meta_expressions/{}/meta_expressions.json",
    "vicas": "splits/{}.json",
}
"""Below a benchmark's root, the file that says which expressions, or which videos, a split has."""

SCORED = {
    "revos": ("valid", "test"),
    "mevis": ("valid_u", "valid", "test"),
    "refytvos": ("valid", "test"),
    "refdavis": ("valid", "test"),
    "vicas": ("v0.1/val", "v0.1/test", "v1.0/val", "v1.0/test"),
}
"""The splits that are there to be scored. All of ReasonVOS is."""

BY_NAME = "by its name, it is scored by the benchmark, so it must not be trained on"
OPTION = "--allow-scored-split"
"""The option of the commands that make training data which allows it all the same."""

_SCORED_WORD = re.compile(r"(?:^|[^a-z])(?:val|valid|test)(?:[^a-z]|$)")
_TRAIN_WORD = re.compile(r"(?:^|[^a-z])train(?:[^a-z]|$)")


def scored_by_name(parts: Sequence[Part], *, split: str, meta: str) -> str | None:
    """The reason, taken from names, for which a split must not be trained on; None if its names say nothing.

    parts: the data sets that go by name; without any, `split` of ReVOS. meta: an expression file that is used instead.
    """
    if parts:
        try:
            check_trainable(parts)
        except DataError as error:
            return str(error)
    elif is_scored_name(split):
        return f"data.train_split={split}: it is scored by the benchmark, so it must not be trained on"
    if meta and is_scored_file(Path(meta)):
        return f"data.train_meta={meta}: {BY_NAME}"
    return None


def check_file(meta: Path, *, roots: Sequence[Path], allowed: bool) -> list[str]:
    """Checks an expression file of ReVOS before training data are made from it; returns the warnings to print.

    roots: folders in which the expression files of the scored splits may lie. DataError if the file is one of them or
    shares videos with one, unless that is `allowed`; then it is a warning.
    """
    reasons = [f"{meta}: {BY_NAME}"] if is_scored_file(meta) else []
    remarks = []
    for root in dict.fromkeys(roots):
        found, unread = scored_by_content((Part("revos", str(root)),), meta=str(meta))
        reasons += [found] if found else []
        remarks += unread
    if reasons and not allowed:
        raise DataError(f"{reasons[0]}; {OPTION} allows it")
    return [*reasons[:1], *remarks]


def is_scored_file(path: Path) -> bool:
    """True if the name says so: that of the file, or of its folder where every split's file is called alike."""
    path = path.resolve()
    return is_scored_name(path.parent.name if path.name == "meta_expressions.json" else path.stem)


def is_scored_name(name: str) -> bool:
    """True for ``valid``, ``v1.0/test``, ``meta_expressions_valid_``; False for ``train_without_valid``."""
    return bool(_SCORED_WORD.search(name.lower())) and not _TRAIN_WORD.search(name.lower())


def scored_by_content(parts: Sequence[Part], *, meta: str) -> tuple[str | None, list[str]]:
    """(the reason for which data must not be trained on: a scored split beside it holds them, too, or None; remarks).

    A remark names a scored file that could not be compared with, such as the pointer to one that was not fetched.

    parts: the data sets, a split without a name being ``train``; meta: as above. An expression is scored if a scored
    file has its video; where the benchmark's own training file has that video, too, only if the scored file has the
    expression itself. Nothing but expression files is read.
    """
    remarks = []
    for part in parts:
        root, form = Path(part.root), EXPRESSIONS.get(part.name)
        source = Path(meta) if meta else root / str(form).format(part.split or TRAINING)
        asked = _read(source) if form else {}
        for path in (root / str(form).format(split) for split in SCORED.get(part.name, ())):
            try:
                scored = _read(path)
            except DataError as error:
                remarks.append(f"{error}; whether it holds what is trained on was not looked at")
                continue
            shared = asked.keys() & scored.keys()
            if shared and part.name != "vicas":  # whose lists name videos alone, none of them in two parts
                training = _read(root / str(form).format(TRAINING))
                shared = {v for v in shared if v not in training or asked[v] & scored[v]}
            if shared:
                return (
                    f"{source}: {len(shared):,} of its {len(asked):,} videos (the first: {min(shared)}) are those of "
                    f"{path}, which is scored by the benchmark, so they must not be trained on"
                ), remarks
    return None, remarks


def _read(path: Path) -> dict[str, frozenset[str]]:
    """The expressions of each video of an expression file, or of a list of ViCaS, which holds videos alone; empty for a
    file that is not there."""
    if not path.is_file():
        return {}
    document = base.load_json(path)
    if isinstance(document, list):
        return {f"{number:06d}": frozenset() for number in document if type(number) is int}
    return {
        video: frozenset(
            str(e.get("exp")).strip().rstrip(".").strip().lower() for _, e, _ in fields.expressions(entry, where)
        )
        for video, entry, where in fields.videos(path, slashes=True)
    }
