"""Asks an OpenAI-compatible server: retries with back-off, Retry-After, bounded reads, untrusted replies.

A failed attempt is counted and repeated; what only the user can put right (key, address, model, quota, proxy,
certificate) is a `DataError` at once. A field that the model refuses (``max_tokens``, ``seed``, ``temperature``) is
left out or renamed for the rest of the run, with one warning. No message holds any part of a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import math
import os
import ssl
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2 as httpx  # the library of the openai client
import openai

from veason.completion import Completion, Malformed, ServerError, read_completion, read_error
from veason.errors import DataError
from veason.safe_text import MASK, mask, printable
from veason.server_access import NO_KEY, check_access, client_options, header_value, public_url, secrets_of

_log = logging.getLogger(__name__)

MAX_BODY = 4 << 20
"""Bytes of a reply that are read, after decompression; no answer of a language model comes near."""
MAX_ERROR, ERROR_SECONDS = 16 << 10, 10.0
"""Bytes of an error's body that are read, after decompression, and for how long at most."""
_OVERHEAD = 4 << 10
"""Bytes that a compressed body may have beyond the bound of the unpacked one."""
MAX_WAIT = 600.0
"""Seconds that a Retry-After may ask for at most."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds of back-off before the first retry, and at most."""

_RETRIED = {408, 409, 425, 429}  # and 5xx, and an error without a number in a body with HTTP 200
_FATAL = {
    401: "the server does not accept the key; set {key}",
    402: "the server asks for payment; top up the account and run the same command again",
    403: "the key may not use this model or address; check {key}, --model and --base-url",
    404: "no such address or model; check --base-url (it usually ends in /v1) and --model",
    405: "this address takes no chat requests; check --base-url (it usually ends in /v1)",
    407: "the proxy wants a user and a password; correct the proxy's address in the environment",
}
_QUOTA = {
    *("insufficient_quota", "insufficient_balance", "billing_hard_limit_reached", "billing_not_active"),
    *("billing_error", "exceeded_current_quota_error"),  # of Anthropic, of Moonshot
    *("quotaexceeded", "accountoverdueerror", "arrearage"),  # of Volcano Ark, twice, and of DashScope
}
"""Codes and types, in lower case, of errors that last until the account is paid, whatever their HTTP status."""
_ACCOUNT = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
"""Environment variables that the client sends as headers."""
_WITHHELD = {"content_filter", "content_policy_violation"}
_ADAPTED = {
    "max_tokens": "max_completion_tokens is sent instead",
    "seed": "answers come without a seed, so a repeated run may differ",
    "temperature": "answers come at the server's own temperature",
}
"""Fields of a request that some models refuse, with the consequence."""
_GZIP = b"\x1f\x8b"
"""The first bytes of each member of a gzip body."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""The window bits with which zlib takes either format, by its first bytes."""
_ANSWER_RUN = 12
"""Characters of a key in a row that an answer may not repeat: long enough that no word of an answer is masked."""


class GaveUp(Exception):
    """There is no answer after all retries; the message says what came last."""


