"""The teacher of the synthetic world: an OpenAI-compatible server that writes true chains of thought about its frames.

It stands in for the strong VLM that is asked for chains of thought, so that the real client, its retries and its
journal run without a key or a network. It recognises each picture (`recognition`) and answers with `reasoning.explain`
of the scene; the same request gets the same text, and another `seed` in the request another wording. On request it is
slow or faulty (`server.ServerOptions`), as real services are.

    with serve("world", delay=0.2, fail_rate=0.3) as url:
        client = openai.OpenAI(base_url=url, api_key="any")
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from demo.facts import measure
from demo.reasoning import explain
from demo.recognition import InquiryError, WorldIndex, read_inquiry
from demo.server import FAULTS, Refusal, Server, ServerOptions, serving
from demo.writer import read_scenes
from veason import atomic
from veason.command import run_command


class Teacher(Server):
    """Answers chat requests about one world."""

    def __init__(self, world: str | Path, options: ServerOptions) -> None:
        super().__init__(options)
        self._index = WorldIndex(world)
        self._scenes = read_scenes(world)
        scenes = tqdm(self._scenes.items(), desc="measuring", unit="videos", disable=None)  # None: terminals only
        self._facts = {video: measure(scene) for video, scene in scenes}

    def reply(self, request: dict[str, Any]) -> tuple[str, int]:
        try:
            inquiry = read_inquiry(request.get("messages"))
            sample = self._index.recognise(inquiry)
            targets = [int(i) for i in sample.obj_ids]  # indices of shapes
            if not self._facts[sample.video].areas[targets, inquiry.keyframe].any():
                raise InquiryError(
                    f"{sample.key}: the target is not visible at {inquiry.keyframe}s; choose another keyframe"
                )
        except InquiryError as error:
            raise Refusal(400, str(error)) from None
        rng = Random(f"{self.options.seed}|{sample.key}|{request.get('seed')}")
        text = explain(
            self._scenes[sample.video],
            targets,
            frame_ids=sorted(set(inquiry.frame_ids)),
            keyframe=inquiry.keyframe,
            rng=rng,
            facts=self._facts[sample.video],
        )
        return text, inquiry.size_tokens


@contextlib.contextmanager
def serve(world: str | Path, *, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[str]:
    """Runs a teacher in a thread of this process and gives its base URL; `options` are fields of `ServerOptions`."""
    with serving(Teacher(world, ServerOptions(**options)), host=host, port=port) as url:
        yield url


EPILOG = """\
kinds of faults (--fail-kinds):
{faults}

The teacher expects for each frame a text with its timestamp, such as (12s), and the picture as a JPEG or PNG data URL,
then a text with the lines "Expression: …" and "Keyframe: 12s". It answers a picture that it does not know with error
400. GET /stats counts requests, failures by kind, and the most requests in flight at once.

example: write a world, start a teacher beside it, ask it for chains of thought, stop it
  python -m demo.world --out world --no-policy
  python -m demo.teacher --world world --port 8123 --delay 0.5 --fail-rate 0.1 &
  python -m training_data_construction.seed_cot_generation --meta-json world/meta_expressions_train_.json \\
      --mask-dict world/mask_dict.json --data-path world/JPEGImages --output-json cot.json \\
      --base-url http://127.0.0.1:8123/v1 --model {model}
  kill %1
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo.teacher",
        description="Serve truthful chains of thought about a synthetic world, as an OpenAI-compatible server.",
        epilog=EPILOG.format(
            model=ServerOptions.model, faults="\n".join(f"  {kind:10} {text}" for kind, text in FAULTS.items())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", required=True, metavar="DIR", help="a folder that python -m demo.world wrote")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default 0: a free one, printed)")
    parser.add_argument(
        "--port-file", type=Path, metavar="FILE", help="write the port here once ready; removed at the end"
    )
    parser.add_argument(
        "--model",
        default=ServerOptions.model,
        metavar="NAME",
        help=f"name of the model (default {ServerOptions.model})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the wording and of the failures (default 0)")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", help="seconds for every request (default 0)")
    parser.add_argument(
        "--fail-rate", type=float, default=0.0, metavar="P", help="share of requests that fail (default 0)"
    )
    parser.add_argument("--fail-kinds", default=",".join(FAULTS), metavar="A,B", help="kinds of faults (default: all)")
    parser.add_argument(
        "--hang", type=float, default=ServerOptions.hang, metavar="S", help="seconds of silence of a hang (default 2)"
    )
    args = parser.parse_args(argv)
    return run_command(lambda: _serve(args))


def _serve(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    options = ServerOptions(
        seed=args.seed,
        delay=args.delay,
        fail_rate=args.fail_rate,
        fail_kinds=tuple(args.fail_kinds.split(",")),
        hang=args.hang,
        model=args.model,
    )
    teacher = Teacher(args.world, options)

    async def serve_until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with teacher.listening(args.host, args.port) as url:
            if args.port_file:
                atomic.write_bytes(args.port_file, url.removesuffix("/v1").rpartition(":")[2].encode() + b"\n")
            sys.stdout.write(f"listening on {url}\n")
            sys.stdout.flush()
            await stop.wait()
        if args.port_file:
            args.port_file.unlink(missing_ok=True)

    asyncio.run(serve_until_signal())


if __name__ == "__main__":
    sys.exit(main())
