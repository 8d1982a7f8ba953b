"""A model behind any OpenAI-compatible server (`vllm serve`, a cloud): many requests in flight, retried with back-off.

The prompt and the pixels are those of every other policy: frames at model size as PNG, which loses nothing. The server
may still resize pictures, cap their number or use another chat template.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from veason import chat, prompt, server_access
from veason.errors import DataError
from veason.family import QWEN2_5_VL, Family
from veason.types import Clip, Question, VideoSample

_log = logging.getLogger(__name__)


class OpenAIPolicy:
    """Replies of `model` at `base_url`. `answer` may be called from several threads at once.

    A reply that is empty or cut off goes to the parser as it is; thinking that the server took out of the text is put
    back. An attempt that brings no reply (429, 5xx, timeout, broken connection, broken JSON) is repeated with back-off;
    a DataError after the last one names the sample. What a retry cannot help (key, address, model, a refused request)
    is a DataError at once.
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
        """Makes a client; no request is sent yet.

        api_key_env: variable that holds the key; a server on this machine needs none. requests: the largest number of
        requests in flight. timeout: seconds of one attempt. forbidden: token ids never to be generated, sent as a bias
        of -100. family: defines the space of the model's boxes.
        """
        self.family, self._template = family, template
        extra: dict[str, Any] = {"top_p": top_p} if top_p != 1.0 else {}
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
        self._warned = False
        threading.Thread(target=self._loop.run_forever, name="openai", daemon=True).start()

    def choose_clip(self, sample: VideoSample) -> Clip | None:
        return None

    def answer(self, questions: Sequence[Question], *, seed: int) -> list[str]:
        requests = []
        for question in questions:
            self.family.check_size(question.clip.size)
            urls = [data_url(image) for image in question.images]
            turns = prompt.messages(question.sample.expression, question.clip, urls, template=self._template)
            for turn in turns:
                turn["content"] = [
                    {"type": "image_url", "image_url": {"url": part["image"]}} if part["type"] == "image" else part
                    for part in turn["content"]
                ]
            key = question.sample.key
            own_seed = zlib.crc32(f"{seed}/{key}".encode()) & 0x7FFFFFFF  # 31 bits, the same in every run
            requests.append((key, turns, own_seed))

        async def ask_all() -> list[str]:
            return list(await asyncio.gather(*(self._ask(*request) for request in requests)))

        return asyncio.run_coroutine_threadsafe(ask_all(), self._loop).result()

    def cancel(self) -> None:
        """Ends all requests in flight: a thread that waits in `answer` gets `concurrent.futures.CancelledError`."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])

    async def _ask(self, key: str, messages: list[dict[str, Any]], seed: int) -> str:
        async with self._places:
            try:
                reply = await self._chat.ask(messages, seed=seed)
            except (chat.GaveUp, DataError) as error:
                if self._failure is None:  # the run ends here: requests in flight may still succeed, no more are tried
                    self._chat.stop_retrying()
                    self._failure = (
                        error
                        if isinstance(error, DataError)
                        else DataError(
                            f"{key}: no answer from {self._url} ({error}); see to the server and run the same command "
                            "again: what is finished is kept"
                        )
                    )
                raise self._failure from None
            if not reply.text.strip() and reply.reasoning.strip() and not self._warned:
                self._warned = True
                _log.warning(
                    "%s: the reply has no content, all of its text is in %s; it is read from there. Start the server "
                    "without its reasoning parser (vLLM: without --reasoning-parser) if answers are missing",
                    *(self._url, reply.reasoning_field),
                )
            return reply.whole

    def describe(self) -> dict[str, Any]:
        limits = {"max_new_tokens": self._request.max_tokens, "temperature": self._request.temperature}
        return {"name": self.name, "model": self._request.model, "base_url": self._url, **limits}


def data_url(image: np.ndarray) -> str:
    """Encodes an (H, W, 3) uint8 RGB picture as a PNG data URL."""
    ok, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])  # OpenCV wants BGR
    assert ok, f"a picture of shape {image.shape} could not be encoded"
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
