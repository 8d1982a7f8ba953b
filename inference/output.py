"""The run folder: masks, predictions and timings on disk, written as they come, whole or not at all.

``Annotations/<video>/<exp_id>/<frame>.png`` (8-bit, 0/255), ``predictions.jsonl`` (data-set order), ``timings.jsonl``,
``run.json``. A sample counts as done once its line stands in ``predictions.jsonl``; its masks are in place before.
With several shards each keeps its own lines under ``shards/``; whoever finishes last joins them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from inference.pipeline import Finished
from veason import atomic
from veason.errors import DataError
from veason.types import Prediction, VideoSample


@dataclass(frozen=True)
class Shard:
    """One of `count` equal processes, by videos: the i-th takes videos i, i + count, …"""

    index: int = 0
    count: int = 1

    def take(self, samples: Iterable[VideoSample]) -> list[VideoSample]:
        """This shard's samples in data-set order; the expressions of a video stay together."""
        order: dict[str, int] = {}
        return [s for s in samples if order.setdefault(s.video, len(order)) % self.count == self.index]


class RunFolder:
    """One shard's view of a run folder. Use as a context manager: it holds the shard's lock meanwhile."""

    def __init__(
        self, path: str | Path, *, shard: Shard, samples: Sequence[VideoSample], record: dict[str, Any]
    ) -> None:
        """`samples`: the whole run's, all shards. `record`: ``run.json``, whose ``settings`` must not change."""
        self.path, self.shard = Path(path), shard
        self._all, self.samples = samples, shard.take(samples)
        self._record = record
        self._partial = self.path / f".partial-{shard.index}"

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / f".lock-{self.shard.index}", "w")  # held until exit
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.path}: another process is writing this shard; wait for it or end it") from None
        self._check_settings()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._predictions = atomic.Journal(self._lines("predictions", self.shard.index))
        self._timings = atomic.Journal(self._lines("timings", self.shard.index))
        self.done = self._count_done()
        return self

    def __exit__(self, *_: object) -> None:
        self._predictions.close()
        self._timings.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._lock.close()

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

    def _count_done(self) -> int:
        """Samples finished by earlier runs: the journal must be the beginning of this shard's list."""
        keys = [f"{r['video']}/{r['exp_id']}" for r in atomic.read_journal(self._predictions.path)]
        if keys != [sample.key for sample in self.samples[: len(keys)]]:
            raise DataError(f"{self._predictions.path}: does not follow the data set's order; choose another --output")
        return len(keys)

    def write(self, finished: Finished) -> None:
        """Keep one prediction: masks first, then its lines."""
        prediction = finished.prediction
        try:
            self._write_masks(prediction)
            key = {"video": prediction.sample.video, "exp_id": prediction.sample.exp_id}
            seconds = {stage: round(value, 6) for stage, value in finished.seconds.items()}
            self._timings.append({**key, "frames": len(prediction.sample), "seconds": seconds})
            self._predictions.append(prediction_record(prediction))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.path}: no space left while writing {prediction.sample.key}; free some and run the same "
                    "command again: finished samples are kept"
                ) from error
            raise

    def _write_masks(self, prediction: Prediction) -> None:
        sample = prediction.sample
        partial, target = self._partial / sample.exp_id, self.path / "Annotations" / sample.video / sample.exp_id
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        empty = encode_png(np.zeros(sample.size, dtype=bool)) if not prediction.track.objects else None
        for t, name in enumerate(sample.frames):
            (partial / f"{name}.png").write_bytes(empty or encode_png(prediction.track.union(t)))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # of a run killed between the masks and the line
            shutil.rmtree(target)
        os.replace(partial, target)

    def join_shards(self) -> bool:
        """Once every shard is complete: write the joined files in data-set order. True if the whole run is done."""
        if self.shard.count == 1:
            return len(list(atomic.read_journal(self._predictions.path))) == len(self._all)
        for name in ("predictions", "timings"):
            records: dict[str, dict[str, Any]] = {}
            for index in range(self.shard.count):
                path = self._lines(name, index)
                for record in atomic.read_journal(path) if path.exists() else ():
                    records[f"{record['video']}/{record['exp_id']}"] = record
            if any(sample.key not in records for sample in self._all):
                return False
            lines = [json.dumps(records[sample.key], ensure_ascii=False) + "\n" for sample in self._all]
            atomic.write_bytes(self.path / f"{name}.jsonl", "".join(lines).encode())
        return True


def encode_png(mask: np.ndarray) -> bytes:
    """An (H, W) bool mask as an 8-bit grey PNG of 0 and 255."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(mask).view(np.uint8) * 255)
    assert ok, f"a mask of shape {mask.shape} could not be encoded"
    return data.tobytes()


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
