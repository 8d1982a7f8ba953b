"""Turn chain-of-thought records into a LLaMA-Factory data set: the chats, and their frames at model pixels.

    python -m training_data_construction.build_sft --cot cot.json --data-root ROOT --output sft_data

writes ``dataset_info.json``, ``train.json`` and ``images/<video>/<frame>.png`` below the output. The question is the
very prompt of GRPO and of inference, the frames are resized by the same function, so nothing changes between stages.
Run again to go on: finished frames are kept.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from training_data_construction.records import CotRecord, read_records
from veason import atomic, datasets, frames, prompt
from veason.datasets.base import check_name
from veason.errors import DataError
from veason.family import QWEN2_5_VL
from veason.types import Size, VideoSample

_MARK = re.compile(r"<(?:image|video|audio)>|<\|[^<>|]*\|>", re.IGNORECASE)
"""What LLaMA-Factory or the tokenizer would take for a picture, a sound or a control token."""


@dataclass(frozen=True)
class Pictures:
    """The frames of one video that some record shows: one piece of work for the pool."""

    sample: VideoSample
    """Any sample of the video."""
    frame_ids: tuple[int, ...]
    size: Size
    """Model (height, width)."""
    output: Path

    def write(self) -> int:
        """Decode, resize and store what is not there yet, each frame whole or not at all; the number of frames."""
        for t in self.frame_ids:
            path = self.output / picture_name(self.sample, t)
            if not self._finished(path, self.sample.frame_path(t)):
                frame = frames.resize(frames.load(self.sample.frame_path(t), expect=self.sample.size), self.size)
                buffer = io.BytesIO()
                Image.fromarray(frame).save(buffer, format="PNG")
                atomic.write_bytes(path, buffer.getvalue())
        return len(self.frame_ids)

    def _finished(self, path: Path, source: Path) -> bool:
        """Whether the picture is of the model size and no older than its frame."""
        if not path.is_file() or not source.is_file() or path.stat().st_mtime_ns < source.stat().st_mtime_ns:
            return False
        with Image.open(path) as image:
            return (image.height, image.width) == self.size


def picture_name(sample: VideoSample, frame_id: int) -> str:
    """Path of a frame below the data folder; the reader has checked that video and frame names stay where they are."""
    return f"images/{sample.video}/{sample.frames[frame_id]}.png"


def build_row(record: CotRecord, *, template: str | None = None) -> dict[str, Any]:
    """A record as LLaMA-Factory reads it: three messages, and the pictures of the user's marks in order."""
    question = prompt.text(record.sample.expression, record.clip, template=template)
    try:
        reply = record.reply
    except ValueError as error:
        raise DataError(f"{record.sample.key}: {error}; drop or correct the record") from error
    marks = _MARK.findall(question)
    if marks != [prompt.IMAGE] * len(record.clip) or _MARK.search(reply):
        wrong = _MARK.findall(reply) or [mark for mark in marks if mark != prompt.IMAGE]
        raise DataError(f"{record.sample.key}: the text holds a control mark of the model {wrong[:1]}; drop the record")
    return {
        "messages": [
            {"role": "system", "content": prompt.SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": reply},
        ],
        "images": [picture_name(record.sample, t) for t in record.clip.frame_ids],
    }


def dataset_info(name: str) -> dict[str, Any]:
    """The entry by which LLaMA-Factory finds and reads ``train.json``."""
    tags = {f"{role}_tag": role for role in ("user", "assistant", "system")}
    return {
        name: {
            "file_name": "train.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", **tags},
        }
    }


def model_size(records: Sequence[CotRecord]) -> Size:
    """The one size of all records. DataError if they disagree, or if the processor would resize again."""
    sizes = {record.clip.size: record.sample.key for record in reversed(records)}
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width} ({key})" for (height, width), key in sorted(sizes.items()))
        raise DataError(f"the records were made for different model sizes: {found}; build one data set per size")
    return QWEN2_5_VL.check_size(next(iter(sizes)))


def plan(records: Iterable[CotRecord], size: Size, output: Path) -> list[Pictures]:
    """The pictures to make, each frame of a video once, video by video."""
    shown: dict[str, tuple[VideoSample, set[int]]] = {}
    for record in records:
        shown.setdefault(record.sample.video, (record.sample, set()))[1].update(record.clip.frame_ids)
    return [Pictures(sample, tuple(sorted(ids)), size, output) for sample, ids in shown.values()]


def write_pictures(jobs: Sequence[Pictures], *, workers: int) -> None:
    total = sum(len(job.frame_ids) for job in jobs)
    with _mapper(workers) as run, tqdm(total=total, unit="frame", disable=None, desc="frames") as bar:
        for count in run(Pictures.write, jobs):
            bar.update(count)


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """`map` in this process or over a pool of them."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield pool.map


def check_origin(output: Path, origin: dict[str, Any]) -> None:
    """Note where the pictures come from; DataError if the folder's are from elsewhere."""
    path = output / "build.json"
    if not path.exists():
        atomic.write_json(path, origin)
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != origin:
        raise DataError(f"{output} holds pictures of {found}, now asked for {origin}; name another --output")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training_data_construction.build_sft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cot", type=Path, required=True, metavar="FILE", help="records of seed_cot_generation.py")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder that holds mask_dict.json")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR", help="folder of the videos (default: DATA_ROOT/JPEGImages)"
    )
    parser.add_argument("--meta", type=Path, metavar="FILE", help="another expression file, such as a sampled subset")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="data folder; unfinished work goes on"
    )
    parser.add_argument("--name", default="veason_cot", help="name of the data set (default: %(default)s)")
    parser.add_argument("--prompt-template", type=Path, metavar="FILE", help="another wording of the prompt")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--no-thinking", action="store_true", help="empty think blocks: the ablation without chain of thought"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        build(args)
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where this one was\n")
        return 2
    return 0


def build(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise DataError(f"--workers must be at least 1, found {args.workers}")
    check_name(args.name, "--name")
    dataset = datasets.open_dataset(
        "revos", args.data_root, split=args.split, image_root=args.image_root, meta=args.meta
    )
    records = list(read_records(args.cot, dataset))
    if not records:
        raise DataError(f"{args.cot}: no records; make some with seed_cot_generation.py")
    if args.no_thinking:
        records = [replace(record, thinking="") for record in records]
    template, size = prompt.load_template(args.prompt_template), model_size(records)
    rows = [build_row(record, template=template) for record in records]
    image_root = args.image_root or args.data_root / "JPEGImages"
    check_origin(args.output, {"image_root": str(image_root.resolve()), "model_size": list(size)})
    write_pictures(plan(records, size, args.output), workers=args.workers)
    atomic.write_bytes(args.output / "train.json", (json.dumps(rows, indent=1) + "\n").encode("ascii"))
    atomic.write_json(args.output / "dataset_info.json", dataset_info(args.name))
    pictures = len({name for row in rows for name in row["images"]})
    print(f"{args.output}: {len(rows)} samples, {pictures} frames of {size[0]}x{size[1]} pixels")


if __name__ == "__main__":
    sys.exit(main())
