"""Reads the response of a chat server, trusting nothing: the answer and its cost, or an error in the server's words.

Servers differ in where they put things: an error may come with HTTP 200, as ``error``, ``detail`` or ``message``; the
model's thinking may stand in the content, in a field beside it, or in parts of its own; the whole may be an event
stream that was not asked for. All of that is read here, and nowhere else.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from veason.safe_text import printable


class Malformed(Exception):
    """A response that is neither a chat completion nor an error."""


class ServerError(Exception):
    """A response that is an error; the message is the server's own sentence."""

    def __init__(self, words: str, *, http_status: int, codes: frozenset[str], names: frozenset[str]) -> None:
        super().__init__(words)
        self.http_status = http_status
        """The response's status: 200 where the error came in the body of a good one."""
        self.codes = codes
        """The server's names for the error: its code and type, in lower case."""
        self.names = names
        """Fields of the request that the server complains about."""
        self.wait: float | None = None
        """Seconds that the server asks to wait."""

    @property
    def status(self) -> int | None:
        """The HTTP status, or where that is 200 the one that the error's code gives; None without one."""
        if self.http_status != 200:
            return self.http_status
        return next((int(code) for code in self.codes if re.fullmatch(r"[45]\d\d", code)), None)

    @property
    def kind(self) -> str:
        """The name under which the error is counted: ``HTTP 500``, ``HTTP 200 with error 404``."""
        if self.http_status != 200:
            return f"HTTP {self.http_status}"
        return f"HTTP 200 with error {self.status}" if self.status else "HTTP 200 with an error"

    def refuses(self, name: str) -> bool:
        """True if the error says that the field `name` of the request is not supported, whatever its value."""
        words = f"{self} {' '.join(self.codes)}"
        about = name in self.names if self.names else re.search(rf"\b{re.escape(name)}\b", words)
        return bool(about) and _REFUSES.search(words) is not None


