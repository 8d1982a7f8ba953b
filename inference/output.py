"""The run folder: masks, predictions and timings on disk, written as they come, whole or not at all.

``Annotations/<video>/<exp_id>/<frame>.png`` (0/255, 8 bits or 1) or ``masks.jsonl`` (`veason.mask_lines`),
``predictions.jsonl``, ``timings.jsonl``, ``run.json``. A sample counts as done once its line stands in
``predictions.jsonl``; its masks are in place before. Samples come in any order; a finished run has its lines in that of
the data set. With several shards each keeps its own lines under ``shards/``; whoever finishes last joins them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.pipeline import Finished
from veason import atomic, mask_lines, mask_png
from veason.errors import DataError
from veason.types import MaskTrack, Prediction, VideoSample

MASKS = ("png", "png1", "rle")
"""How masks are stored: a PNG a frame of 8 bits or of 1, or all as RLEs in ``masks.jsonl``."""


@dataclass(frozen=True)
class Shard:
    """One of `count` equal processes, by videos: the i-th takes videos i, i + count, …"""

    index: int = 0
    count: int = 1

    def take(self, samples: Iterable[VideoSample]) -> list[VideoSample]:
        """This shard's samples in data-set order; the expressions of a video stay together."""
        order: dict[str, int] = {}
        return [s for s in samples if order.setdefault(s.video, len(order)) % self.count == self.index]


@dataclass(frozen=True)
class Packed:
    """A finished prediction as it will stand on disk. Small, and picklable."""

    key: str
    prediction: dict[str, Any]
    """The line of ``predictions.jsonl``."""
    timing: dict[str, Any]
    pictures: tuple[bytes, ...] | None
    """A PNG per frame; None where the masks are a line."""
    masks: dict[str, Any] | None
    """The line of ``masks.jsonl``; None where the masks are PNGs."""


def pack(finished: Finished, *, masks: str) -> Packed:
    """Encode what `RunFolder.keep` will write; `masks` is one of `MASKS`."""
    prediction = finished.prediction
    sample = prediction.sample
    key = {"video": sample.video, "exp_id": sample.exp_id}
    seconds = {stage: round(value, 6) for stage, value in finished.seconds.items()}
    return Packed(
        key=sample.key,
        prediction=prediction_record(prediction),
        timing={**key, "frames": len(sample), "seconds": seconds},
        pictures=None if masks == "rle" else _pictures(prediction.track, 1 if masks == "png1" else 8),
        masks=mask_lines.track_record(sample, prediction.track) if masks == "rle" else None,
    )


def _pictures(track: MaskTrack, bits: mask_png.Bits) -> tuple[bytes, ...]:
    if not track.objects:
        return (mask_png.encode(np.zeros(track.size, bool), bits=bits),) * track.length
    return tuple(mask_png.encode(mask, bits=bits) for mask in track.unions())


