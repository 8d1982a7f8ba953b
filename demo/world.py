"""`python -m demo.world` writes a synthetic ReVOS world, its twins in other benchmarks' files, and a tiny policy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo import twins
from demo.scene import BACKGROUNDS
from demo.writer import build_world
from veason.command import run_command
from veason.types import Size

EPILOG = """\
what is written below OUT:
  JPEGImages/<video>/<frame>.jpg                 the videos
  meta_expressions_train_.json, ..._valid_.json  the expressions: three quarters train, one quarter valid
  mask_dict.json, mask_dict_foreground.json      ground truth, COCO run-length encoded
  scenes.json                                    the scenes behind the videos: shapes, colours, paths
  world.json                                     the arguments and a table of counts
  tiny_policy/                                   a random Qwen2.5-VL with tokenizer and processor (--policy)

With --formats the world goes to OUT/revos, and the same videos, objects and ground truth once more to OUT/<format>, in
the files of that benchmark.

The same arguments give the same bytes. OUT appears whole or not at all; a folder that already holds this world is
left alone, one that holds anything else is refused.

examples:
  python -m demo.world --out world --videos 12 --seed 0
  python -m demo.world --out small --videos 4 --size 84x84 --max-frames 8 --no-policy
  python -m demo.world --out worlds --formats mevis reasonvos --no-policy
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo.world",
        description="Write a ReVOS-format world of moving shapes, with questions whose answers are known to be true.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument(
        "--videos", type=int, default=12, help="videos in both splits together (default 12; 8 have every plot)"
    )
    parser.add_argument("--seed", type=int, default=0, help="whole number from 0 up (default 0)")
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="pixels of every video (default: varies, about 160-240)"
    )
    parser.add_argument(
        "--min-frames", type=int, default=8, help="fewest frames of a video (default 8); one valid video has just one"
    )
    parser.add_argument("--max-frames", type=int, default=20, help="most frames of a video (default 20)")
    parser.add_argument(
        "--background", choices=BACKGROUNDS, default="ramp", help="default: ramp, with red along x and green along y"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=twins.WRITERS, metavar="NAME",
        help=f"write the world in the files of these benchmarks too: {', '.join(twins.WRITERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--policy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write tiny_policy too (default; loads torch)",
    )
    args = parser.parse_args(argv)

    def write() -> None:
        root = Path(args.out, "revos") if args.formats else Path(args.out)
        world = build_world(
            root,
            videos=args.videos,
            seed=args.seed,
            size=args.size,
            frames=(args.min_frames, max(args.min_frames, args.max_frames)),
            background=args.background,
            policy=args.policy,
        )
        folders = [root, *(twins.build_twin(name, root, Path(args.out, name)) for name in args.formats or ())]
        columns = list(world["counts"]["train"])
        rows = [["split", *columns]]
        rows += [[split, *(str(row[column]) for column in columns)] for split, row in world["counts"].items()]
        lines = [
            "  ".join(cell.rjust(max(5, len(head))) for cell, head in zip(row, rows[0], strict=True)) for row in rows
        ]
        sys.stdout.write("\n".join(map(str, [folders[0], *lines, *folders[1:]])) + "\n")

    return run_command(write)


def _size(text: str) -> Size:
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 160x240")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
