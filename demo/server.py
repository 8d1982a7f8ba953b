"""Serves an OpenAI-compatible chat API on bare asyncio streams; a subclass writes the replies.

`ServerOptions` makes the server slow or faulty: it can refuse, hang, break off in the middle of a response and reset
the connection, which a proper HTTP library prevents. A waiting request costs one small task and no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from random import Random
from typing import Any

from demo.recognition import count_tokens
from veason.errors import DataError

logger = logging.getLogger(__name__)

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
"""The kinds of faults. The first five come in place of an answer, whatever the request was; the others damage one."""

GIVEAWAYS = (
    "The red box in each frame marks it.",
    "It is the one outlined in red.",
    "As the red bounding boxes show, there is nothing else to choose.",
)


@dataclass(frozen=True)
class ServerOptions:
    """The delays and faults of a server."""

    seed: int = 0
    """Seed of the answers' wording, and of which requests fail and how."""
    delay: float = 0.0
    """Seconds that every chat request takes at least."""
    fail_rate: float = 0.0
    """Share of the chat requests that fail."""
    fail_kinds: tuple[str, ...] = tuple(FAULTS)
    """Kinds of faults, equally likely; a kind may be listed twice."""
    hang: float = 2.0
    """Seconds of silence before a hanging request's connection is closed."""
    model: str = "synthetic-teacher"
    """Name of the only model."""

    def __post_init__(self) -> None:
        if not 0 <= self.fail_rate <= 1:
            raise DataError(f"fail rate is {self.fail_rate}, expected a share from 0 to 1")
        if not (0 <= self.delay <= 3600 and 0 <= self.hang <= 3600):
            raise DataError(f"delay is {self.delay} and hang {self.hang}, expected seconds from 0 to 3600")
        if not self.fail_kinds or not set(self.fail_kinds) <= FAULTS.keys():
            raise DataError(f"fail kinds are {', '.join(self.fail_kinds) or 'none'}; choose from {', '.join(FAULTS)}")

    def fault(self, arrival: int) -> str | None:
        """Draws the fault of the chat request of this number; None if it does not fail."""
        rng = Random(f"{self.seed}|arrival|{arrival}")
        return rng.choice(self.fail_kinds) if rng.random() < self.fail_rate else None