@dataclass(frozen=True)
class Request:
    """The settings that all requests of a run share."""

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
        base_url = base_url.strip()
        key = check_access(base_url, api_key, key_name)
        self.request, self.base_url, self._key_name = request, base_url, key_name
        organization, project = (header_value(os.environ.get(name), name) for name in _ACCOUNT)
        options, proxy_secrets = client_options(base_url)
        self._keys = [text for text in (key, organization, project) if text not in ("", NO_KEY)]
        self._secrets = [*self._keys, *secrets_of(base_url), *proxy_secrets]
        self.problems: Counter[str] = Counter()
        """Attempts without an answer, by kind."""
        self._refused: set[str] = set()
        self._answered = False
        self._pace = Pace(per_minute)
        self._jitter = Random()
        self._closing = asyncio.Event()
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # below that it logs addresses, which may hold a key
        parts = urlsplit(base_url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._client = openai.AsyncOpenAI(
            base_url=parts._replace(path=path, query="", fragment="").geturl(),
            api_key=key,
            organization=organization or None,
            project=project or None,
            max_retries=0,
            timeout=request.timeout,
            default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            default_headers={"Accept-Encoding": "gzip, deflate"},  # what `_Bounded` unpacks
            http_client=httpx.AsyncClient(
                **options,
                follow_redirects=True,
                max_redirects=2,
                event_hooks={"response": [self._receive]},  # also sees each redirect before it is followed
                timeout=httpx.Timeout(request.timeout),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
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
        attempt = 0
        while True:
            await self._sleep(self._pace.wait(time.monotonic()))
            if self._closing.is_set():
                raise GaveUp("the run is being stopped")
            refused, wait = frozenset(self._refused), None
            try:
                async with asyncio.timeout(self.request.timeout):
                    completion = await self._exchange(messages, seed, refused)
                self._answered = True
                return self._without_secrets(completion)
            except ServerError as error:
                if self._adapts(error, refused):
                    continue
                if error.codes & _WITHHELD:
                    return Completion(self.public(error), "content_filter", 0, 0, "")
                self._check_hopeless(error)
                kind, detail, wait = error.kind, self.public(error), error.wait
                if error.status is not None and error.status not in _RETRIED and error.status < 500:
                    self.problems[kind] += 1
                    raise GaveUp(f"{kind}: {detail}") from None
            except (TimeoutError, httpx.TimeoutException, openai.APITimeoutError):
                kind, detail = "timeout", f"no answer within {self.request.timeout:g} s"
            except (httpx.HTTPError, openai.APIConnectionError) as error:
                origin = (isinstance(error, openai.APIConnectionError) and error.__cause__) or error
                self._check_connection(origin)
                kind, detail = "connection", self.public(origin)
            except Malformed as error:
                kind, detail = "malformed", self.public(error)
            self.problems[kind] += 1
            if attempt >= self.request.max_retries:
                raise GaveUp(f"{kind}: {detail}")
            spread = self._jitter.uniform(0.5, 1.0)  # so that a crowd does not come back at once
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * spread
            await self._sleep(backoff if wait is None else wait + FIRST_WAIT * spread)  # never less than asked for
            attempt += 1

    async def _exchange(self, messages: list[dict[str, Any]], seed: int, refused: frozenset[str]) -> Completion:
        """Send one request without the refused fields and read its response, bounded; `ServerError` for any error."""
        fields: dict[str, Any] = {**self.request.extra, "messages": messages}
        fields["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = self.request.max_tokens
        fields |= {"temperature": self.request.temperature, "seed": seed}
        fields = {name: value for name, value in fields.items() if name not in refused}
        completions = self._client.chat.completions.with_streaming_response
        try:
            # As extra_body the fields are not checked: the client's check of every part took most of its time.
            async with completions.create(model=self.request.model, messages=[], extra_body=fields) as response:
                body = b"".join([chunk async for chunk in response.iter_bytes()])
        except openai.APIStatusError as error:
            made = read_error(error.status_code, error.response.content)
            made.wait = retry_after(error.response.headers, now=time.time())
            raise made from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx.TooManyRedirects):
                raise Malformed(f"{public_url(self.base_url)} redirects again and again") from None
            raise
        return read_completion(body)

    async def _receive(self, response: httpx.Response) -> None:
        """Bound the body of a response that has just begun; DataError for a redirect that must not be followed.

        A redirect is followed if it leads to the same server and the request stays a POST with its body.
        """
        encoding = response.headers.pop("content-encoding", "identity")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Bounded(response.stream, encoding, answer=response.is_success)
        if not response.has_redirect_location:
            return
        here, location = response.url, response.headers["location"]
        try:
            there = here.join(location)
        except httpx.InvalidURL:
            there = httpx.URL()
        same = (here.scheme, here.host, here.port) == (there.scheme, there.host, there.port)
        if same and response.status_code in (307, 308):
            return
        target = self.public(public_url(str(there)).removesuffix("/chat/completions") if there.host else location)
        why = (
            "would make another kind of request of it"
            if same
            else f"would take the prompts and pictures from {here.host} along"
        )
        raise DataError(
            f"{public_url(self.base_url)} answered HTTP {response.status_code}, a redirect to {target}; it was not "
            f"followed, because it {why}; if that is the right place, give it as --base-url"
        )

    def _adapts(self, error: ServerError, refused: frozenset[str]) -> bool:
        """True if the request may be repeated without a field that this error refuses; remembered, with one warning."""
        if error.status not in (400, 422):
            return False
        if self._refused - refused:  # another request has found out meanwhile
            return True
        name = next((name for name in _ADAPTED if name not in refused and error.refuses(name)), None)
        if name is None:
            return False
        self._refused.add(name)
        _log.warning("the model %r refuses %s (%s): %s", self.request.model, name, self.public(error), _ADAPTED[name])
        return True

    def _check_hopeless(self, error: ServerError) -> None:
        """DataError for an answer that will not change until the user changes something."""
        remedy = _FATAL.get(error.status or 0)
        if error.codes & _QUOTA:
            remedy = _FATAL[402]
        elif "web_page" in error.codes and error.http_status == 200 and not self._answered:
            remedy = "this is no address of a chat server; check --base-url (it usually ends in /v1)"
        if remedy:
            raise DataError(
                f"{public_url(self.base_url)} answered {error.kind} for model {self.request.model!r}: "
                f"{remedy.format(key=self._key_name)} (the server says: {self.public(error)})"
            ) from None

    def _without_secrets(self, completion: Completion) -> Completion:
        """The answer with the secrets masked that the server repeats in it: answers are stored and shown.

        A key is masked in parts, too. A user or a password is masked only as a whole, since it may be made of words.
        """
        found = {name: getattr(completion, name) for name in ("text", "reasoning", "model")}
        for secret in (secret for secret in self._secrets if len(secret) >= 8):
            found = {name: value.replace(secret, MASK) for name, value in found.items()}
        for key in self._keys:
            found = {name: mask(value, key, run=_ANSWER_RUN) for name, value in found.items()}
        return replace(completion, **found)

    def _check_connection(self, error: BaseException) -> None:
        """DataError where a proxy needs a password or a certificate is not trusted: no retry changes that."""
        if isinstance(error, httpx.ProxyError) and str(error).startswith("407"):
            raise DataError(f"{public_url(self.base_url)}: {_FATAL[407]} ({self.public(error)})") from None
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise DataError(
                f"{public_url(self.base_url)}: the server's certificate is not trusted ({cause.verify_message}); set "
                "SSL_CERT_FILE to a file with the certificate of the server or of who signed it"
            ) from None

    def public(self, error: object) -> str:
        """One printable line of at most 300 characters about an error or a server's text, without any part of a key."""
        return printable(error, secrets=self._secrets, limit=300) or type(error).__name__

    async def _sleep(self, seconds: float) -> None:
        """Wait, at most until the run is stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closing.wait()


class _Bounded(httpx.AsyncByteStream):
    """The body of a response, unpacked piece by piece, so that no more than its bound is ever held.

    An answer may have `MAX_BODY` bytes (`Malformed` beyond them). An error is cut after `MAX_ERROR` bytes or
    `ERROR_SECONDS`: its beginning says what there is to say.
    """

    def __init__(self, stream: httpx.AsyncByteStream, encoding: str, *, answer: bool) -> None:
        self._stream, self._encoding, self._answer = stream, encoding.strip().lower() or "identity", answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._answer:
            async for piece in self._unpacked(MAX_BODY):
                yield piece
            return
        body = bytearray()
        with contextlib.suppress(TimeoutError, Malformed, httpx.HTTPError):
            async with asyncio.timeout(ERROR_SECONDS):
                async for piece in self._unpacked(MAX_ERROR):
                    body += piece
        yield bytes(body)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _unpacked(self, limit: int) -> AsyncIterator[bytes]:
        """The body without its compression, at most `limit` bytes of it; gzip may have several members (RFC 1952)."""
        if self._encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise Malformed(f"the reply is encoded as {printable(self._encoding)!r}, which was not asked for")
        packed, received, left = self._encoding != "identity", 0, limit
        member = zlib.decompressobj(_GZIP_OR_ZLIB)
        between = False  # two members of a gzip body
        async for chunk in self._stream:
            received += len(chunk)
            while chunk := chunk.lstrip(b"\0") if between else chunk:  # zeros between members are padding
                if between and not _GZIP.startswith(chunk[:2]):
                    return  # no member: what stands behind a body is ignored
                between = False
                try:
                    piece = member.decompress(chunk, left + 1) if packed else chunk[: left + 1]
                except zlib.error as error:
                    raise Malformed(f"the reply cannot be unpacked ({error})") from None
                yield piece[:left]
                left -= len(piece)
                if left < 0 or received > limit + _OVERHEAD:
                    raise Malformed(f"the reply is longer than {limit} bytes")
                if not packed or not member.eof:
                    break
                chunk, member, between = member.unused_data, zlib.decompressobj(_GZIP_OR_ZLIB), True


class Pace:
    """Spaces requests evenly, at most so many a minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self, now: float) -> float:
        """Take the next time slot; returns the seconds until it comes."""
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
