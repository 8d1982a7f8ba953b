"""Segment one video from one sentence: masks, an overlay to play, the keyframe with its boxes, the thinking.

Example, a checkpoint answering:

    python -m inference.segment clip.mp4 "the person who throws last" --output out --policy hf --model CKPT

Example, a box given by hand on frame 0 and tracked without any weights:

    python -m inference.segment clip.mp4 "the juggler" --output out --policy replay --keyframe 0 --box 400,60,820,700

Writes OUT/masks/<frame>.png (0/255), OUT/overlay.mp4, OUT/keyframe.png and OUT/prediction.json.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from inference import options, output, overlay, pipeline
from veason import atomic, frames, mask_png, masks, video
from veason.errors import DataError
from veason.policies import replay
from veason.policies.base import Policy
from veason.types import Box, Prediction, VideoSample

_FOLDER_RATE = Fraction(10)


def parse_box(text: str) -> Box:
    """``x1,y1,x2,y2`` in video pixels."""
    values = text.split(",")
    if len(values) != 4 or not all(re.fullmatch(r"-?\d+(\.\d+)?", value.strip()) for value in values):
        raise argparse.ArgumentTypeError(f"expected x1,y1,x2,y2 in video pixels, found {text!r}")
    return tuple(map(float, values))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.segment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, help="a video file, or a folder of pictures in name order")
    parser.add_argument("sentence", help="what to segment")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="use every N-th frame (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N frames")
    parser.add_argument("--keyframe", type=int, metavar="T", help="replay: frame id of the boxes, after striding")
    parser.add_argument(
        "--box",
        type=parse_box,
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="replay: a box in video pixels; repeat for more",
    )
    options.add_policy_options(parser, choices=("hf", "vllm", "openai", "replay"))
    options.add_tracker_options(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.stride < 1 or (args.limit is not None and args.limit < 1):
        raise DataError("--stride and --limit must be at least 1")
    sample, pictures, rate = open_video(args.video, args.sentence, stride=args.stride, limit=args.limit)
    policy, tracker = _build_policy(args, sample), options.build_tracker(args)
    sampling = options.build_sampling(args)
    policy.family.check_size(sampling.size)
    (finished,) = pipeline.run(
        [sample], policy=policy, tracker=tracker, sampling=sampling, seed=args.seed, open_frames=lambda _: pictures
    )
    write(args.output, finished.prediction, pictures, rate=rate)
    _report(finished.prediction, args.output)


def open_video(
    path: Path, sentence: str, *, stride: int = 1, limit: int | None = None
) -> tuple[VideoSample, Sequence[np.ndarray], Fraction]:
    """(the sample, its frames, frames per second) of a video file or a folder of pictures."""
    common = {"dataset": "video", "exp_id": "0", "expression": sentence}
    if path.is_dir():
        pictures = frames.FolderFrames(path, stride=stride, limit=limit)
        sample = VideoSample(
            **common, video=path.resolve().name, frames=pictures.names, frame_dir=path, size=pictures.size
        )
        return sample, pictures, _FOLDER_RATE
    decoded = video.decode(path, stride=stride, limit=limit)
    names = tuple(f"{t:05d}" for t in range(len(decoded.frames)))
    size = decoded.frames.shape[1:3]
    sample = VideoSample(**common, video=path.stem, frames=names, frame_dir=path, size=size)
    return sample, decoded.frames, decoded.rate


def _build_policy(args: argparse.Namespace, sample: VideoSample) -> Policy:
    if args.policy != "replay":
        return options.build_policy(args, dataset=None)
    if args.box:
        records, source = [{"keyframe": args.keyframe or 0, "boxes": [list(box) for box in args.box]}], "--box"
    elif args.replay:
        records, source = replay.read_records(args.replay), args.replay
        if len(records) != 1:
            raise DataError(f"{source}: one video wants one record, found {len(records)}")
    else:
        raise DataError("--policy replay needs --keyframe T --box X1,Y1,X2,Y2, or --replay FILE with one record")
    record = {**records[0], "video": sample.video, "exp_id": sample.exp_id}
    return replay.ReplayPolicy([record], source=source, n=args.frames, size=args.model_size)


def write(folder: Path, prediction: Prediction, pictures: Sequence[np.ndarray], *, rate: Fraction) -> None:
    """Write the masks, the overlay, the keyframe and the record of a prediction."""
    for t, name in enumerate(prediction.sample.frames):
        atomic.write_bytes(folder / "masks" / f"{name}.png", mask_png.encode(prediction.track.union(t)))
    if prediction.keyframe is not None:
        picture = overlay.paint(pictures[prediction.keyframe], _objects(prediction, prediction.keyframe))
        picture = overlay.draw_boxes(picture, prediction.boxes)
        data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()  # OpenCV wants BGR
        atomic.write_bytes(folder / "keyframe.png", data)
    video.encode(folder / "overlay.mp4", _painted(prediction, pictures), rate=rate)
    atomic.write_json(folder / "prediction.json", output.prediction_record(prediction))


def _objects(prediction: Prediction, t: int) -> list[np.ndarray]:
    return [masks.decode(rles[t], prediction.sample.size) for rles in prediction.track.objects]


def _painted(prediction: Prediction, pictures: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for t in tqdm(range(len(pictures)), unit="frame", desc="overlay", disable=None):
        yield overlay.paint(pictures[t], _objects(prediction, t))


def _report(prediction: Prediction, folder: Path) -> None:
    reply = prediction.reply
    print(f"thinking: {reply.thinking or '(none)'}")
    if prediction.keyframe is None:
        print(f"no usable answer, so the masks are empty: {reply.detail}")
    else:
        print(f"keyframe: {prediction.keyframe}")
        for box in prediction.boxes:
            print("box:      " + ", ".join(f"{value:.1f}" for value in box))
    for name in ("overlay.mp4", "keyframe.png", "masks", "prediction.json"):
        if (folder / name).exists():
            print(f"wrote     {folder / name}")


if __name__ == "__main__":
    options.run_command(main)
