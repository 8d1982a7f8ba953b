"""One answer of an OpenAI-compatible server: retries with back-off, Retry-After, bounded reads, untrusted replies.

What the server does wrong is counted and asked again; what only the user can put right (key, address, model, quota,
proxy, certificate) is a `DataError` at once. A field that the model refuses (``max_tokens``, ``seed``,
``temperature``) is left out or renamed for the rest of the run, and said so once. No message holds any part of a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import ipaddress
import logging
import math
import os
import ssl
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import proxy_bypass_environment

import httpx2 as httpx  # what the openai client speaks
import openai

from veason.completion import Completion, Malformed, ServerError, read_completion, read_error
from veason.errors import DataError
from veason.safe_text import MASK, printable

MAX_BODY = 4 << 20
"""Bytes of a reply that are read, after decompression; no answer of a language model comes near."""
MAX_ERROR, ERROR_SECONDS = 16 << 10, 10.0
"""Bytes of an error's body that are read, after decompression, and for how long at most."""
MAX_WAIT = 600.0
"""Seconds that a Retry-After may ask for at most."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds of back-off before the first retry, and at most."""

_RETRIED = {None, 408, 409, 425, 429}  # and 5xx; None is an error without a number in a body with HTTP 200
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
"""Codes and types, in lower case, of errors that stay until somebody pays, whatever their HTTP status."""
_WITHHELD = {"content_filter", "content_policy_violation"}
_ADAPTED = {
    "max_tokens": "max_completion_tokens is sent instead",
    "seed": "answers come without a seed, so a repeated run may differ",
    "temperature": "answers come at the server's own temperature",
}
"""Fields of a request that some models refuse, and what holds from then on."""
_PROXIES = ("all_proxy", "http_proxy", "https_proxy")
_NO_KEY = "no-key-needed-here"


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
        base_url = base_url.strip()
        key = check_access(base_url, api_key, key_name)
        self.request, self.base_url, self._key_name = request, base_url, key_name
        self._secrets = ([key] if key != _NO_KEY else []) + _secrets_of(base_url)
        self.problems: Counter[str] = Counter()
        """Attempts without an answer, by kind."""
        self._refused: set[str] = set()
        self._answered = False
        self._pace = Pace(per_minute)
        self._jitter = Random()
        self._closing = asyncio.Event()
        self._client = self._open_client(key)

    def _open_client(self, key: str) -> openai.AsyncOpenAI:
        """A client that minds certificates and proxies of the environment; on this machine no proxy is asked."""
        for variable in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # the client sends them as headers
            if value := header_value(os.environ.get(variable), variable):
                self._secrets.append(value)
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # below that it logs addresses, which may hold a key
        context = _certificates(self.base_url)
        host = urlsplit(self.base_url).hostname or ""
        proxied = not is_loopback(self.base_url) and not proxy_bypass_environment(host)  # which reads NO_PROXY
        if proxied:
            self._secrets += _check_proxies(context)
        parts = urlsplit(self.base_url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return openai.AsyncOpenAI(
            base_url=parts._replace(path=path, query="", fragment="").geturl(),
            api_key=key,
            organization=(os.environ.get("OPENAI_ORG_ID") or "").strip() or None,
            project=(os.environ.get("OPENAI_PROJECT_ID") or "").strip() or None,
            max_retries=0,
            timeout=self.request.timeout,
            default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            default_headers={"Accept-Encoding": "gzip, deflate"},  # what `_Bounded` unpacks
            http_client=httpx.AsyncClient(
                verify=context,
                trust_env=proxied,
                follow_redirects=True,
                max_redirects=2,
                event_hooks={"response": [self._receive]},  # also sees each redirect before it is followed
                timeout=httpx.Timeout(self.request.timeout),
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
                    completion = await self._exchange(self._fields(messages, seed, refused))
                self._answered = True
                return self._without_secrets(completion)
            except ServerError as error:
                if self._adapts(error, refused):
                    continue
                if error.codes & _WITHHELD:
                    return Completion(self.public(error), "content_filter", 0, 0, "")
                self._check_hopeless(error)
                kind, detail, wait = error.kind, self.public(error), error.wait
                if error.status not in _RETRIED and error.status < 500:
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
            await self._sleep(self._backoff(attempt, wait))
            attempt += 1

    def _fields(self, messages: list[dict[str, Any]], seed: int, refused: frozenset[str]) -> dict[str, Any]:
        request = self.request
        fields: dict[str, Any] = {**request.extra, "messages": messages}
        fields["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = request.max_tokens
        fields |= {"temperature": request.temperature, "seed": seed}
        return {name: value for name, value in fields.items() if name not in refused}

    async def _exchange(self, fields: dict[str, Any]) -> Completion:
        """One request and its response, read as far as `_Bounded` lets it; `ServerError` for an error of any form."""
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
        """Bound the body of a response that has just begun; DataError for a redirect that must not be followed."""
        encoding = response.headers.pop("content-encoding", "identity")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Bounded(response.stream, encoding, answer=response.is_success)
        if response.has_redirect_location:
            self._check_redirect(response)

    def _check_redirect(self, response: httpx.Response) -> None:
        """DataError unless a redirect leads to the same server and the request stays one."""
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
        """Whether the same request may do without a field that this error refuses; remembered, and said once."""
        if error.status not in (400, 422):
            return False
        if self._refused - refused:  # another request has found out meanwhile
            return True
        name = next((name for name in _ADAPTED if name not in refused and error.refuses(name)), None)
        if name is None:
            return False
        self._refused.add(name)
        model = printable(self.request.model)
        print(f"the model {model!r} refuses {name} ({self.public(error)}): {_ADAPTED[name]}", file=sys.stderr)
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
        """The answer as it was, but for a key that the server repeats in it: answers are stored and shown."""
        found = {name: getattr(completion, name) for name in ("text", "reasoning", "model")}
        for secret in (secret for secret in self._secrets if len(secret) >= 8):
            found = {name: value.replace(secret, MASK) for name, value in found.items()}
        return replace(completion, **found)

    def _check_connection(self, error: BaseException) -> None:
        """DataError where a proxy wants a password or the server's certificate is not trusted: that will not change."""
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
        """One line about an error or of a server's text, without end, control characters and any part of a key."""
        return printable(error, secrets=self._secrets, limit=300) or type(error).__name__

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


class _Bounded(httpx.AsyncByteStream):
    """The body of a response, unpacked piece by piece, so that no more than its bound is ever held.

    An answer may have `MAX_BODY` bytes (`Malformed` beyond them). An error is cut after `MAX_ERROR` bytes or
    `ERROR_SECONDS`: its beginning says what there is to say.
    """

    def __init__(self, stream: httpx.AsyncByteStream, encoding: str, *, answer: bool) -> None:
        self._stream, self._encoding, self._answer = stream, encoding.strip().lower() or "identity", answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not self._answer:
            yield await self._beginning()
            return
        async for piece in self._unpacked(MAX_BODY):
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _beginning(self) -> bytes:
        body = bytearray()
        with contextlib.suppress(TimeoutError, Malformed, httpx.HTTPError):
            async with asyncio.timeout(ERROR_SECONDS):
                async for piece in self._unpacked(MAX_ERROR):
                    body += piece
        return bytes(body)

    async def _unpacked(self, limit: int) -> AsyncIterator[bytes]:
        if self._encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise Malformed(f"the reply is encoded as {printable(self._encoding)!r}, which was not asked for")
        unpack = None if self._encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
        left = limit
        async for chunk in self._stream:
            try:
                piece = unpack.decompress(chunk, left + 1) if unpack else chunk[: left + 1]
            except zlib.error as error:
                raise Malformed(f"the reply cannot be unpacked ({error})") from None
            yield piece[:left]
            left -= len(piece)
            if left < 0:
                raise Malformed(f"the reply is longer than {limit} bytes")


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


def header_value(value: str | None, variable: str) -> str:
    """The value of an environment variable that is sent as a header, without the white space around it.

    A DataError names the variable, and shows nothing of the value, if that holds what no header can.
    """
    value = (value or "").strip()
    if all(" " <= char <= "~" for char in value):
        return value
    raise DataError(
        f"{variable}: holds a line end, a control character or one that is not ASCII, which no key has; set it to the "
        "key alone"
    )


def check_access(base_url: str, api_key: str | None, key_name: str = "OPENAI_API_KEY") -> str:
    """The key to send; a placeholder to a server on this machine. DataError for a bad address or an unfit key."""
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and parts.hostname and httpx.URL(base_url) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        sound = False
    if not sound:
        raise DataError(
            f"--base-url {printable(public_url(base_url))!r} is no http(s) address, such as http://127.0.0.1:8000/v1"
        )
    if not (key_name.isidentifier() and key_name.isascii()):
        raise DataError("--api-key-env wants the name of an environment variable, not the key itself")
    if key := header_value(api_key, key_name):
        return key
    if not is_loopback(base_url):
        raise DataError(f"{public_url(base_url)} wants a key: set {key_name} in the environment")
    return _NO_KEY


def _certificates(base_url: str) -> ssl.SSLContext:
    """What the server's certificate is checked against; DataError naming the variable that says so wrongly."""
    if urlsplit(base_url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and nobody is asked
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    try:
        folders = os.environ.get("SSL_CERT_DIR", "").split(os.pathsep)
        if variable == "SSL_CERT_DIR" and folders != [""] and not any(map(os.path.isdir, folders)):
            raise NotADirectoryError(errno.ENOTDIR, "no such folder")  # which OpenSSL takes for one without any
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        raise DataError(
            f"{variable}={printable(os.environ.get(variable, ''))}: no certificates can be read there "
            f"({printable(error.strerror or error)}); set it to a file of certificates (PEM), or unset it to trust "
            "those of the system"
        ) from None


def _check_proxies(context: ssl.SSLContext) -> list[str]:
    """Users and passwords of the proxies in the environment; DataError naming the variable of an unfit address."""
    secrets: list[str] = []
    for variable, value in os.environ.items():
        if variable.lower() not in _PROXIES or not value.strip():
            continue
        address = value.strip() if "://" in value else f"http://{value.strip()}"
        secrets += _secrets_of(address)
        try:
            if not urlsplit(address).hostname:
                raise ValueError("it names no host")
            httpx.AsyncHTTPTransport(proxy=address, verify=context)
        except ImportError:
            raise DataError(
                f"{variable}={public_url(address)}: a SOCKS proxy needs the package socksio; install it with "
                f"`pip install socksio`, or unset {variable}"
            ) from None
        except (ValueError, httpx.InvalidURL) as error:
            raise DataError(
                f"{variable}={public_url(address)}: no proxy's address ({printable(error, secrets=secrets)}); correct "
                "it to http://HOST:PORT, or unset it"
            ) from None
    return secrets


def _secrets_of(address: str) -> list[str]:
    """User, password and values of the query of an address, as they stand there and as they are meant.

    Only a password may be short: a user or a value of a few letters would be found in any text.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = [
        value for value in (user, *(piece.partition("=")[2] for piece in parts.query.split("&"))) if len(value) > 5
    ]
    return sorted({text for value in (password, *found) for text in (value, unquote(value)) if text})


def is_loopback(base_url: str) -> bool:
    """The address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = None if host == "localhost" else ipaddress.ip_address(host)
    except ValueError:
        return False
    return address is None or address.is_loopback or address.is_unspecified


def public_url(base_url: str) -> str:
    """The address without user, password and query; of what is no address, what stands behind the last ``@``."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme and parts.netloc:
            return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    except ValueError:
        pass
    return printable(base_url.partition("?")[0].rpartition("@")[2])