_REFUSES = re.compile(
    r"not (?:be )?(?:support|allow|permit|recogni|accept)|unsupported|unknown|unrecogni|unexpected|\bextra\b|"
    r"extra_forbidden|only the default|deprecated",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Completion:
    """The text of one answer, and its cost in tokens."""

    text: str
    """To the letter, but for lone surrogates; empty where the server gave none."""
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    """The model as the server names it."""
    reasoning: str = ""
    """The thinking, where the server took it out of the text and put it into a field of its own."""
    reasoning_field: str = "reasoning_content"
    """The name of that field."""

    @property
    def whole(self) -> str:
        """The model's text in one piece, as if no server had taken its thinking out.

        Where all of it stands in the reasoning field, that is the model's text as it was; where a content without a
        think block stands beside it, the thinking goes before the content in its tags.
        """
        if not self.reasoning.strip() or "<think>" in self.text:
            return self.text
        if not self.text.strip():
            return self.reasoning
        thinking = self.reasoning.strip().removeprefix("<think>").removesuffix("</think>")
        return f"<think>{thinking}</think>{self.text.strip().removeprefix('</think>').lstrip()}"


def read_completion(body: bytes) -> Completion:
    """The first choice of a chat completion; `ServerError` for an error that came with HTTP 200, `Malformed` for
    anything else. Nothing in it is trusted."""
    start = body[:200].lstrip()
    if start.startswith(b"<"):
        raise _web_page(body)
    if start.startswith((b"data:", b"event:", b":")):
        document = _joined(body)
    else:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"the reply is not JSON ({printable(error, limit=80)})") from None
    choices = document.get("choices") if isinstance(document, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        if isinstance(document, dict | list) and _sentence(document):
            raise _error(200, document, b"")
        raise _no_content(body)
    if choice.get("error") and not message.get("content"):
        raise _error(200, choice, body)
    if not message.keys() & {"content", "reasoning_content", "reasoning", "refusal"}:
        raise _no_content(body)
    text, thoughts = _text_of(message.get("content"))
    field = next((name for name in ("reasoning_content", "reasoning") if _is_text(message.get(name))), None)
    refusal = message.get("refusal")
    finish_reason, model, usage = choice.get("finish_reason"), document.get("model"), document.get("usage")
    if not text.strip() and _is_text(refusal):
        text, finish_reason = refusal, "content_filter"
    return Completion(
        text=_storable(text),
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        model=printable(model, limit=200) if isinstance(model, str) else "",
        reasoning=_storable(message[field] if field else thoughts),
        reasoning_field=field or "content",
    )


def read_error(status: int, body: bytes) -> ServerError:
    """The error in a response's body, in the server's own words; the beginning of a body that has none."""
    if body[:200].lstrip().startswith(b"<"):
        return _web_page(body, status)
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or cut off
        found = _SENTENCE.search(text)
        try:
            document = json.loads(f'{{"message": "{found[1]}"}}') if found else None
        except ValueError:
            document = None
    return _error(status, document, body)


_SENTENCE = re.compile(r'"(?:message|msg|detail)"\s{0,9}:\s{0,9}"((?:[^"\\]|\\.){1,2000}+)')
_PLACES = ("error", "message", "detail", "msg", "error_message", "error_description", "errors", "reason")


def _error(status: int, document: Any, body: bytes) -> ServerError:
    holder = document[0] if isinstance(document, list) and document else document
    holder = holder if isinstance(holder, dict) else {}
    inner = holder["error"] if isinstance(holder.get("error"), dict) else holder
    words = _sentence(document)
    metadata = inner.get("metadata")
    if isinstance(metadata, dict) and _is_text(metadata.get("raw")):  # the words of the service behind a gateway
        words = f"{words}: {metadata['raw'].strip()}"
    detail = holder.get("detail")
    details = detail if isinstance(detail, list) else []
    places = [entry["loc"] for entry in details if isinstance(entry, dict) and isinstance(entry.get("loc"), list)]
    names = {str(place[-1]) for place in places if place} | (
        {inner["param"]} if _is_text(inner.get("param")) else set()
    )
    parts = [part for part in (holder, inner, *details) if isinstance(part, dict)]
    codes = [part.get(name) for part in parts for name in ("code", "type")]
    return ServerError(
        words or body[:300].decode("utf-8", "replace").strip() or "(an empty body)",
        http_status=status,
        codes=frozenset(str(code).lower() for code in codes if isinstance(code, str | int)),
        names=frozenset(names),
    )


def _sentence(value: Any, depth: int = 5) -> str:
    """The first text in one of `_PLACES`, with the field that it is about before it."""
    if isinstance(value, str):
        return value.strip()
    if depth and isinstance(value, list):
        return "; ".join(filter(None, (_sentence(entry, depth - 1) for entry in value[:3])))
    if depth and isinstance(value, dict):
        said = next(filter(None, (_sentence(value.get(place), depth - 1) for place in _PLACES)), "")
        where = ".".join(map(str, value["loc"])) if isinstance(value.get("loc"), list) else ""
        return f"{where}: {said}" if where and said else said
    return ""


def _web_page(body: bytes, status: int = 200) -> ServerError:
    title = re.search(rb"<title[^>]{0,200}>([^<]{1,200})", body[:8192], re.IGNORECASE)
    said = f" titled {printable(title[1].decode('utf-8', 'replace'))!r}" if title else ""
    return ServerError(
        f"a web page{said} instead of JSON", http_status=status, codes=frozenset({"web_page"}), names=frozenset()
    )


def _no_content(body: bytes) -> Malformed:
    begins = printable(body[:200].decode("utf-8", "replace"))
    return Malformed(f"the reply has no choices[0].message.content (it begins {begins!r})")


def _text_of(content: Any) -> tuple[str, str]:
    """(text, thinking) of a message's content: a string, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Malformed(f"the reply's content is {type(content).__name__}, expected a string")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        said = next((part[name] for name in ("text", "thinking", "reasoning", "refusal") if part.get(name)), "")
        thought = part.get("type") in ("thinking", "reasoning")
        (thoughts if thought else texts).append(said if isinstance(said, str) else _text_of(said)[0])
    return "".join(texts), "".join(thoughts)


def _joined(body: bytes) -> dict[str, Any]:
    """The one completion that an event stream's pieces make; `Malformed` if the stream ends before the answer does."""
    text = {"content": "", "reasoning_content": "", "reasoning": ""}
    finish_reason, usage, model = None, None, None
    for line in body.decode("utf-8", "replace").splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        try:
            piece = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed("an event of the reply's stream is not JSON; it was probably cut off") from None
        if isinstance(piece, dict) and piece.get("error"):
            raise _error(200, piece, body)
        choices = piece.get("choices") if isinstance(piece, dict) else None
        if not isinstance(choices, list):
            continue
        usage, model = piece.get("usage") or usage, piece.get("model") or model
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            text = {
                name: said + (delta[name] if isinstance(delta.get(name), str) else "") for name, said in text.items()
            }
        finish_reason = choice.get("finish_reason") or finish_reason
    if finish_reason is None:
        raise Malformed("the reply's stream ends before the answer does")
    return {"choices": [{"message": text, "finish_reason": finish_reason}], "usage": usage, "model": model}


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be stored


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 40 else 0
