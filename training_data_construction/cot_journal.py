"""Keeps every paid answer on disk from the moment it comes, and writes the files made from the answers.

``OUTPUT.journal.jsonl`` holds all: settings of the run and fingerprints of its inputs in the first line, then one line
an answer. ``OUTPUT`` (the records, in the order of the samples) and ``OUTPUT.rejects.jsonl`` are made from it and can
be made again.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data_construction.cot_replies import MAX_CHARS
from training_data_construction.records import CotRecord
from veason import atomic
from veason.completion import Completion
from veason.errors import DataError
from veason.safe_text import printable


@dataclass
class Tally:
    """Sums over the answers of a journal."""

    answers: int = 0
    """Number of paid answers, fit or not."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, line: dict[str, Any]) -> None:
        self.answers += 1
        self.prompt_tokens += line["prompt_tokens"]
        self.completion_tokens += line["completion_tokens"]

    def cost(self, price_in: float, price_out: float) -> float:
        """Returns the cost in the unit of the prices, which are per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass(frozen=True)
class Outcome:
    """Counts of a run's samples by result."""

    records: int
    no_target: int
    """Samples whose target is in no frame."""
    missing: int
    """Samples without an answer so far."""
    rejected: Counter[str]
    """Samples with unfit answers only, by the reason of the last one."""


