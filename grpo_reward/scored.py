"""Splits that are there to be scored: nothing may be learned from them, whatever they are called.

A split's name says so, or a file's name, or what is in it: the samples to train on are compared with the expression
files of the scored splits that lie beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from veason.datasets import base, fields, refvos
from veason.datasets.mixture import Part, check_trainable, named_key
from veason.errors import DataError
from veason.types import VideoSample

SCORED = {
    "revos": ("meta_expressions_valid_.json", "meta_expressions_test_.json"),
    "mevis": tuple(f"{split}/meta_expressions.json" for split in ("valid_u", "valid", "test")),
    "refytvos": tuple(str(refvos.expression_file(Path(), split)) for split in ("valid", "test")),
    "refdavis": tuple(str(refvos.expression_file(Path(), split)) for split in ("valid", "test")),
    "vicas": tuple(f"splits/{version}/{part}.json" for version in ("v0.1", "v1.0") for part in ("val", "test")),
}
"""Files below a benchmark's root that hold what is scored. All of ReasonVOS is."""

TRAINING = {
    "revos": "meta_expressions_train_.json",
    "mevis": "train/meta_expressions.json",
    "refytvos": str(refvos.expression_file(Path(), "train")),
    "refdavis": str(refvos.expression_file(Path(), "train")),
}
"""The expression file below the root that may be learned from; the versions of ViCaS share no video across parts."""

_SCORED_WORD = re.compile(r"(?:^|[^a-z])(?:val|valid|test)(?:[^a-z]|$)")
_TRAIN_WORD = re.compile(r"(?:^|[^a-z])train(?:[^a-z]|$)")


def scored_by_name(parts: Sequence[Part], *, split: str, meta: str) -> str | None:
    """Why a split must not be trained on, from what it is called; None if its names say nothing.

    parts: the data sets that go by name; without any, `split` of ReVOS. meta: an expression file that is used instead.
    """
    if parts:
        try:
            check_trainable(parts)
        except DataError as error:
            return str(error)
    elif is_scored_name(split):
        return f"data.train_split={split}: it is there to be scored, so nothing may be trained on it"
    path = Path(meta).resolve()
    if meta and is_scored_name(path.parent.name if path.name == "meta_expressions.json" else path.stem):
        return f"data.train_meta={meta}: by its name, it is there to be scored, so nothing may be trained on it"
    return None


def is_scored_name(name: str) -> bool:
    """``valid``, ``v1.0/test``, ``meta_expressions_valid_``; not ``train_without_valid``."""
    return bool(_SCORED_WORD.search(name.lower())) and not _TRAIN_WORD.search(name.lower())


def scored_by_content(samples: Iterable[VideoSample], parts: Sequence[Part], *, source: str) -> str | None:
    """Why some samples must not be trained on: they are those of a scored split that lies beside the data. None if
    they are of none.

    A sample is one if a scored file has its video; where the training file of the benchmark has that video, too, only
    if the scored file has its expression. source: what the samples were read from, for the message.
    """
    by_name: dict[str, list[VideoSample]] = {}
    for sample in samples:
        by_name.setdefault(sample.dataset, []).append(sample)
    for part in parts:
        root, own = Path(part.root), by_name.get(part.name, [])
        for path in (root / name for name in SCORED.get(part.name, ())):
            scored = _read(path)
            shared = [sample for sample in own if sample.video in scored]
            training = _read(root / TRAINING[part.name]) if shared and part.name in TRAINING else {}
            same = [s for s in shared if s.video not in training or _plain(s.expression) in scored[s.video]]
            if same:
                return (
                    f"{source}: {len(same):,} of {len(own):,} samples (the first: {named_key(same[0])}) are of {path}, "
                    "which is there to be scored, so nothing may be trained on them"
                )
    return None


def _read(path: Path) -> dict[str, frozenset[str]]:
    """The expressions of each video of an expression file, or of a list of ViCaS, which holds videos alone; empty for a
    file that is not there."""
    if not path.is_file():
        return {}
    document = base.load_json(path)
    if isinstance(document, list):
        return {f"{number:06d}": frozenset() for number in document if type(number) is int}
    return {
        video: frozenset(_plain(str(e.get("exp"))) for _, e, _ in fields.expressions(entry, where))
        for video, entry, where in fields.videos(path, slashes=True)
    }


def _plain(expression: str) -> str:
    return expression.strip().rstrip(".").strip().lower()
