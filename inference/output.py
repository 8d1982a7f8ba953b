"""The run folder: masks, predictions and timings on disk, each written when it is made, whole or not at all.

``Annotations/<video>/<exp_id>/<frame>.png`` (0/255, 8 bits or 1) or ``masks.jsonl`` (`veason.mask_lines`),
``predictions.jsonl``, ``timings.jsonl``, ``run.json``. A sample is done if its lines stand in the journals and its
masks are whole. The line in ``predictions.jsonl`` comes last, once the rest is on the disk. Damage is found when the
run is started again, and what is damaged is made again. Samples come in any order; a finished run has its lines in that
of the data set. With several shards each keeps its own lines under ``shards/``; the last one to finish joins them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import run_record
from inference.pipeline import Finished
from veason import atomic, mask_lines, mask_png
from veason.errors import DataError
from veason.files import check_regular
from veason.masks import check_track, track_unions
from veason.types import Prediction, Size, VideoSample

_log = logging.getLogger(__name__)

MASKS = ("png", "png1", "rle")
"""The forms of stored masks: a PNG a frame of 8 bits or of 1, or all as RLEs in ``masks.jsonl``."""


@dataclass(frozen=True)
class Shard:
    """The share of one of `count` processes: the i-th takes videos i, i + count, …"""

    index: int = 0
    count: int = 1

    def take(self, samples: Iterable[VideoSample]) -> list[VideoSample]:
        """Selects this shard's samples, in data-set order; the expressions of a video stay together."""
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
    """Encodes a prediction for `RunFolder.keep`; `masks` is one of `MASKS`."""
    prediction, track = finished.prediction, finished.prediction.track
    sample = prediction.sample
    pictures: tuple[bytes, ...] | None = None
    if masks != "rle":
        bits: mask_png.Bits = 1 if masks == "png1" else 8
        if track.objects:
            pictures = tuple(mask_png.encode(mask, bits=bits) for mask in track_unions(track))
        else:
            pictures = (mask_png.encode(np.zeros(track.size, bool), bits=bits),) * track.length
    return Packed(
        key=sample.key,
        prediction=prediction_record(prediction),
        timing={
            **{"video": sample.video, "exp_id": sample.exp_id, "frames": len(sample)},
            "seconds": {stage: round(value, 6) for stage, value in finished.seconds.items()},
        },
        pictures=pictures,
        masks=mask_lines.track_record(sample, track) if masks == "rle" else None,
    )


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
        """Takes the samples of the whole run, with those of all shards.

        record: the content of ``run.json`` (`inference.run_record`). masks: the form of stored masks, one of `MASKS`.
        """
        self.path, self.shard, self.masks = Path(path), shard, masks
        self._all, self.samples = samples, shard.take(samples)
        self._by_key = {sample.key: sample for sample in samples}
        self._record = record
        self._partial = self.path / f".partial-{shard.index}"
        self._names = ("predictions", "timings", *(["masks"] if masks == "rle" else []))

    def __enter__(self) -> RunFolder:
        self._lock = atomic.Lock(self.path / f".lock-{self.shard.index}")  # held until exit
        try:
            with atomic.Lock(self.path / ".lock-run", wait=True):  # shards that start together
                record = self.path / "run.json"
                journals = [self.path / "predictions.jsonl", *self.path.glob("shards/predictions-*.jsonl")]
                found = next((path for path in journals if path.is_file() and path.stat().st_size > 0), None)
                if found is not None and (not record.exists() or record.stat().st_size == 0):
                    raise DataError(
                        f"{record} is {'empty' if record.exists() else 'missing'}, so nothing says how {found.name} "
                        "was made; put it back, or choose another --output"
                    )
                run_record.keep(record, self._record)
            shutil.rmtree(self._partial, ignore_errors=True)
            self.done = self._read_done()
            """Keys of the samples that are finished, by earlier runs or this one."""
            self._journals = {name: atomic.Journal(self._lines(name, self.shard.index)) for name in self._names}
        except BaseException:
            self._lock.close()
            raise
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

    def describe(self, policy: dict[str, Any]) -> None:
        """Keeps the policy's description in ``run.json``; it must be the same as when the run began."""
        self._record = {**self._record, "policy": policy}
        with atomic.Lock(self.path / ".lock-run", wait=True):
            run_record.keep(self.path / "run.json", self._record)

    def _read_done(self) -> set[str]:
        """Finds the samples of which earlier runs left every file whole.

        The lines of damaged ones are taken out of the journals, with a warning, so that they are predicted again. The
        journal of predictions must have one line for each of its samples, all of this shard.
        """
        paths = {name: self._lines(name, self.shard.index) for name in self._names}
        spans = {name: self._spans(name, [path]) for name, path in paths.items()}
        own = {sample.key for sample in self.samples}
        odd = next((key for key in spans["predictions"] if key not in own), spans["predictions"].repeated)
        if odd:
            raise DataError(
                f"{paths['predictions']}: {odd} is not a sample of this run, or appears twice; choose another --output"
            )
        damage = {key: self._damage(key, spans) for key in own if any(key in found for found in spans.values())}
        done = {key for key, problem in damage.items() if problem is None}
        lost = [key for sample in self.samples if (key := sample.key) in spans["predictions"] and key not in done]
        unread = [path for name, path in paths.items() if spans[name].unread]
        if lost or unread:
            first = f"first {lost[0]}: {damage[lost[0]]}" if lost else f"{unread[0]} has lines that are no records"
            _log.warning(
                "%s: damaged since it was written: %d finished samples are made again (%s)",
                *(self.path, len(lost), first),
            )
            for name, path in paths.items():
                if path.exists():
                    kept = [key for key in spans[name] if key in done]
                    atomic.write_parts(path, spans[name].lines(kept))
        return done

    def _spans(self, name: str, paths: Iterable[Path]) -> _Spans:
        """Finds the whole lines of some journals; a line of masks must be one of its sample."""

        def fits(key: str, record: dict[str, Any]) -> bool:
            try:
                line = mask_lines.parse(record, key)
                check_track([line.rle(t) for t in range(len(line.counts))], line.size, key)
            except ValueError:
                return False
            sample = self._by_key.get(key)
            return sample is None or (line.size == sample.size and len(line.counts) == len(sample))

        return _Spans.read(paths, fits if name == "masks" else lambda key, record: True)

    def _damage(self, key: str, spans: dict[str, _Spans]) -> str | None:
        """Describes the first damage of a sample's files; None if every one is whole."""
        for name, lines in spans.items():
            if key not in lines:
                return f"{name}.jsonl has no whole line of it"
        if self.masks == "rle":
            return None
        sample = self._by_key[key]
        folder = self.path / "Annotations" / sample.video / sample.exp_id
        return next(
            (found for name in sample.frames if (found := png_damage(folder / f"{name}.png", sample.size))), None
        )

    def write(self, finished: Finished) -> None:
        """Encodes and keeps one prediction."""
        self.keep(pack(finished, masks=self.masks))

    def keep(self, packed: Packed) -> Packed:
        """Writes one prediction, not yet `done`: masks first, then, once they are on the disk, its line."""
        try:
            if packed.pictures is not None:
                sample = self._by_key[packed.key]
                partial = self._partial / sample.exp_id
                target = self.path / "Annotations" / sample.video / sample.exp_id
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                for name, data in zip(sample.frames, packed.pictures, strict=True):
                    (partial / f"{name}.png").write_bytes(data)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():  # damaged, or of a run killed between the masks and the line
                    shutil.rmtree(target)
                os.replace(partial, target)
            if packed.masks is not None:
                self._journals["masks"].append(packed.masks)
            self._journals["timings"].append(packed.timing)
            atomic.sync_filesystem(self.path)
            self._journals["predictions"].append(packed.prediction)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.path}: no space left while writing {packed.key}; free some and run the same command "
                    "again: finished samples are kept"
                ) from error
            raise
        self.done.add(packed.key)
        return packed

    def join(self) -> bool:
        """Puts all lines into the data set's order if every shard is complete, and tells whether that is so.

        The files of other shards are checked like those of this one (`_read_done`). The folder takes no more
        predictions after this.
        """
        for journal in self._journals.values():
            journal.sync()
        self._close()
        wanted = [sample.key for sample in self._all]
        sources = {name: [self._lines(name, i) for i in range(self.shard.count)] for name in self._names}
        spans = {name: self._spans(name, paths) for name, paths in sources.items()}
        if any(key not in self.done and self._damage(key, spans) for key in wanted):
            return False
        for name in self._names:
            target = self.path / f"{name}.jsonl"
            in_place = list(spans[name]) == wanted and sources[name] == [target]
            if not in_place or spans[name].repeated:
                atomic.write_parts(target, spans[name].lines(wanted))
        return True


