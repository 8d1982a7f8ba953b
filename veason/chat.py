"""One answer of an OpenAI-compatible server, for any weather: rate limit, back-off, Retry-After, untrusted replies.

What the server does wrong is counted and asked again; what only the user can put right (key, address, model, quota)
is a `DataError` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx  # what the openai client speaks
import openai

from veason.completion import Completion, Malformed, read_completion
from veason.errors import DataError

MAX_BODY = 4 << 20
"""Bytes of a reply that are read; no answer of a language model comes near."""
MAX_WAIT = 600.0
"""Seconds that a Retry-After may ask for at most."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds of back-off before the first retry, and at most."""

_RETRIED = {408, 409, 425, 429}  # and 5xx
_FATAL = {
    401: "the server does not accept the key; set {key}",
    402: "the server asks for payment; top up the account and run the same command again",
    403: "the key may not use this model or address; check {key}, --model and --base-url",
    404: "no such address or model; check --base-url (it usually ends in /v1) and --model",
}


class GaveUp(Exception):
    """No answer after all retries; the message says what came last."""


@dataclass(frozen=True)
class Request:
    """What every request of a run has in common."""

    model: str
    temperature: float = 0.7
    max_tokens: int = 2048
    timeout: float = 300.0
    """Seconds from sending to the last byte."""
    max_retries: int = 8
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, such as ``logit_bias``."""


class Chat:
    """Asks a server. Use inside a running event loop, and as an async context manager."""

    def __init__(
        self,
        request: Request,
        *,
        base_url: str,
        api_key: str | None,
        key_name: str = "OPENAI_API_KEY",
        per_minute: float | None = None,
    ) -> None:
        """api_key: None is for a server on this machine. key_name: the variable it comes from, for messages.
        per_minute: requests, retries included."""
        self.request, self.base_url, self._key_name = request, base_url, key_name
        self._key = check_access(base_url, api_key, key_name)
        self.problems: Counter[str] = Counter()
        """Attempts without an answer, by kind."""
        self._pace = Pace(per_minute)
        self._jitter = Random()
        self._closing = asyncio.Event()
        timeout = httpx.Timeout(request.timeout)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout, limits=limits, trust_env=not is_loopback(base_url)
            ),
        )

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def stop_retrying(self) -> None:
        """From now on a failed attempt is the last one; those on their way are still waited for."""
        self._closing.set()

    async def ask(self, messages: list[dict[str, Any]], *, seed: int) -> Completion:
        """The server's answer, to the letter. `GaveUp` after all retries, DataError if no retry can help."""
        for attempt in range(self.request.max_retries + 1):
            await self._sleep(self._pace.wait(time.monotonic()))
            if self._closing.is_set():
                raise GaveUp("the run is being stopped")
            wait = None
            try:
                async with asyncio.timeout(self.request.timeout):
                    return await self._request(messages, seed)
            except openai.APIStatusError as error:
                self._check_hopeless(error)
                kind, detail = f"HTTP {error.status_code}", self._public(error)
                if error.status_code < 500 and error.status_code not in _RETRIED:
                    self.problems[kind] += 1
                    raise GaveUp(f"{kind}: {detail}") from error
                wait = retry_after(error.response.headers, now=time.time())
            except (TimeoutError, openai.APITimeoutError, httpx.TimeoutException):
                kind, detail = "timeout", f"no answer within {self.request.timeout:g} s"
            except (openai.APIConnectionError, httpx.HTTPError) as error:
                kind, detail = "connection", self._public(error.__cause__ or error)
            except Malformed as error:
                kind, detail = "malformed", str(error)
            self.problems[kind] += 1
            if attempt < self.request.max_retries:
                await self._sleep(self._backoff(attempt, wait))
        raise GaveUp(f"{kind}: {detail}")

    async def _request(self, messages: list[dict[str, Any]], seed: int) -> Completion:
        request = self.request
        async with self._client.chat.completions.with_streaming_response.create(
            model=request.model,
            messages=[],
            extra_body={
                "messages": messages,
                **request.extra,
            },  # unchecked: the client's check of every part took most of its time
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=seed,
        ) as response:
            body = bytearray()
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Malformed(f"the reply is longer than {MAX_BODY} bytes")
        return read_completion(bytes(body))

    def _check_hopeless(self, error: openai.APIStatusError) -> None:
        """DataError for an answer that will not change until the user changes something."""
        remedy = _FATAL.get(error.status_code)
        if error.status_code == 429 and error.code == "insufficient_quota":
            remedy = _FATAL[402]
        if remedy:
            raise DataError(
                f"{public_url(self.base_url)} answered HTTP {error.status_code} for model {self.request.model!r}: "
                f"{remedy.format(key=self._key_name)} (the server says: {self._public(error)})"
            ) from None

    def _public(self, error: BaseException) -> str:
        """One line about an error, without end and without the key, which servers like to quote in part."""
        text = " ".join(str(error).split()) or type(error).__name__
        if len(self._key) >= 8:
            text = text.replace(self._key, "***").replace(self._key[:8], "***")
        return text[:300]

    def _backoff(self, attempt: int, wait: float | None) -> float:
        """Seconds before the next attempt, with jitter so that a crowd does not come back at once.

        wait: what the server asked for; never less than that.
        """
        spread = self._jitter.uniform(0.5, 1.0)
        if wait is not None:
            return wait + FIRST_WAIT * spread
        return min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * spread

    async def _sleep(self, seconds: float) -> None:
        """Cut short when the run is stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()


class Pace:
    """At most so many requests a minute, evenly spaced."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Take the next place in the row: seconds until it comes."""
        mine = max(now, self._next)
        self._next = mine + self._gap
        return mine - now


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, from a number or an HTTP date; None without a readable one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(MAX_WAIT, max(0.0, seconds)) if math.isfinite(seconds) else None


def check_access(base_url: str, api_key: str | None, key_name: str = "OPENAI_API_KEY") -> str:
    """The key to send; a placeholder to a server on this machine. DataError for a bad address or a missing key."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"--base-url {public_url(base_url)!r} is no http(s) address, such as http://127.0.0.1:8000/v1")
    if api_key:
        return api_key
    if not is_loopback(base_url):
        raise DataError(f"{public_url(base_url)} wants a key: set {key_name} in the environment")
    return "no-key-needed-here"


def is_loopback(base_url: str) -> bool:
    """The address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def public_url(base_url: str) -> str:
    """The address without user, password and query."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
