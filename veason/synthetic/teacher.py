"""A teacher for the synthetic world: an OpenAI-compatible server that knows its frames and reasons about them truly.

It stands for the strong VLM that is asked for chains of thought, so that the real client, its retries and its journal
run for real, without a key or a network. It knows each picture again by its looks (`recognition`) and says what
`reasoning.explain` says of the scene; the same request gets the same text, another `seed` in it another wording. It can
be slow and it can misbehave, on request: a client that survives this teacher survives a service.

    with serve("world", delay=0.2, fail_rate=0.3) as url:
        client = openai.OpenAI(base_url=url, api_key="any")
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from veason import atomic
from veason.errors import DataError
from veason.synthetic import wire
from veason.synthetic.reasoning import explain
from veason.synthetic.recognition import Album, Inquiry, InquiryError, count_tokens, read_inquiry
from veason.synthetic.wire import Refusal, Request, Response
from veason.synthetic.writer import read_scenes

FAULTS = {
    "500": "an internal error",
    "503": "an overloaded server",
    "429": "a rate limit, with a Retry-After of 0 or 1 seconds",
    "hang": "silence for --hang seconds, then the connection is closed",
    "reset": "the connection is reset",
    "cut": "the connection is closed amid the body",
    "truncated": "a whole response, whose JSON is cut off",
    "empty": "an answer without text",
    "length": "half a text, with finish_reason length",
    "boxes": "a text that mentions the red boxes",
}
"""Ways to misbehave. The first five come instead of an answer, whatever the request was; the others spoil one."""

GIVEAWAYS = (
    "The red box in each frame marks it.",
    "It is the one outlined in red.",
    "As the red bounding boxes show, there is nothing else to choose.",
)


@dataclass(frozen=True)
class Manner:
    """How a teacher behaves."""

    seed: int = 0
    """Of the wording, and of which arrivals fail and how."""
    delay: float = 0.0
    """Seconds that every chat request takes at least."""
    fail_rate: float = 0.0
    """Share of the chat requests that fail."""
    fail_kinds: tuple[str, ...] = tuple(FAULTS)
    """Ways to fail, equally likely; a kind may be named twice."""
    hang: float = 2.0
    """Seconds of silence before a hanging request's connection is closed."""
    model: str = "synthetic-teacher"
    """The one model on offer."""

    def __post_init__(self) -> None:
        if not 0 <= self.fail_rate <= 1:
            raise DataError(f"fail rate is {self.fail_rate}, expected a share from 0 to 1")
        if not (0 <= self.delay <= 3600 and 0 <= self.hang <= 3600):
            raise DataError(f"delay is {self.delay} and hang {self.hang}, expected seconds from 0 to 3600")
        if not self.fail_kinds or not set(self.fail_kinds) <= FAULTS.keys():
            raise DataError(f"fail kinds are {', '.join(self.fail_kinds) or 'none'}; choose from {', '.join(FAULTS)}")

    def fault(self, arrival: int) -> str | None:
        """How the chat request of this number fails, None if it does not."""
        rng = Random(f"{self.seed}|arrival|{arrival}")
        return rng.choice(self.fail_kinds) if rng.random() < self.fail_rate else None