def png_damage(path: Path, size: Size) -> str | None:
    """Tells why a file is no whole PNG of `size`, as far as that shows without inflating it; None for a whole one."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe of this name does not hold us
    except FileNotFoundError:
        return f"{path} is missing"
    try:
        length = os.fstat(handle).st_size
        data = os.pread(handle, min(length, _LARGEST_PNG), 0)
    except OSError as error:  # a folder or a pipe
        return f"{path} cannot be read ({error.strerror})"
    finally:
        os.close(handle)
    if not (data.startswith(_PNG_START) and data.endswith(_PNG_END)):
        return f"{path} is {'empty' if length == 0 else 'cut off or no PNG'}"
    found = (int.from_bytes(data[20:24]), int.from_bytes(data[16:20]))
    if found != size:
        return f"{path} is {found}, the video is {size} (height, width)"
    start = 8
    while start < len(data):  # each chunk: length, type, contents, checksum of both
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return f"{path} is not as it was written (a checksum differs)"
        start = end + 4
    return None


_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_LARGEST_PNG = 1 << 26
"""The largest number of bytes of a mask's PNG."""


class _Spans(dict[str, tuple[Path, int, int]]):
    """The place of the last line of each key: file, start and length. They are in the order of the first lines."""

    repeated: str | None = None
    """A key that has more than one line: a run was killed between a sample's lines."""
    unread = 0
    """The number of whole lines that are no records of the kind."""

    @classmethod
    def read(cls, paths: Iterable[Path], fits: Callable[[str, dict[str, Any]], bool]) -> _Spans:
        """Finds the lines of some journals that hold records for which `fits` is true; a missing file has none."""
        spans = cls()
        for path in paths:
            if path.exists():
                check_regular(path)
            start = 0
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # a shard that has not begun
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # a shard that is still being written
                    try:
                        record = json.loads(line)
                        key = f"{record['video']}/{record['exp_id']}"
                        whole = isinstance(record["video"], str) and isinstance(record["exp_id"], str)
                    except (ValueError, RecursionError, TypeError, KeyError):  # no JSON, or no record of a sample
                        whole = False
                    if whole and fits(key, record):
                        spans.repeated = key if key in spans else spans.repeated
                        spans[key] = (path, start, len(line))
                    else:
                        spans.unread += 1
                    start += len(line)
        return spans

    def lines(self, keys: Iterable[str]) -> Iterator[bytes]:
        """Reads the lines of some keys again."""
        files = {path: open(path, "rb") for path in {path for path, _, _ in self.values()}}  # noqa: SIM115
        try:
            for key in keys:
                path, start, length = self[key]
                files[path].seek(start)
                yield files[path].read(length)
        finally:
            for file in files.values():
                file.close()


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """Makes the line of ``predictions.jsonl`` of a prediction; `inference.policies.replay` reads it back."""
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
        "reading": "lenient" if reply.repairs else "strict",
        "repairs": list(reply.repairs),
        "thinking": reply.thinking,
        "reply": reply.text,
    }
