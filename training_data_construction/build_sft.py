"""Turns chain-of-thought records into a LLaMA-Factory data set: the chats, and their frames at model pixels.

    python -m training_data_construction.build_sft --cot cot.json --data-root ROOT --output sft_data

writes ``dataset_info.json``, ``train.json`` and ``images/<video>/<frame>.png`` below the output, and ``veason.json``,
which the trained checkpoint will carry (`veason.prompt_settings`). The question is the prompt of GRPO and of inference,
and the frames are resized by the same function, so nothing changes between stages.

Run the command again to resume: finished frames are kept. ``build.json`` and ``pictures.jsonl`` note the inputs;
pictures that are damaged, or whose frames have changed since, are made again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from training_data_construction.records import CotRecord, read_records
from veason import atomic, datasets, frames, prompt, prompt_settings
from veason.command import run_command
from veason.datasets import scored
from veason.datasets.base import check_name, sha256
from veason.errors import DataError
from veason.family import QWEN2_5_VL
from veason.files import fingerprint, load_json
from veason.types import Size, VideoSample
from veason.worker_pool import map_in_order

logger = logging.getLogger(__name__)

REPLY_TOKENS = 1024
"""Most tokens of a reply of a policy trained on the data set, as in the paper."""


@dataclass(frozen=True)
class Pictures:
    """The frames of one video that some record shows: one job of the worker pool."""

    sample: VideoSample
    """Any sample of the video."""
    frame_ids: tuple[int, ...]
    size: Size
    """Model (height, width)."""
    output: Path
    known: Mapping[str, dict[str, Any]]
    """By picture the note of an earlier run: the frame's fingerprint and the picture's hash."""


def write_pictures_of(_: None, job: Pictures) -> list[dict[str, Any]]:
    """Decodes, resizes and stores missing pictures, each whole or not at all; returns the notes of those made.

    A picture is not missing if its frame is the one that it was made from, by `files.fingerprint`, and its bytes are
    those that were written.
    """
    made = []
    for t in job.frame_ids:
        name, source = picture_name(job.sample, t), job.sample.frame_path(t)
        path, noted = job.output / name, job.known.get(name)
        origin = fingerprint(source) if source.is_file() else None
        if noted and origin == noted["source"] and path.is_file() and sha256(path) == noted["sha256"]:
            continue
        frame = frames.resize(frames.load(source, expect=job.sample.size), job.size)
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG")
        atomic.write_bytes(path, buffer.getvalue())
        made.append({"picture": name, "source": origin, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()})
    return made


def picture_name(sample: VideoSample, frame_id: int) -> str:
    """Returns the path of a frame below the data folder; the reader has checked that no name leaves its folder."""
    return f"images/{sample.video}/{sample.frames[frame_id]}.png"


def build_row(record: CotRecord, *, template: str | None = None) -> dict[str, Any]:
    """Converts a record to LLaMA-Factory's form: three messages, and the pictures of the user's marks in order."""
    question = prompt.text(record.sample.expression, record.clip, template=template)
    try:
        reply = record.reply
    except ValueError as error:
        raise DataError(f"{record.sample.key}: {error}; drop or correct the record") from error
    if wrong := prompt.MARKS.search(reply) or prompt.REPLY_TAGS.search(record.thinking):
        raise DataError(
            f"{record.sample.key}: the chain of thought holds {wrong[0]!r}, a control mark of the model or a tag of "
            "the reply format; drop the record"
        )
    return {
        "messages": [
            {"role": "system", "content": prompt.SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": reply},
        ],
        "images": [picture_name(record.sample, t) for t in record.clip.frame_ids],
    }


def dataset_info(name: str) -> dict[str, Any]:
    """Returns the entry by which LLaMA-Factory finds and reads ``train.json``."""
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
    """Returns the one size of all records; DataError if they disagree, or if the processor would resize again."""
    sizes = {record.clip.size: record.sample.key for record in reversed(records)}
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width} ({key})" for (height, width), key in sorted(sizes.items()))
        raise DataError(f"the records were made for different model sizes: {found}; build one data set per size")
    return QWEN2_5_VL.check_size(next(iter(sizes)))


def plan(
    records: Iterable[CotRecord], size: Size, output: Path, known: Mapping[str, dict[str, Any]] | None = None
) -> list[Pictures]:
    """Plans the pictures, video by video, each frame once. known: the earlier notes by picture."""
    shown: dict[str, tuple[VideoSample, set[int]]] = {}
    for record in records:
        shown.setdefault(record.sample.video, (record.sample, set()))[1].update(record.clip.frame_ids)
    jobs = []
    for sample, ids in shown.values():
        names = [picture_name(sample, t) for t in sorted(ids)]
        noted = {name: known[name] for name in names if known and name in known}
        jobs.append(Pictures(sample, tuple(sorted(ids)), size, output, noted))
    return jobs


def write_pictures(records: Sequence[CotRecord], size: Size, output: Path, *, workers: int) -> int:
    """Makes the pictures that are missing, damaged, or of a frame that has changed since.

    Returns the number of those made again. ``pictures.jsonl`` notes the source of each. The caller holds the folder's
    lock.
    """
    for left in (output / "images").rglob(".*.png." + "[a-z0-9_]" * 8):  # of a run that was killed while writing
        left.unlink()
    again = 0
    with atomic.Journal(output / "pictures.jsonl") as journal:
        try:
            lines = list(atomic.read_journal(journal.path))
        except ValueError as error:
            raise DataError(f"{error}; remove the file, and the pictures are made again") from error
        known = {str(line.get("picture")): line for line in lines if line.get("source") and line.get("sha256")}
        jobs = plan(records, size, output, known)
        for made in map_in_order(write_pictures_of, None, jobs, workers=workers, label="frames", unit="video"):
            for line in made:
                again += line["picture"] in known
                journal.append(line)
    return again


def open_folder(output: Path, origin: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Notes the inputs of the data set in ``build.json``; DataError if the folder's pictures have another origin.

    If the inputs have changed, the old rows are removed first: a folder is whole only if all of it is of one build. The
    caller holds the folder's lock.
    """
    path = output / "build.json"
    before = load_json(path) if path.exists() else {}
    found = {key: before.get(key) for key in origin} if isinstance(before, dict) and before else origin
    if found != origin:
        raise DataError(f"{output} holds pictures of {found}, now asked for {origin}; name another --output")
    if before != {**origin, "inputs": inputs}:
        for name in ("dataset_info.json", "train.json"):
            (output / name).unlink(missing_ok=True)
        atomic.write_json(path, {**origin, "inputs": inputs})


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
        "--output", type=Path, required=True, metavar="DIR", help="data folder; an unfinished one is completed"
    )
    parser.add_argument("--name", default="veason_cot", help="name of the data set (default: %(default)s)")
    parser.add_argument("--prompt-template", type=Path, metavar="FILE", help="file with another prompt")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=REPLY_TOKENS, metavar="N",
        help="largest number of tokens of a reply, recorded in the trained checkpoint (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-thinking", action="store_true", help="write empty think blocks, for the ablation without chain of thought"
    )
    parser.add_argument(scored.OPTION, action="store_true", help="also use samples that a benchmark scores")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    for option, value in (("--workers", args.workers), ("--max-new-tokens", args.max_new_tokens)):
        if value < 1:
            raise DataError(f"{option} must be at least 1, found {value}")
    check_name(args.name, "--name")
    dataset = datasets.open_dataset(
        "revos", args.data_root, split=args.split, image_root=args.image_root, meta=args.meta
    )
    meta = dataset.files["meta"]
    for line in scored.check_file(meta, roots=[args.data_root, meta.parent], allowed=args.allow_scored_split):
        logger.warning("%s", line)
    records = list(read_records(args.cot, dataset))
    if not records:
        raise DataError(f"{args.cot}: no records; make some with seed_cot_generation.py")
    if args.no_thinking:
        records = [replace(record, thinking="") for record in records]
    template, size = prompt.load_template(args.prompt_template), model_size(records)
    rows = [build_row(record, template=template) for record in records]
    image_root = args.image_root or args.data_root / "JPEGImages"
    with atomic.Lock(args.output / ".lock"):
        for name in ("build.json", "train.json", "dataset_info.json", prompt_settings.NAME):
            atomic.remove_leftovers(args.output / name)
        origin = {"image_root": str(image_root.resolve()), "model_size": list(size)}
        inputs = {  # all but the frames; the masks are those that the boxes come from
            "cot_sha256": sha256(args.cot),
            "meta_sha256": sha256(dataset.files["meta"]),
            "masks": fingerprint(dataset.files["masks"]) if dataset.files["masks"].is_file() else None,
            "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "thinking": not args.no_thinking,
            "name": args.name,
        }
        open_folder(args.output, origin, inputs)
        again = write_pictures(records, size, args.output, workers=args.workers)
        prompt_settings.write(
            args.output,
            prompt_settings.PromptSettings(
                frames=max(len(record.clip) for record in records),
                size=size,
                family=QWEN2_5_VL.name,
                prompt_template=None if args.prompt_template is None else template,
                max_new_tokens=args.max_new_tokens,
            ),
        )
        atomic.write_bytes(args.output / "train.json", (json.dumps(rows, indent=1) + "\n").encode("ascii"))
        atomic.write_json(args.output / "dataset_info.json", dataset_info(args.name))
    if again:
        logger.info(
            "%s: %d pictures were damaged or their frames have changed; they were made again", args.output, again
        )
    pictures = len({name for row in rows for name in row["images"]})
    print(f"{args.output}: {len(rows)} samples, {pictures} frames of {size[0]}x{size[1]} pixels")


if __name__ == "__main__":
    sys.exit(main())
