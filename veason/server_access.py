"""Reads how a server may be reached: its address, the key, and the proxies and certificates of the environment.

Everything that a user can have set wrongly is a `DataError` that names the option or the variable and shows no secret.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed leaves it out

import httpx2 as httpx  # the library of the openai client

from veason.errors import DataError
from veason.safe_text import printable

NO_KEY = "no-key-needed-here"
"""The placeholder that is sent to a server on this machine where no key is set."""

_PROXIES = ("all_proxy", "http_proxy", "https_proxy")


def check_access(base_url: str, api_key: str | None, key_name: str = "OPENAI_API_KEY") -> str:
    """The key to send, or `NO_KEY` to a server on this machine. DataError for a bad address or an unfit key."""
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
    return NO_KEY


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


def client_options(base_url: str) -> tuple[dict[str, Any], list[str]]:
    """(options of an ``httpx.AsyncClient`` for this server, users and passwords of the proxies in the environment).

    The options are the certificates to trust and whether proxies are used: a server on this machine, and one that
    NO_PROXY names, is reached directly. DataError for a variable with an unfit certificate or proxy.
    """
    context = _certificates(base_url)
    direct = is_loopback(base_url) or proxy_bypass_environment(urlsplit(base_url).hostname or "")  # reads NO_PROXY
    secrets: list[str] = []
    for variable, value in os.environ.items():
        if direct or variable.lower() not in _PROXIES or not value.strip():
            continue
        address = value.strip() if "://" in value else f"http://{value.strip()}"
        secrets += secrets_of(address)
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
    return {"verify": context, "trust_env": not direct}, secrets


def _certificates(base_url: str) -> ssl.SSLContext:
    """The certificates that the server's is checked against; DataError naming the variable that says so wrongly."""
    if urlsplit(base_url).scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # holds none: nothing is encrypted, so nothing is checked
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    try:
        folders = os.environ.get("SSL_CERT_DIR", "").split(os.pathsep)
        if variable == "SSL_CERT_DIR" and folders != [""] and not any(map(os.path.isdir, folders)):
            raise NotADirectoryError(errno.ENOTDIR, "no such folder")  # OpenSSL takes it for an empty one
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        raise DataError(
            f"{variable}={printable(os.environ.get(variable, ''))}: no certificates can be read there "
            f"({printable(error.strerror or error)}); set it to a file of certificates (PEM), or unset it to trust "
            "those of the system"
        ) from None


def secrets_of(address: str) -> list[str]:
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
    """True if the address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = None if host == "localhost" else ipaddress.ip_address(host)
    except ValueError:
        return False
    return address is None or address.is_loopback or address.is_unspecified


def public_url(base_url: str) -> str:
    """The address without user, password and query; of a text that is no address, the part behind the last ``@``."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme and parts.netloc:
            return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    except ValueError:
        pass
    return printable(base_url.partition("?")[0].rpartition("@")[2])