class Teacher:
    """The answers, without the network: a world, a manner and counts of what happened."""

    def __init__(self, world: str | Path, manner: Manner) -> None:
        self.manner = manner
        self._album = Album(world)
        self._scenes = read_scenes(world)
        self._eye = ThreadPoolExecutor(1, thread_name_prefix="teacher")  # one thread: what it holds needs no lock
        self._requests = self._in_flight = self._max_in_flight = 0
        self._outcomes: Counter[str] = Counter()

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of chat requests. Each ends as answered, refused (the client's fault) or failed (by kind, ours)."""
        return {
            "requests": self._requests,
            "answered": self._outcomes["answered"],
            "refused": self._outcomes["refused"],
            "failures": {kind: self._outcomes[kind] for kind in (*FAULTS, "error") if self._outcomes[kind]},
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
        }

    async def respond(self, request: Request) -> Response:
        """The response to any request."""
        model = {"id": self.manner.model, "object": "model", "created": 0, "owned_by": "veason"}
        pages = {
            "/health": {"status": "ok"},
            "/stats": self.stats,
            "/v1/models": {"object": "list", "data": [model]},
        }
        if request.path in pages and request.method == "GET":
            return wire.reply(pages[request.path])
        if request.path == "/v1/chat/completions" and request.method == "POST":
            return await self._chat(request.body)
        known = "POST /v1/chat/completions, " + ", ".join(f"GET {path}" for path in pages)
        return wire.refuse(404, f"no {request.method[:20]} {request.path[:80]} here; there is {known}")

    async def _chat(self, body: bytes) -> Response:
        arrival = self._requests
        self._requests += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.manner.delay)
            outcome, response = await self._outcome(body, arrival)
            self._outcomes[outcome] += 1
            return response
        finally:
            self._in_flight -= 1

    async def _outcome(self, body: bytes, arrival: int) -> tuple[str, Response]:
        """(what to count the request as, its response)"""
        fault = self.manner.fault(arrival)
        if fault == "hang":
            await asyncio.sleep(self.manner.hang)
        if instead := _instead(fault, arrival):
            return fault, instead
        try:
            completion = await asyncio.get_running_loop().run_in_executor(self._eye, self._complete, body, arrival)
        except Refusal as refusal:
            return "refused", wire.refuse(refusal.status, str(refusal))
        except Exception:  # the teacher's own: told like any server's, with the reason on its terminal
            sys.stderr.write(traceback.format_exc())
            return "error", wire.refuse(500, "the teacher itself failed; its terminal says why")
        return fault or "answered", _spoil(completion, fault, arrival)

    def _complete(self, body: bytes, arrival: int) -> dict[str, Any]:
        """The answer to a chat request as OpenAI words it."""
        request = _read_chat(body, self.manner.model)
        try:
            inquiry = read_inquiry(request.get("messages"))
            sample = self._album.recognise(inquiry)
        except InquiryError as error:
            raise Refusal(400, str(error)) from None
        rng = Random(f"{self.manner.seed}|{sample.key}|{request.get('seed')}")
        targets = [int(i) for i in sample.obj_ids]
        frame_ids = sorted(set(inquiry.frame_ids))
        text = explain(self._scenes[sample.video], targets, frame_ids=frame_ids, keyframe=inquiry.keyframe, rng=rng)
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        cut = _cut(text, limit) if limit else text
        return _completion(cut, inquiry, self.manner.model, arrival, finish="stop" if cut == text else "length")

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """The server, open within the block: its base URL, as clients want it. Port 0 takes a free one."""
        talks: set[asyncio.Task[None]] = set()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talks.add(asyncio.current_task())
            try:
                await self._talk(reader, writer)
            finally:
                talks.discard(asyncio.current_task())

        try:
            server = await asyncio.start_server(talk, host, port, limit=wire.MAX_HEAD, backlog=1024)
        except (OSError, OverflowError) as error:
            raise DataError(
                f"cannot listen on {host}:{port} ({error}); choose another port, or 0 for a free one"
            ) from None
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            for task in talks:
                task.cancel()
            await asyncio.gather(*talks, return_exceptions=True)
            self._eye.shutdown(cancel_futures=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of one connection, one after the other."""
        try:
            while request := await wire.read_request(reader, writer):
                response = await self.respond(request)
                if response.ending == "keep" and not request.keep_alive:
                    response = replace(response, ending="close")
                if not await wire.send(writer, response):
                    break
        except Refusal as refusal:
            await wire.send(writer, wire.refuse(refusal.status, str(refusal), ending="close"))
            await wire.hang_up(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the teacher stops
        finally:
            writer.close()


def _read_chat(body: bytes, model: str) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({str(error)[:120]})") from None
    if not isinstance(request, dict):
        raise Refusal(400, f"the body must be a JSON object, found {type(request).__name__}")
    if request.get("model") != model:
        raise Refusal(404, f"there is no model {str(request.get('model'))[:80]!r} here; ask for {model!r}")
    for name, wanted in (("stream", (None, False)), ("n", (None, 1))):
        if request.get(name) not in wanted:
            raise Refusal(400, f"{name} is {str(request[name])[:80]}; this teacher gives one whole answer at a time")
    for name in ("seed", "max_tokens", "max_completion_tokens"):
        value = request.get(name)
        if value is not None and (type(value) is not int or (name != "seed" and value < 1)):
            raise Refusal(
                400, f"{name} must be {'an' if name == 'seed' else 'a positive'} int, found {str(value)[:80]}"
            )
    return request


def _cut(text: str, tokens: int) -> str:
    """At most the first `tokens` words and marks."""
    ends = [match.end() for match in re.finditer(r"\w+|[^\w\s]", text)]
    return text[: ends[tokens - 1]] if len(ends) > tokens else text


def _completion(text: str, inquiry: Inquiry, model: str, arrival: int, *, finish: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    written = count_tokens(text)
    return {
        "id": f"chatcmpl-{arrival:08d}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": inquiry.size_tokens,
            "completion_tokens": written,
            "total_tokens": inquiry.size_tokens + written,
        },
    }


def _instead(fault: str | None, arrival: int) -> Response | None:
    """What comes instead of an answer; None where a fault spoils one, or there is none."""
    if fault == "429":
        seconds = str(Random(f"retry|{arrival}").choice((0, 1)))
        return wire.refuse(429, f"too many requests; try again in {seconds} s", headers=(("Retry-After", seconds),))
    if fault in ("500", "503"):
        return wire.refuse(int(fault), f"{FAULTS[fault]}, as was asked for")
    if fault in ("hang", "reset"):
        return Response(200, ending={"hang": "silence", "reset": "reset"}[fault])
    return None


def _spoil(completion: dict[str, Any], fault: str | None, arrival: int) -> Response:
    """The answer, spoiled as `fault` says."""
    choice = completion["choices"][0]
    text = choice["message"]["content"]
    if fault == "empty":
        choice["message"]["content"] = ""
    elif fault == "length":
        choice["message"]["content"] = _cut(text, max(count_tokens(text) // 2, 1))
        choice["finish_reason"] = "length"
    elif fault == "boxes":
        choice["message"]["content"] = f"{text} {Random(f'boxes|{arrival}').choice(GIVEAWAYS)}"
    response = wire.reply(completion)
    if fault == "truncated":
        return replace(response, body=response.body[: len(response.body) // 2])
    return replace(response, ending="cut") if fault == "cut" else response


@contextlib.contextmanager
def serve(world: str | Path, *, host: str = "127.0.0.1", port: int = 0, **manner: Any) -> Iterator[str]:
    """A teacher in a thread of this process, open within the block; gives its base URL. `manner`: fields of `Manner`.

    Its counts are at the URL's ``../stats``: see `Teacher.stats`.
    """
    teacher = Teacher(world, Manner(**manner))
    opened: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def live() -> None:
        try:
            async with teacher.listening(host, port) as url:
                stop = asyncio.Event()
                opened.set_result((url, asyncio.get_running_loop(), stop))
                await stop.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)  # for the caller, who waits for it to open

    thread = threading.Thread(target=lambda: asyncio.run(live()), name="teacher-server", daemon=True)
    thread.start()
    url, loop, stop = opened.result()
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve_until_told(teacher: Teacher, host: str, port: int, port_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with teacher.listening(host, port) as url:
        if port_file:
            atomic.write_bytes(port_file, url.removesuffix("/v1").rpartition(":")[2].encode() + b"\n")
        sys.stdout.write(f"listening on {url}\n")
        sys.stdout.flush()
        await stop.wait()
    if port_file:
        port_file.unlink(missing_ok=True)


EPILOG = """\
ways to misbehave (--fail-kinds):
{faults}

what it wants: for each frame a text with its timestamp, such as (12s), and the picture as a JPEG or PNG data URL, then
a text with the lines "Expression: …" and "Keyframe: 12s". A picture that it does not know gets a 400 that says so.
GET /stats counts requests, failures by kind, and the most requests in flight at once.

example: write a world, start a teacher beside it, ask it for chains of thought, stop it
  python -m veason.synthetic --out world --no-policy
  python -m veason.synthetic.teacher --world world --port 8123 --delay 0.5 --fail-rate 0.1 &
  python -m training_data_construction.seed_cot_generation --meta-json world/meta_expressions_train_.json \\
      --mask-dict world/mask_dict.json --data-path world/JPEGImages --output-json cot.json \\
      --base-url http://127.0.0.1:8123/v1 --model {model}
  kill %1
"""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        manner = Manner(
            seed=args.seed,
            delay=args.delay,
            fail_rate=args.fail_rate,
            fail_kinds=tuple(args.fail_kinds.split(",")),
            hang=args.hang,
            model=args.model,
        )
        asyncio.run(_serve_until_told(Teacher(args.world, manner), args.host, args.port, args.port_file))
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m veason.synthetic.teacher",
        description="Serve truthful chains of thought about a synthetic world, as an OpenAI-compatible server.",
        epilog=EPILOG.format(
            model=Manner.model, faults="\n".join(f"  {kind:10} {what}" for kind, what in FAULTS.items())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", required=True, metavar="DIR", help="a folder that python -m veason.synthetic wrote")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default 0: a free one, printed)")
    parser.add_argument(
        "--port-file", type=Path, metavar="FILE", help="write the port here once ready; removed at the end"
    )
    parser.add_argument("--model", default=Manner.model, metavar="NAME", help=f"its name (default {Manner.model})")
    parser.add_argument("--seed", type=int, default=0, help="of the wording and of the failures (default 0)")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", help="seconds for every request (default 0)")
    parser.add_argument("--fail-rate", type=float, default=0.0, metavar="P", help="share that fails (default 0)")
    parser.add_argument("--fail-kinds", default=",".join(FAULTS), metavar="A,B", help="how (default: all ways below)")
    parser.add_argument("--hang", type=float, default=Manner.hang, metavar="S", help="silence of a hang (default 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
