"""What a chat server sends back, read with no trust: text, how it ended, what it cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class Malformed(Exception):
    """A reply that is no chat completion."""


@dataclass(frozen=True)
class Completion:
    """The text of one answer, and what it cost."""

    text: str
    """To the letter, but for lone surrogates; empty where the server gave none."""
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    """The model as the server names it."""


def read_completion(body: bytes) -> Completion:
    """The first choice of a chat completion; `Malformed` for any other body. Nothing in it is trusted."""
    try:
        document = json.loads(body)
        choice = document["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the reply is not JSON ({str(error)[:80]})") from None
    except (KeyError, IndexError, TypeError):
        raise Malformed("the reply has no choices[0].message.content") from None
    if not isinstance(text, str | None):
        raise Malformed(f"the reply's content is {type(text).__name__}, expected a string")
    usage = document.get("usage")
    finish_reason, model = choice.get("finish_reason"), document.get("model")
    return Completion(
        text=(text or "").encode("utf-8", "replace").decode("utf-8"),  # lone surrogates cannot be stored
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        model=model[:200] if isinstance(model, str) else "",
    )


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 40 else 0
