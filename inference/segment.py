"""Segments one video from one sentence: masks, an overlay to play, the keyframe with its boxes, the thinking.

Example, a checkpoint that answers:

    python -m inference.segment clip.mp4 "the person who throws last" --output out --policy hf --model CKPT

Example, a box given by hand on frame 0 and tracked without any weights:

    python -m inference.segment clip.mp4 "the juggler" --output out --keyframe 0 --box 400,60,820,700

Writes OUT/masks/<frame>.png (0/255; named by the video's own frame numbers), OUT/overlay.mp4, OUT/keyframe.png and
OUT/prediction.json, in place of what an earlier run left there.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from inference import options, output, overlay, pipeline, replies
from inference.policies import Policy, replay
from veason import atomic, frames, mask_png, masks, video
from veason import boxes as geometry
from veason.answer import REPAIRS
from veason.command import run_command
from veason.errors import DataError
from veason.safe_text import printable
from veason.trackers.base import Tracker
from veason.types import Box, MaskTrack, Prediction, Size, VideoSample

_log = logging.getLogger(__name__)

FOLDER_RATE = Fraction(10)
"""Frames a second at which the overlay of a folder of pictures plays."""


def parse_box(text: str) -> Box:
    """Parses ``x1,y1,x2,y2`` in video pixels."""
    values = text.split(",")
    if len(values) != 4 or not all(re.fullmatch(r"-?\d{1,6}(\.\d{1,9})?", value.strip()) for value in values):
        raise argparse.ArgumentTypeError(f"expected x1,y1,x2,y2 in video pixels, found {text!r}")
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.segment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, help="a video file, or a folder of pictures in the order of their numbers")
    parser.add_argument("sentence", help="the expression that describes the target")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="output folder; results of an earlier run are replaced",
    )
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="use every N-th frame (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N frames")
    parser.add_argument(
        "--keyframe",
        type=int,
        metavar="T",
        help="frame of --box, counted from 0 among the frames that --stride leaves (default: 0)",
    )
    parser.add_argument(
        "--box",
        type=parse_box,
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="a box in video pixels, used instead of a model's; repeat the option for more boxes",
    )
    options.add_policy_options(
        parser, choices=("hf", "vllm", "openai", "replay"), default="replay with --box or --replay, else hf"
    )
    options.add_tracker_options(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.stride < 1 or (args.limit is not None and args.limit < 1):
        raise DataError("--stride and --limit must be at least 1")
    if args.output.resolve() == args.video.resolve():
        raise DataError(f"--output {args.output} is the input; choose another folder")
    if args.policy is None:
        args.policy = "replay" if args.box or args.replay else "hf"
    if args.policy != "replay" and (args.box or args.replay):
        raise DataError(f"--box and --replay stand in for a model, so they do not go with --policy {args.policy}")
    if args.box and args.replay:
        raise DataError("--box and --replay both say where the boxes are; give one of them")
    if args.keyframe is not None and not args.box:
        raise DataError("--keyframe says which frame --box is on; give a --box with it")
    options.settle(args)
    sampling = options.build_sampling(args)
    sample, pictures, playback = open_video(args.video, args.sentence, stride=args.stride, limit=args.limit)
    masks_folder, ours = args.output / "masks", (args.output / ".lock", args.output / "prediction.json")
    if masks_folder.exists() and not any(path.exists() for path in ours):
        raise DataError(f"{masks_folder}: not written by this command, which would mix with it; choose another")
    with atomic.Lock(args.output / ".lock"):
        policy, tracker = _build_policy(args, sample), _TrackerWithBars(options.build_tracker(args))
        policy.family.check_size(sampling.size)
        (finished,) = pipeline.run(
            [sample],
            policy=policy,
            tracker=tracker,
            sampling=sampling,
            seed=args.seed,
            open_frames=lambda _: pictures,
            reading=args.reading,
        )
        prediction = finished.prediction
        record = {**output.prediction_record(prediction), "policy": options.public(policy.describe())}
        written = write(args.output, prediction, pictures, playback, record=record)
    for line in summary(prediction, stride=args.stride):
        print(line)
    for path in written:
        print(f"wrote     {printable(path)}")


class _TrackerWithBars:
    """A tracker that shows its progress on a terminal."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self.name, self._length = tracker, tracker.name, 0

    def encode(self, frames: Sequence[np.ndarray]) -> Any:
        self._length = len(frames)
        return self._tracker.encode(_FramesWithBar(frames))

    def track(
        self, encoded: Any, *, keyframe: int, boxes: Sequence[Box], progress: Callable[[], object] | None = None
    ) -> MaskTrack:
        with tqdm(total=self._length * len(boxes), unit="mask", desc="track", disable=None) as bar:
            return self._tracker.track(encoded, keyframe=keyframe, boxes=boxes, progress=progress or bar.update)


