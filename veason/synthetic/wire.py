"""HTTP/1.1 in as little as a test server needs: requests of declared length, JSON responses, nothing without a bound.

Written on bare asyncio streams because a teacher must also be able to break off, to lie about lengths and to reset the
connection, which every proper HTTP library rightly prevents. A waiting request costs one small task, no thread.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAX_HEAD = 32 << 10
"""Bytes of a request line with its headers."""
MAX_BODY = 16 << 20
"""Bytes of a request's body: some fifty frames."""
IDLE, PATIENCE = 300.0, 60.0
"""Seconds to wait for the next request on a connection, and for the rest of one whose head is there."""

ENDINGS = ("keep", "close", "cut", "reset", "silence")
"""How a response ends: the connection stays open; is closed after it; is closed amid the body; is reset instead of a
response; is closed instead of one."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Without a query."""
    body: bytes
    keep_alive: bool


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    ending: str = "keep"


class Refusal(Exception):
    """A request that gets an error instead of an answer; its connection is closed, since the body may be unread."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def reply(value: Any, *, status: int = 200) -> Response:
    """A JSON response."""
    return Response(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def refuse(status: int, message: str, *, ending: str = "keep", headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An error in OpenAI's shape."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return Response(status, reply({"error": error}).body, headers, ending)


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request of a connection; None if the client has gone or says nothing for `IDLE` seconds."""
    try:
        async with asyncio.timeout(IDLE):
            head = await reader.readuntil(b"\r\n\r\n")
        method, path, version, headers = _read_head(head)
        length = _read_length(headers)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        return None
    except asyncio.LimitOverrunError:
        raise Refusal(431, f"the head of the request is longer than {MAX_HEAD} bytes") from None
    keep_alive = headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
    return Request(method, path, body, keep_alive)


def _read_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """(method, path, version, headers by lower-case name)"""
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


def _read_length(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Refusal(411, "a body must come with Content-Length, not in chunks")
    text = headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise Refusal(400, f"Content-Length must be a whole number, found {text[:80]!r}")
    if int(text) > MAX_BODY:
        raise Refusal(413, f"a body of {text} bytes is too large, at most {MAX_BODY}; show fewer or smaller frames")
    return int(text)


async def send(writer: asyncio.StreamWriter, response: Response) -> bool:
    """Send a response with the ending it asks for; whether the connection may be used again."""
    if response.ending == "reset":
        linger = struct.pack("ii", 1, 0)  # close at once with RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        return False
    if response.ending != "silence":
        body = response.body[: len(response.body) // 2] if response.ending == "cut" else response.body
        writer.write(_head(response) + body)
        await writer.drain()
    return response.ending == "keep"


def _head(response: Response) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(response.body)}",
        f"Connection: {'keep-alive' if response.ending == 'keep' else 'close'}",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, seconds: float = 2.0) -> None:
    """Read and forget what a refused client is still sending, for a moment: it would miss the refusal otherwise."""
    left = 4 * MAX_BODY
    try:
        writer.write_eof()
        async with asyncio.timeout(seconds):
            while left > 0 and (data := await reader.read(1 << 16)):
                left -= len(data)
    except (TimeoutError, OSError):
        pass  # it has gone, or keeps sending
