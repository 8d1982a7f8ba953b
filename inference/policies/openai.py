"""A model behind any OpenAI-compatible server (`vllm serve`, a cloud): many requests in flight, retried with back-off.

The prompt and the pixels are those of every other policy: frames at model size as PNG, which loses nothing. What the
server makes of them is its own affair: it may resize pictures again, cap their number or use another chat template.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from veason import chat, prompt, server_access
from veason.completion import Completion
from veason.errors import DataError
from veason.family import QWEN2_5_VL, Family
from veason.types import Clip, Question, VideoSample


class OpenAIPolicy:
    """Replies of `model` at `base_url`. `answer` may be called from several threads at once.

    A reply that is empty or cut off is the model's and goes to the parser as it is; thinking that the server took out
    of the text is put back. An attempt that brings no reply (429, 5xx, timeout, broken connection, broken JSON) is
    repeated with back-off; DataError after the last one, naming the sample, and at once for what a retry cannot help
    (key, address, model, a refused request).
    """

    name = "openai"
    looks = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        requests: int = 32,
        max_retries: int = 8,
        timeout: float = 300.0,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        template: str | None = None,
        forbidden: Sequence[int] = (),
        family: Family = QWEN2_5_VL,
    ) -> None:
        """`api_key_env`: variable that holds the key; a server on this machine needs none. `requests`: in flight at
        most. `timeout`: seconds of one attempt. `forbidden`: token ids never to be generated, sent as a bias of -100.
        `family`: says in which space the model speaks its boxes."""
        self.family, self._template = family, template
        extra = {"top_p": top_p} if top_p != 1.0 else {}
        if forbidden:
            extra["logit_bias"] = {str(token): -100 for token in forbidden}
        self._request = chat.Request(
            model=model,
            temperature=temperature,
            max_tokens=max_new_tokens,
            timeout=timeout,
            max_retries=max_retries,
            extra=extra,
        )
        self._url = server_access.public_url(base_url)
        self._loop = asyncio.new_event_loop()
        self._chat = chat.Chat(
            self._request, base_url=base_url, api_key=os.environ.get(api_key_env), key_name=api_key_env
        )
        self._places = asyncio.Semaphore(requests)
        self._failure: DataError | None = None
        self._told = False
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        asking = self._ask_all([(q.sample.key, self._messages(q), _seed(seed, q.sample)) for q in questions])
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result()

    def cancel(self) -> None:
        """End all requests on their way: whoever waits in `answer` gets a `concurrent.futures.CancelledError`."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        """The project's prompt with each frame as a data URL."""
        self.family.check_size(question.clip.size)
        urls = [data_url(image) for image in question.images]
        turns = prompt.messages(question.sample.expression, question.clip, urls, template=self._template)
        for turn in turns:
            turn["content"] = [
                {"type": "image_url", "image_url": {"url": part["image"]}} if part["type"] == "image" else part
                for part in turn["content"]
            ]
        return turns

    async def _ask_all(self, requests: Sequence[tuple[str, list[dict[str, Any]], int]]) -> list[str]:
        return list(await asyncio.gather(*(self._ask(*request) for request in requests)))

    async def _ask(self, key: str, messages: list[dict[str, Any]], seed: int) -> str:
        async with self._places:
            try:
                reply = await self._chat.ask(messages, seed=seed)
                self._tell_where(reply)
                return reply.whole
            except (chat.GaveUp, DataError) as error:
                if self._failure is None:  # the run ends here: those on their way may still arrive, no more
                    self._chat.stop_retrying()
                    self._failure = error if isinstance(error, DataError) else self._gave_up(key, error)
                raise self._failure from None

    def _tell_where(self, reply: Completion) -> None:
        """Say once that replies are read from the field for reasoning: whose answer is missing may look there."""
        if reply.text.strip() or not reply.reasoning.strip() or self._told:
            return
        self._told = True
        print(
            f"{self._url}: the reply has no content, all of its text is in {reply.reasoning_field}; it is read from "
            "there. Start the server without its reasoning parser (vLLM: without --reasoning-parser) if answers are "
            "missing",
            file=sys.stderr,
        )

    def _gave_up(self, key: str, error: chat.GaveUp) -> DataError:
        return DataError(
            f"{key}: no answer from {self._url} ({error}); see to the server and run the same command again: what is "
            "finished is kept"
        )

    def describe(self) -> dict[str, Any]:
        limits = {"max_new_tokens": self._request.max_tokens, "temperature": self._request.temperature}
        return {"name": self.name, "model": self._request.model, "base_url": self._url, **limits}


def data_url(image: np.ndarray) -> str:
    """An (H, W, 3) uint8 RGB picture as a PNG data URL."""
    ok, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])  # OpenCV wants BGR
    assert ok, f"a picture of shape {image.shape} could not be encoded"
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def _seed(seed: int, sample: VideoSample) -> int:
    """31 bits: each request of a batch has its own, the same in every run."""
    return zlib.crc32(f"{seed}/{sample.key}".encode()) & 0x7FFFFFFF
