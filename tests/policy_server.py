"""A stand-in for a served policy: an OpenAI-compatible server that answers a data set's prompts as a `Policy` would.

It takes nothing on trust: the request must be the project's prompt for one of its samples, to the letter, and the
pictures must be that sample's frames at model size, to the pixel. Anything else is refused with what was different.

    with serving(PolicyServer(OraclePolicy(dataset), dataset, clip_of, ServerOptions(model="oracle"))) as url:
        OpenAIPolicy("oracle", base_url=url)
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np

from demo.recognition import count_tokens
from demo.server import Refusal, Server, ServerOptions
from inference.policies import Policy
from veason import frames, prompt
from veason.types import Clip, Question, VideoSample

_PNG = "data:image/png;base64,"


class PolicyServer(Server):
    """Answers with `policy` about `samples`, each shown as `clip_of` says."""

    def __init__(
        self,
        policy: Policy,
        samples: Iterable[VideoSample],
        clip_of: Callable[[VideoSample], Clip],
        options: ServerOptions,
    ) -> None:
        super().__init__(options)
        self._policy, self._clip_of = policy, clip_of
        self._by_text: dict[str, list[VideoSample]] = defaultdict(list)
        for sample in samples:
            self._by_text[prompt.text(sample.expression, clip_of(sample))].append(sample)

    def reply(self, request: dict[str, Any]) -> tuple[str, int]:
        text, pictures = _read(request.get("messages"))
        if text not in self._by_text:
            raise Refusal(400, f"no sample has the prompt {text[:300]!r}")
        for sample in self._by_text[text]:
            question = self._question(sample)
            if len(pictures) == len(question.images) and all(map(np.array_equal, pictures, question.images)):
                (said,) = self._policy.answer([question], seed=request.get("seed") or 0)
                return said, count_tokens(text)
        raise Refusal(400, f"the pictures are not the frames of {self._by_text[text][0].key}, to the pixel")

    def _question(self, sample: VideoSample) -> Question:
        clip = self._clip_of(sample)
        opened = frames.VideoFrames(sample)
        return Question(sample, clip, tuple(frames.resize(opened[t], clip.size) for t in clip.frame_ids))


def _read(messages: Any) -> tuple[str, list[np.ndarray]]:
    """(the user turn with a mark per picture, the pictures) of a request that has the project's two turns."""
    try:
        system, user = messages
        if (system["role"], system["content"]) != ("system", [{"type": "text", "text": prompt.SYSTEM}]):
            raise Refusal(400, f"the system turn is {str(system)[:80]}")
        text, pictures = "", []
        for part in user["content"]:
            if part["type"] == "text":
                text += part["text"]
            else:
                text += prompt.IMAGE
                pictures.append(_picture(part["image_url"]["url"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(400, f"the messages are not those of a policy ({error!r})") from None
    return text, pictures


def _picture(url: str) -> np.ndarray:
    if not url.startswith(_PNG):
        raise Refusal(400, f"a picture must be a PNG data URL, found {url[:40]!r}")
    data = np.frombuffer(base64.b64decode(url.removeprefix(_PNG), validate=True), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise Refusal(400, "a picture is no PNG")
    return decoded[..., ::-1]
