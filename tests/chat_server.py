"""A small real HTTP server that plays a chat server in a test: good, slow, failing, hanging or talking nonsense.

``python chat_server.py --delay 0.5`` serves until it is killed: what the throughput is measured against.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TEXT = "A lamp is switched on. The room is brightest then. The lamp stands in the middle."


@dataclass
class Asked:
    """One request as it came in."""

    arrival: int
    time: float
    """The time of the event loop's clock, in seconds."""
    headers: dict[str, str]
    body: dict[str, Any]
    path: str = ""

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.body["messages"][-1]["content"]

    @property
    def expression(self) -> str:
        return re.search(r"^Expression: (.*)$", self.parts[-1]["text"], re.MULTILINE)[1]

    @property
    def keyframe(self) -> int:
        return int(re.search(r"^Keyframe: (\d+)s$", self.parts[-1]["text"], re.MULTILINE)[1])


def completion(text: Any = TEXT, *, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": usage}
    ).encode()


@dataclass
class Act:
    """The behaviour of the server for one request."""

    body: bytes = field(default_factory=completion)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    ending: str = "keep"
    """keep; cut (half of the body, then the connection ends); reset (no answer at all); endless (the body again and
    again until the client leaves)."""


@dataclass
class ChatServer:
    """Answers with ``script(asked)``; every request is kept in `asked`."""

    script: Callable[[Asked], Act] = lambda asked: Act()
    asked: list[Asked] = field(default_factory=list)
    keep: bool = True
    in_flight: int = 0
    max_in_flight: int = 0
    answered: int = 0
    sent: int = 0
    """Bytes of endless bodies."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(
            len(self.asked),
            asyncio.get_running_loop().time(),
            headers,
            json.loads(data) if self.keep else {},
            head[0].split(" ")[1],
        )
        self.asked.append(asked)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            act = self.script(asked)
            await asyncio.sleep(act.delay)
        finally:
            self.in_flight -= 1
        if act.ending == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        lines = [f"HTTP/1.1 {act.status} X", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in act.headers.items()]
        if act.ending == "endless":
            writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode())
            while True:
                writer.write(act.body)
                await writer.drain()
                self.sent += len(act.body)
        lines.append(f"content-length: {len(act.body)}")
        body = act.body if act.ending == "keep" else act.body[: len(act.body) // 2]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        self.answered += 1
        return act.ending == "keep"

    @contextlib.contextmanager
    def serve(self, context: ssl.SSLContext | None = None) -> Iterator[str]:
        """The address while it runs, in a thread of its own; https on ``localhost`` with a `context`."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def start() -> asyncio.Server:
            return await asyncio.start_server(self.handle, "127.0.0.1", 0, limit=1 << 20, ssl=context)

        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            port = server.sockets[0].getsockname()[1]
            yield f"https://localhost:{port}/v1" if context else f"http://127.0.0.1:{port}/v1"
        finally:
            loop.call_soon_threadsafe(server.close)
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.5)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()

    async def run() -> None:
        server = ChatServer(script=lambda asked: Act(delay=args.delay), keep=False)
        listening = await asyncio.start_server(server.handle, "127.0.0.1", args.port, limit=1 << 20)
        print(listening.sockets[0].getsockname()[1], flush=True)
        async with listening:
            while True:
                await asyncio.sleep(2)
                print(f"{len(server.asked)} asked, at most {server.max_in_flight} in flight", flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