class Server(ABC):
    """Handles connections, faults and counts; a subclass writes the replies."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")  # one thread, so that `reply` needs no lock
        self._requests = self._in_flight = self._max_in_flight = 0
        self._outcomes: Counter[str] = Counter()

    @abstractmethod
    def reply(self, request: dict[str, Any]) -> tuple[str, int]:
        """Returns the text that answers a chat request, and the tokens of the question; raises `Refusal` to refuse.

        It is called from one thread.
        """

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of chat requests. Each ends as answered, refused (the client's fault) or failed (ours, by kind)."""
        return {
            "requests": self._requests,
            "answered": self._outcomes["answered"],
            "refused": self._outcomes["refused"],
            "failures": {kind: self._outcomes[kind] for kind in (*FAULTS, "error") if self._outcomes[kind]},
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
        }

    async def respond(self, request: Request) -> Response:
        """Responds to any request."""
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": "veason"}
        pages = {
            "/health": {"status": "ok"},
            "/stats": self.stats,
            "/v1/models": {"object": "list", "data": [model]},
        }
        if request.path in pages and request.method == "GET":
            return json_response(pages[request.path])
        if request.path == "/v1/chat/completions" and request.method == "POST":
            return await self._chat(request.body)
        known = "POST /v1/chat/completions, " + ", ".join(f"GET {path}" for path in pages)
        return error_response(404, f"no {request.method[:20]} {request.path[:80]} here; there is {known}")

    async def _chat(self, body: bytes) -> Response:
        """Answers, refuses or fails one chat request, and counts how it ended."""
        arrival = self._requests
        self._requests += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.options.delay)
            fault = self.options.fault(arrival)
            if fault == "hang":
                await asyncio.sleep(self.options.hang)
            outcome, response = fault or "answered", _fault_response(fault, arrival)
            if response is None:
                loop = asyncio.get_running_loop()
                try:
                    completion = await loop.run_in_executor(self._thread, self._complete, body, arrival)
                    response = _damage(completion, fault, arrival)
                except Refusal as refusal:
                    outcome, response = "refused", error_response(refusal.status, str(refusal))
                except Exception:  # a defect of ours: the client gets an error 500, our log the reason
                    logger.exception("the reply to a chat request failed")
                    outcome = "error"
                    response = error_response(500, "the server itself failed; its terminal says why")
            self._outcomes[outcome] += 1
            return response
        finally:
            self._in_flight -= 1

    def _complete(self, body: bytes, arrival: int) -> dict[str, Any]:
        """Answers a chat request in OpenAI's form."""
        request = _read_chat(body, self.options.model)
        whole, asked = self.reply(request)
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        text = _cut(whole, limit) if limit else whole
        written = count_tokens(text)
        return {
            "id": f"chatcmpl-{arrival:08d}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.options.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "stop" if text == whole else "length",
                }
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written},
        }

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Keeps the server open within the block and gives its base URL; port 0 takes a free port."""
        connections: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Responds to all requests of one connection, one after the other."""
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                while request := await read_request(reader, writer):
                    response = await self.respond(request)
                    if response.ending == "keep" and not request.keep_alive:
                        response = replace(response, ending="close")
                    if not await send(writer, response):
                        break
            except Refusal as refusal:
                await send(writer, error_response(refusal.status, str(refusal), ending="close"))
                await hang_up(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass  # the client has gone, or the server stops
            finally:
                writer.close()
                connections.discard(task)

        try:
            server = await asyncio.start_server(handle, host, port, limit=MAX_HEAD, backlog=1024)
        except (OSError, OverflowError) as error:
            raise DataError(
                f"cannot listen on {host}:{port} ({error}); choose another port, or 0 for a free one"
            ) from None
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            self._thread.shutdown(cancel_futures=True)


def _read_chat(body: bytes, model: str) -> dict[str, Any]:
    """Parses the body of a chat request; raises `Refusal` for one that this server does not answer."""
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
            raise Refusal(400, f"{name} is {str(request[name])[:80]}; this server gives one whole answer at a time")
    for name in ("seed", "max_tokens", "max_completion_tokens"):
        value = request.get(name)
        if value is not None and (type(value) is not int or (name != "seed" and value < 1)):
            raise Refusal(
                400, f"{name} must be {'an' if name == 'seed' else 'a positive'} int, found {str(value)[:80]}"
            )
    return request


def _cut(text: str, tokens: int) -> str:
    """Returns at most the first `tokens` words and punctuation marks."""
    ends = [match.end() for match in re.finditer(r"\w+|[^\w\s]", text)]
    return text[: ends[tokens - 1]] if len(ends) > tokens else text


def _fault_response(fault: str | None, arrival: int) -> Response | None:
    """Returns the response that takes the place of an answer; None for a fault that damages one, and for no fault."""
    if fault == "429":
        seconds = str(Random(f"retry|{arrival}").choice((0, 1)))
        return error_response(429, f"too many requests; try again in {seconds} s", headers=(("Retry-After", seconds),))
    if fault in ("500", "503"):
        return error_response(int(fault), f"{FAULTS[fault]}, as was asked for")
    if fault in ("hang", "reset"):
        return Response(200, ending={"hang": "silence", "reset": "reset"}[fault])
    return None


def _damage(completion: dict[str, Any], fault: str | None, arrival: int) -> Response:
    """Returns the response with the answer, damaged as `fault` says."""
    choice = completion["choices"][0]
    text = choice["message"]["content"]
    if fault == "empty":
        choice["message"]["content"] = ""
    elif fault == "length":
        choice["message"]["content"] = _cut(text, max(count_tokens(text) // 2, 1))
        choice["finish_reason"] = "length"
    elif fault == "boxes":
        choice["message"]["content"] = f"{text} {Random(f'boxes|{arrival}').choice(GIVEAWAYS)}"
    response = json_response(completion)
    if fault == "truncated":
        return replace(response, body=response.body[: len(response.body) // 2])
    return replace(response, ending="cut") if fault == "cut" else response


@contextlib.contextmanager
def serving(server: Server, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Runs `server` in a thread of this process within the block and gives its base URL.

    Its counts (`Server.stats`) are served as ``/stats``.
    """
    opened: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        try:
            async with server.listening(host, port) as url:
                stop = asyncio.Event()
                opened.set_result((url, asyncio.get_running_loop(), stop))
                await stop.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)  # for the caller, who waits for it to open

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="chat-server", daemon=True)
    thread.start()
    url, loop, stop = opened.result()
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


# ------------------------------------------------------------------------------------------------------------- HTTP/1.1

MAX_HEAD = 32 << 10
"""Most bytes of a request line with its headers."""
MAX_BODY = 16 << 20
"""Most bytes of a request's body: some fifty frames."""
IDLE, PATIENCE = 300.0, 60.0
"""Seconds to wait for the next request on a connection, and for the body of one whose head has come."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Path without the query."""
    body: bytes
    keep_alive: bool


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    ending: str = "keep"


class Refusal(Exception):
    """Raised for a request that gets an error as answer; the connection is closed, since the body may be unread."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def json_response(value: Any, *, status: int = 200) -> Response:
    """Returns a JSON response."""
    return Response(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def error_response(
    status: int, message: str, *, ending: str = "keep", headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """Returns an error in OpenAI's form."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return Response(status, json_response({"error": error}).body, headers, ending)


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """Reads the next request of a connection; None if the client has gone or sends nothing for `IDLE` seconds."""
    try:
        async with asyncio.timeout(IDLE):
            head = await reader.readuntil(b"\r\n\r\n")
        method, path, version, headers = _read_head(head)
        if "transfer-encoding" in headers:
            raise Refusal(411, "a body must come with Content-Length, not in chunks")
        length = headers.get("content-length", "0")
        if not re.fullmatch(r"[0-9]{1,15}", length):
            raise Refusal(400, f"Content-Length must be a whole number, found {length[:80]!r}")
        if int(length) > MAX_BODY:
            raise Refusal(
                413, f"a body of {length} bytes is too large, at most {MAX_BODY}; show fewer or smaller frames"
            )
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            body = await reader.readexactly(int(length))
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        return None
    except asyncio.LimitOverrunError:
        raise Refusal(431, f"the head of the request is longer than {MAX_HEAD} bytes") from None
    keep_alive = headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
    return Request(method, path, body, keep_alive)


def _read_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """Parses the head of a request: (method, path, version, headers by lower-case name)."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not re.fullmatch(r"HTTP/1\.[01]", words[2]):
        raise Refusal(400, f"wanted an HTTP/1.1 request, found {first[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.strip().lower() in headers.keys() & {"content-length", "transfer-encoding"}:
            raise Refusal(400, f"broken or repeated header {line[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    return words[0], words[1].partition("?")[0], words[2], headers


async def send(writer: asyncio.StreamWriter, response: Response) -> bool:
    """Sends a response with the ending it asks for; returns True if the connection may be used again."""
    if response.ending == "reset":
        linger = struct.pack("ii", 1, 0)  # close at once with RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        return False
    if response.ending != "silence":
        body = response.body[: len(response.body) // 2] if response.ending == "cut" else response.body
        head = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(response.body)}",
            f"Connection: {'keep-alive' if response.ending == 'keep' else 'close'}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        await writer.drain()
    return response.ending == "keep"


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, seconds: float = 2.0) -> None:
    """Discards what a refused client is still sending, for a moment: otherwise it would miss the refusal."""
    left = 4 * MAX_BODY
    try:
        writer.write_eof()
        async with asyncio.timeout(seconds):
            while left > 0 and (data := await reader.read(1 << 16)):
                left -= len(data)
    except (TimeoutError, OSError):
        pass  # the client has gone, or keeps sending