class CotJournal:
    """The journal of one output file, used as a context manager that holds the file's lock."""

    def __init__(
        self,
        output: Path,
        *,
        settings: dict[str, Any],
        inputs: dict[str, str] | None = None,
        accept_changes: bool = False,
        resume: bool = True,
    ) -> None:
        """settings: all settings that influence the answers; those of an earlier run must be the same.

        inputs: a fingerprint of each file or folder that is read, by a readable name. Those that an earlier run
        noted must be the same, unless `accept_changes`; others are added.
        """
        self.output, self._settings, self._resume = output, json.loads(json.dumps(settings)), resume
        self._inputs, self._accept = dict(inputs or {}), accept_changes
        self.path = output.with_name(f"{output.name}.journal.jsonl")
        self.rejects_path = output.with_name(f"{output.name}.rejects.jsonl")
        self.settled: set[str] = set()
        """Keys of samples with a record, or known to have no target."""
        self.records = 0
        """Number of fit answers."""
        self.rejections: Counter[str] = Counter()
        """Number of unfit answers by key."""
        self.tally = Tally()
        self._failed: OSError | None = None

    def __enter__(self) -> CotJournal:
        if self.output.exists() and not self.path.exists():
            raise DataError(
                f"{self.output}: exists without its journal {self.path.name}, so the run cannot be resumed; move it "
                "away or choose another --output_json"
            )
        self._journal = atomic.Journal(self.path)  # holds the file's lock
        try:
            self._resume_earlier()
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def _resume_earlier(self) -> None:
        """Reads the lines of earlier runs, settings first; settings without any answer are replaced by the new ones."""
        for path in (self.output, self.rejects_path):
            atomic.remove_leftovers(path)
        lines = self._lines()
        first, second = next(lines, None), next(lines, None)
        if first is not None and "settings" not in first:
            raise DataError(f"{self.path}:1: no settings; this is no journal of ours, choose another --output_json")
        if first is None or second is None:
            os.truncate(self.path, 0)
            self._journal.append({"settings": self._settings} | ({"inputs": self._inputs} if self._inputs else {}))
            return
        if not self._resume:
            raise DataError(
                f"{self.path}: holds the answers of an earlier run, and --no-resume starts only without one; move it "
                "away or choose another --output_json (nothing paid for is ever deleted)"
            )
        before, now = first["settings"], self._settings
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            differences = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)
            raise DataError(
                f"{self.path}: holds another run ({differences}); give its original settings to resume "
                "it, or choose another --output_json"
            )
        known: dict[str, str] = {}
        for line in itertools.chain([first, second], lines):
            if isinstance(line.get("inputs"), dict):
                known |= line["inputs"]
            elif line is not first:
                self._take(line)
        self._check_inputs(known)

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            yield from atomic.read_journal(self.path)
        except ValueError as error:
            raise DataError(f"{error}; take the line out of the file and run the same command again") from error

    def _check_inputs(self, known: dict[str, str]) -> None:
        """Checks that inputs are those of the answers so far, as far as these are known, and notes new ones."""
        changed = [name for name, value in self._inputs.items() if known.get(name, value) != value]
        if changed and not self._accept:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DataError(
                f"{self.path}: holds answers about other data: {', '.join(changed[:3])}{more} changed since; put back "
                "what was there, choose another --output_json, or give --accept-changed-inputs if nothing but the "
                "files' times differ (as after a copy)"
            )
        if new := {name: value for name, value in self._inputs.items() if known.get(name) != value}:
            self._journal.append({"inputs": new})

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if line["kind"] == "no_target":
                self.settled.add(line["key"])
                return
            self.tally.add(line)
            if line["kind"] == "record":
                self.settled.add(line["key"])
                self.records += 1
            else:
                self.rejections[line["key"]] += 1
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.path}: a line of another kind ({error!r}): {printable(line, limit=120)}") from error

    def accept(self, record: CotRecord, reply: Completion, *, template: str | None) -> None:
        """Keeps a fit answer."""
        self._append("record", record.sample.key, reply, record=record.to_json(template=template))

    def reject(self, key: str, reply: Completion, reason: str) -> None:
        """Keeps an unfit answer: it was paid for, and its text shows what to change."""
        self._append("rejected", key, reply, reason=reason, text=(reply.text or reply.reasoning)[:MAX_CHARS])

    def skip(self, key: str) -> None:
        """Notes that a sample's target is in no frame."""
        self._write({"kind": "no_target", "key": key})

    def _append(self, kind: str, key: str, reply: Completion, **more: Any) -> None:
        cost = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        self._write({"kind": kind, "key": key, **cost, "model": reply.model, "finish": reply.finish_reason, **more})

    def _write(self, line: dict[str, Any]) -> None:
        if self._failed:  # on a full disk: lines after a half-written one could not be read
            raise self._failed
        try:
            self._journal.append(line)
        except OSError as error:
            self._failed = error
            raise
        self._take(line)

    def assemble(self, keys: Sequence[str], *, failures: Iterable[tuple[str, str]] = ()) -> Outcome:
        """Writes records and rejects of the samples `keys`, in that order.

        failures: (key, last error) of samples that this run got no answer for.
        """
        last: dict[str, dict[str, Any]] = {}  # a record or no_target is the last line of its key
        for line in self._lines():
            if "key" in line:
                last[line["key"]] = line
        counts = Counter(_kind(last, key) for key in keys)
        records = (last[key]["record"] for key in keys if _kind(last, key) == "record")
        atomic.write_parts(self.output, _json_list(records))
        rejects = [
            {"key": key, "reason": last[key]["reason"], "answers": self.rejections[key], "text": last[key]["text"]}
            for key in keys
            if _kind(last, key) == "rejected"
        ]
        rejects += [{"key": key, "reason": "no_answer", "detail": detail} for key, detail in failures]
        atomic.write_parts(self.rejects_path, (_line(reject) + b"\n" for reject in rejects))
        return Outcome(
            records=counts["record"],
            no_target=counts["no_target"],
            missing=counts["missing"],
            rejected=Counter(last[key]["reason"] for key in keys if _kind(last, key) == "rejected"),
        )


def _kind(last: dict[str, dict[str, Any]], key: str) -> str:
    return last[key]["kind"] if key in last else "missing"


def _json_list(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Yields the parts of a JSON list, one record a line."""
    before = b"[\n"
    for record in records:
        yield before + _line(record)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
