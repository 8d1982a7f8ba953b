"""Keeps the record of a run, ``run.json``: settings, inputs, versions, policy. A resumed run must agree with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veason import atomic, files
from veason.datasets import inputs as data_inputs
from veason.datasets.base import Dataset, check_object
from veason.errors import DataError
from veason.types import VideoSample

MAY_CHANGE = ("limit", "samples", "sam2_spill_dir", "sam2_offload")
"""The settings that may change when a run is resumed: no prediction depends on them."""

COMPARED = ("settings", "inputs", "policy")
"""The parts of the record that a resumed run must agree with."""

ADDED = ("data truth",)
"""Inputs that older records do not hold; where one lacks them, they are not compared."""

OLDER = {"reading": "strict", "generation_defaults": "checkpoint"}
"""The values of settings in runs that are older than the setting."""

_MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".jinja")


def keep(path: Path, record: dict[str, Any]) -> None:
    """Writes ``run.json`` or, where there is one, checks that its run is resumed as it was begun.

    A DataError says in which settings and inputs they differ. A setting that may change takes its new value; the
    earlier ones are kept under ``earlier_settings``. A part that the file does not have yet is added.
    """
    record = json.loads(json.dumps(record))
    if not path.exists() or path.stat().st_size == 0:  # empty: the disk was full
        atomic.write_json(path, record)
        return
    before = check_object(files.load_json(path), str(path))
    if not isinstance(before.get("settings"), dict):
        raise DataError(f"{path}: expected an object with settings; choose another --output")
    now = record["settings"]
    then = before["settings"] = {name: value for name, value in OLDER.items() if name in now} | before["settings"]
    for part in COMPARED:
        changed = _changed(before.get(part), record.get(part))
        if part == "inputs":
            changed = {name: how for name, how in changed.items() if name not in ADDED or name in before[part]}
        hard = {name: how for name, how in changed.items() if part != "settings" or name not in MAY_CHANGE}
        if hard:
            what = "; ".join(f"{name}: {how}" for name, how in hard.items())
            raise DataError(f"{path}: the folder holds another run ({what}); {_REMEDIES[part]}")
    if _samples(now) < _samples(then):
        raise DataError(
            f"{path}: the folder holds a run of {_samples(then)} samples, this one is of {_samples(now)}; raise "
            "--limit, or choose another --output"
        )
    merged = {**before, **record, "versions": before.get("versions", record["versions"])}
    if record["versions"] not in (merged["versions"], *before.get("later_versions", [])):
        merged["later_versions"] = [*before.get("later_versions", []), record["versions"]]
    if _changed(then, now):
        merged["earlier_settings"] = [*before.get("earlier_settings", []), then]
    if merged != before:
        atomic.write_json(path, merged)


_REMEDIES = {
    "settings": "choose another --output",
    "inputs": "put back what was there (with its time: cp -p, rsync -t), or choose another --output",
    "policy": "ask it as before, or choose another --output",
}


def _changed(before: Any, now: Any) -> dict[str, str]:
    """Describes the differences between two records of a part; there are none where one of them lacks the part."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return {}
    return {
        name: f"{_words(before.get(name))} there, {_words(now.get(name))} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    }


def _words(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 160 else f"{text[:159]}…"


def _samples(settings: dict[str, Any]) -> int:
    found = settings.get("samples")
    return found if isinstance(found, int) else 0


def inputs(
    dataset: Dataset,
    samples: Sequence[VideoSample],
    *,
    model: str | None = None,
    tracker: Sequence[str | None] = (),
    replay: str | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """Makes the fingerprints of everything that a run reads; a resumed run must have the same.

    samples: those of the whole split, so that another limit is no other input. model: a checkpoint folder (a hub name
    has no fingerprint). tracker: config and weights, as far as they are files. replay: recorded predictions. template:
    the text of the prompt. Frames count by name, size and time only.
    """
    found: dict[str, Any] = {
        role if role == "frames" else f"data {role}": print_
        for role, print_ in data_inputs.fingerprints(dataset, samples).items()
    }
    if model is not None and Path(model).is_dir():
        weights = sorted(p for p in Path(model).iterdir() if p.is_file() and p.suffix in _MODEL_FILES)
        found |= {f"model {path.name}": files.fingerprint(path) for path in weights}
    found |= {
        f"tracker {Path(name).name}": files.fingerprint(Path(name)) for name in tracker if name and Path(name).is_file()
    }
    if replay is not None:
        found["replay"] = files.fingerprint(Path(replay))
    if template is not None:
        found["prompt"] = hashlib.sha256(template.encode()).hexdigest()[:16]
    return found