class RunFolder:
    """One shard's view of a run folder. Use as a context manager: it holds the shard's lock meanwhile."""

    def __init__(
        self,
        path: str | Path,
        *,
        shard: Shard,
        samples: Sequence[VideoSample],
        record: dict[str, Any],
        masks: str = "png",
    ) -> None:
        """`samples`: the whole run's, all shards. `record`: ``run.json``, whose ``settings`` must not change.
        `masks`: how they are stored, one of `MASKS`."""
        self.path, self.shard, self.masks = Path(path), shard, masks
        self._all, self.samples = samples, shard.take(samples)
        self._by_key = {sample.key: sample for sample in self.samples}
        self._record = record
        self._partial = self.path / f".partial-{shard.index}"
        self._names = ("predictions", "timings", *(["masks"] if masks == "rle" else []))

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / f".lock-{self.shard.index}", "w")  # held until exit
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.path}: another process is writing this shard; wait for it or end it") from None
        self._check_settings()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._journals = {name: atomic.Journal(self._lines(name, self.shard.index)) for name in self._names}
        self.done = self._read_done()
        """Keys of the samples that are finished, by earlier runs or this one."""
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.close()

    def _close(self) -> None:
        for journal in self._journals.values():
            journal.close()

    def _lines(self, name: str, index: int) -> Path:
        if self.shard.count == 1:
            return self.path / f"{name}.jsonl"
        return self.path / "shards" / f"{name}-{index}-of-{self.shard.count}.jsonl"

    def _check_settings(self) -> None:
        """Write ``run.json``, or make sure that the run to be resumed had the same settings."""
        path = self.path / "run.json"
        if not path.exists():
            atomic.write_json(path, self._record)
            return
        before = json.loads(path.read_text())["settings"]
        now = json.loads(json.dumps(self._record["settings"]))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)
            raise DataError(f"{path}: the folder holds another run ({what}); choose another --output")

    def _read_done(self) -> set[str]:
        """The samples finished by earlier runs: the journal must speak of this shard's, once of each."""
        path = self._journals["predictions"].path
        keys = [_key(record) for record in atomic.read_journal(path)]
        done = set(keys)
        if not done <= self._by_key.keys() or len(done) < len(keys):
            odd = next(key for i, key in enumerate(keys) if key not in self._by_key or key in keys[:i])
            raise DataError(f"{path}: {odd} is not this run's, or stands twice; choose another --output")
        return done

    def write(self, finished: Finished) -> None:
        """Keep one prediction."""
        self.keep(pack(finished, masks=self.masks))

    def keep(self, packed: Packed) -> None:
        """Write one prediction, not yet `done`: masks first, then its lines."""
        try:
            if packed.pictures is not None:
                self._write_pictures(self._by_key[packed.key], packed.pictures)
            if packed.masks is not None:
                self._journals["masks"].append(packed.masks)
            self._journals["timings"].append(packed.timing)
            self._journals["predictions"].append(packed.prediction)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.path}: no space left while writing {packed.key}; free some and run the same command "
                    "again: finished samples are kept"
                ) from error
            raise
        self.done.add(packed.key)

    def _write_pictures(self, sample: VideoSample, pictures: Sequence[bytes]) -> None:
        partial, target = self._partial / sample.exp_id, self.path / "Annotations" / sample.video / sample.exp_id
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in zip(sample.frames, pictures, strict=True):
            (partial / f"{name}.png").write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # of a run killed between the masks and the line
            shutil.rmtree(target)
        os.replace(partial, target)

    def join(self) -> bool:
        """Once every shard is complete: put all lines into the data set's order. True if the whole run is done.

        The folder takes no more predictions after this.
        """
        self._close()
        wanted = [sample.key for sample in self._all]
        sources = {name: [self._lines(name, i) for i in range(self.shard.count)] for name in self._names}
        spans = {name: _spans(paths) for name, paths in sources.items()}
        if any(key not in spans[name] for name in self._names for key in wanted):
            return False
        for name in self._names:
            target = self.path / f"{name}.jsonl"
            in_place = list(spans[name]) == wanted and sources[name] == [target]
            if not in_place or spans[name].repeated:
                atomic.write_parts(target, spans[name].lines(wanted))
        return True


class _Spans(dict[str, tuple[Path, int, int]]):
    """Where the last line of each key lies: file, start and length. In the order of the first lines."""

    repeated = False
    """A key has more than one line: a run was killed between a sample's lines."""

    def lines(self, keys: Iterable[str]) -> Iterator[bytes]:
        files = {path: open(path, "rb") for path in {path for path, _, _ in self.values()}}  # noqa: SIM115
        try:
            for key in keys:
                path, start, length = self[key]
                files[path].seek(start)
                yield files[path].read(length)
        finally:
            for file in files.values():
                file.close()


def _spans(paths: Iterable[Path]) -> _Spans:
    spans = _Spans()
    for path in paths:
        start = 0
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # a shard that has not begun
            for line in file:
                if not line.endswith(b"\n"):
                    break  # a shard that is still being written
                key = _key(json.loads(line))
                spans.repeated |= key in spans
                spans[key] = (path, start, len(line))
                start += len(line)
    return spans


def _key(record: dict[str, Any]) -> str:
    return f"{record['video']}/{record['exp_id']}"


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a line of ``predictions.jsonl``; `veason.policies.replay` reads it back."""
    sample, reply = prediction.sample, prediction.reply
    return {
        "video": sample.video,
        "exp_id": sample.exp_id,
        "expression": sample.expression,
        "type_id": sample.type_id,
        "frame_ids": list(prediction.clip.frame_ids),
        "model_size": list(prediction.clip.size),
        "family": prediction.family,
        "keyframe": prediction.keyframe,
        "boxes": [[round(value, 2) for value in box] for box in prediction.boxes],
        "problem": reply.problem,
        "detail": reply.detail,
        "thinking": reply.thinking,
        "reply": reply.text,
    }