class _FramesWithBar(frames.Frames):
    """Frames that show on a terminal how many of them have been read."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self._frames = frames
        self._bar = tqdm(total=len(frames), unit="frame", desc="encode", disable=None)

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, frame_id: int) -> np.ndarray:
        frame = self._frames[frame_id]
        if self._bar.n < len(self):
            self._bar.update()
        if self._bar.n == len(self):
            self._bar.close()
        return frame


@dataclass(frozen=True)
class Playback:
    """The times and the shape of the pixels of some frames, as `veason.video.encode` takes them."""

    rate: Fraction
    times: tuple[Fraction, ...] | None = None
    pixel_aspect: Fraction = Fraction(1)


def open_video(
    path: Path, sentence: str, *, stride: int = 1, limit: int | None = None
) -> tuple[VideoSample, Sequence[np.ndarray], Playback]:
    """Opens a video file or a folder of pictures as (the sample, its frames, their playback)."""
    pictures: Sequence[np.ndarray]
    if path.is_dir():
        folder = frames.FolderFrames(path, stride=stride, limit=limit)
        video_name, names, size, suffix = path.resolve().name, folder.names, folder.size, folder.paths[0].suffix
        pictures, playback = folder, Playback(FOLDER_RATE)
    else:
        decoded = video.decode(path, stride=stride, limit=limit)
        names = tuple(f"{t * stride:05d}" for t in range(len(decoded.frames)))
        height, width = decoded.frames.shape[1:3]
        video_name, size, suffix = path.stem, (height, width), ".jpg"
        pictures, playback = list(decoded.frames), Playback(decoded.rate, decoded.times, decoded.pixel_aspect)
    sample = VideoSample(
        dataset="video",
        video=video_name,
        exp_id="0",
        expression=sentence,
        frames=names,
        frame_dir=path,
        size=size,
        suffix=suffix,
    )
    return sample, pictures, playback


def _build_policy(args: argparse.Namespace, sample: VideoSample) -> Policy:
    """Builds the policy; boxes given by hand or recorded are checked against the video and replayed."""
    if args.policy != "replay":
        return options.build_policy(args, dataset=None)
    if args.box:
        keyframe = args.keyframe or 0
        if not 0 <= keyframe < len(sample):
            used = f" that --stride {args.stride} leaves" if args.stride > 1 else ""
            raise DataError(f"--keyframe {keyframe}: the {len(sample)} frames{used} are 0 to {len(sample) - 1}")
        if args.keyframe is None:
            _log.info("--box without --keyframe: on frame 0")
        records, source = [{"keyframe": keyframe, "boxes": [list(box) for box in args.box]}], "--box"
    elif args.replay:
        records, source = replay.read_records(args.replay), args.replay
        if len(records) != 1:
            raise DataError(f"{source}: one video wants one record, found {len(records)}")
    else:
        raise DataError("--policy replay needs --box X1,Y1,X2,Y2 [--keyframe T], or --replay FILE with one record")
    for box in args.box or ():
        said = "--box " + ",".join(f"{value:g}" for value in box)
        problem = box_problem(box, sample.size)
        if problem:
            raise DataError(f"{said} {problem}")
        if geometry.clip(box, sample.size) != box:
            _log.info("note: %s is cut off at the border of the picture of %s", said, _pixels(sample.size))
    record = {**records[0], "video": sample.video, "exp_id": sample.exp_id}
    return replay.ReplayPolicy([record], source=source, n=args.frames, size=args.model_size)


def box_problem(box: Box, size: Size) -> str | None:
    """Describes the fault of a box in a picture of `size`; None for a box in pixels, with some of them inside."""
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "has its second corner left of or above its first one; x1,y1 is the upper left one"
    if min(box) >= 0 and max(box) <= 1 and min(size) > 2:
        height, width = size
        scaled = ",".join(f"{value:g}" for value in (x1 * width, y1 * height, x2 * width, y2 * height))
        return (
            f"lies between 0 and 1, but boxes are in pixels of a picture of {_pixels(size)}; as shares of it they "
            f"would be {scaled}"
        )
    if geometry.clip(box, size) is None:
        return f"lies outside the picture of {_pixels(size)}"
    return None


def _pixels(size: Size) -> str:
    return f"{size[1]} x {size[0]} pixels (width x height)"


def write(
    folder: Path,
    prediction: Prediction,
    pictures: Sequence[np.ndarray],
    playback: Playback,
    *,
    record: dict[str, Any],
) -> list[Path]:
    """Writes the masks, the overlay, the keyframe and, last, the `record` of a prediction; returns their paths.

    The files that an earlier run of this command left there are removed first.
    """

    def paint(t: int) -> np.ndarray:
        objects = [masks.decode(rles[t], prediction.sample.size) for rles in prediction.track.objects]
        return overlay.paint(pictures[t], objects)

    for name in ("prediction.json", "overlay.mp4", "keyframe.png"):
        (folder / name).unlink(missing_ok=True)
    for old in (folder / "masks").glob("*.png"):
        old.unlink()
    written = [folder / "overlay.mp4", folder / "masks", folder / "prediction.json"]
    for t, name in enumerate(prediction.sample.frames):
        atomic.write_bytes(folder / "masks" / f"{name}.png", mask_png.encode(masks.track_union(prediction.track, t)))
    if prediction.keyframe is not None:
        picture = overlay.draw_boxes(paint(prediction.keyframe), prediction.boxes)
        data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()  # OpenCV wants BGR
        atomic.write_bytes(folder / "keyframe.png", data)
        written.insert(1, folder / "keyframe.png")
    painted = map(paint, tqdm(range(len(pictures)), unit="frame", desc="overlay", disable=None))
    video.encode(folder / "overlay.mp4", painted, **vars(playback))
    atomic.write_json(folder / "prediction.json", record)
    return written


def summary(prediction: Prediction, *, stride: int) -> Iterator[str]:
    """Writes the lines for a terminal about an answer; the reply is foreign text."""
    reply = prediction.reply
    yield f"thinking: {printable(reply.thinking or '(none)')}"
    if reply.repairs:
        yield f"read leniently: {'; '.join(REPAIRS[name] for name in reply.repairs)}"
    if prediction.keyframe is None or not prediction.boxes:
        yield f"no usable answer, so the masks are empty: {printable(reply.detail)}"
        if reply.problem is not None and reply.problem != "no_boxes":
            yield f"hint:     {replies.hint(reply.problem)}"
        return
    place = f" (frame {prediction.keyframe * stride} of the video)" if stride > 1 else ""
    yield f"keyframe: {prediction.keyframe}{place}"
    for box in prediction.boxes:
        problem = box_problem(box, prediction.sample.size)
        values = ", ".join(f"{value:.1f}" for value in box)
        yield f"box:      {values}" + (f"  (note: it {problem})" if problem else "")


if __name__ == "__main__":
    sys.exit(run_command(main))
