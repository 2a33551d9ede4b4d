"""One attempt at a server: the address, the key, the proxy, and how every kind of fault is classified.

The key is read from the environment, is sent in one header, and is replaced by ``[key]`` in every text that comes back.
"""

import email.utils
import ipaddress
import json
import os
import re
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tasks.chat_server.request import ChatRequest
from tasks.errors import UserError, one_line, shown_text
from tasks.readers.parse import parse_json

_LARGEST = 1 << 24  # bytes of a reply; 1,000 times a long one
_REACH = 9.0  # seconds for the first connection, name and proxy included; a server that is there takes less than one
_REJECTED = (400, 413, 422)
_Answer = tuple[int, float | None, bytes]  # status, seconds of Retry-After, body
_AGAIN = (408, 409, 425, 429)  # and 500 and above


class ChatServerError(UserError):
    """The server cannot be used at all: not reachable, no such address or model, key not accepted."""


class RejectedError(UserError):
    """The server does not accept this one request, for example because it is too long."""


class FaultError(UserError):
    """An attempt failed and may succeed later.

    Args:
        message: What happened.
        wait: Seconds that the server asks to wait, or None.
        may_cost: Whether the server may have worked, and charge for it.
        unreachable: Whether no connection was made.
    """

    def __init__(
        self, message: str, *, wait: float | None = None, may_cost: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(message)
        self.wait, self.may_cost, self.unreachable = wait, may_cost, unreachable


@dataclass(frozen=True)
class Completion:
    """The text of a reply, why it ends, and its tokens as the server counts them."""

    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to which no proxy leads.

    Example:
        >>> is_loopback("localhost"), is_loopback("127.1.2.3"), is_loopback("::1"), is_loopback("example.org")
        (True, True, True, False)
    """
    if host.rstrip(".") == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint_of(url: str, prefix: str = "") -> str:
    """The address of chat completions below a base address such as ``http://localhost:8000/v1``.

    Raises:
        UserError: If it is no http address, or holds a user name, password, query or fragment.

    Example:
        >>> endpoint_of("http://localhost:8000/v1/")
        'http://localhost:8000/v1/chat/completions'
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # a UnicodeError is a ValueError
        valid = parts.scheme in ("http", "https") and bool(host) and (parts.port or 1) > 0 and url.isprintable()
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"{prefix}url must be an http address such as http://localhost:8000/v1, got something else.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{prefix}url must hold no user name, password or query. Put the key in an environment variable."
        )
    base = url.rstrip("/")
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def key_from(variable: str, prefix: str = "") -> str:
    """The key in an environment variable; empty if it is not set.

    Raises:
        UserError: If ``variable`` is no name of a variable, or the value cannot be sent in a header.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", variable):
        raise UserError(
            f"{prefix}key-env must be the name of an environment variable, got something else. The key is its value."
        )
    key = os.environ.get(variable, "").strip()
    if not key and variable != variable.upper():  # may be the key itself
        raise UserError(
            f"{prefix}key-env must be the name of an environment variable that is set, got one that is not."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the key in {variable} must be printable ASCII without spaces, got other characters.")
    return key


class Connection:
    """A pool of connections to one server. Threads share it.

    Args:
        url: The base address, such as ``http://localhost:8000/v1``.
        key_env: The environment variable with the key. If it is not set, no key is sent.
        timeout: Seconds of one attempt.
        most: Connections at a time.
        prefix: What the names of options start with in errors.

    Raises:
        UserError: If the address, the name of the variable or the key is invalid.
    """

    def __init__(self, url: str, key_env: str, *, timeout: float, most: int, prefix: str = "") -> None:
        import httpx

        self._endpoint, self._key, self._key_env = endpoint_of(url, prefix), key_from(key_env, prefix), key_env
        self._prefix = prefix
        self._timeout = timeout
        self._token_field = "max_tokens"
        self._reached = threading.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with_proxies = not is_loopback(str(urlsplit(url).hostname))
        try:
            self._http = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=min(timeout, _REACH)),
                limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
                trust_env=with_proxies,  # the proxy variables of the environment
            )
        except ValueError as error:  # a proxy variable that is no address
            raise UserError(f"proxy variables must hold addresses, got {self._clean(one_line(error))}.") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def is_reached(self) -> bool:
        """Whether a connection to the server has been made before."""
        return self._reached.is_set()

    def ask(self, request: ChatRequest) -> Completion:
        """One attempt. Until a connection has been made, it waits nine seconds for one.

        Raises:
            ChatServerError: If the server cannot be used at all.
            RejectedError: If it does not accept this request.
            FaultError: If another attempt may succeed.
        """
        field = self._token_field
        status, wait, data = (self._post if self.is_reached else self._first_post)(request, field)
        if 200 <= status < 300:
            return self._completion(data)
        said = self._said(data)
        if status in _REJECTED and "max_completion_tokens" in said and field == "max_tokens":
            self._token_field = "max_completion_tokens"  # newer models of OpenAI take only this name
            return self.ask(request)
        if status in _REJECTED:
            hint = " Use --reply-format text." if request.schema is not None and "response_format" in said else ""
            raise RejectedError(f"server must accept the request, got status {status} ({said}).{hint}")
        if status in (401, 403):
            state = "it is not accepted" if self._key else "it is not set"
            raise ChatServerError(f"{self._key_env} must hold a key for this server, got status {status}: {state}.")
        if status in _AGAIN or status >= 500:
            raise FaultError(f"status {status} ({said})", wait=wait)
        raise ChatServerError(
            f"{self._prefix}url and {self._prefix}model must exist at the server, got status {status} ({said}). Check "
            f"--{self._prefix}url and --{self._prefix}model."
        )

    def _first_post(self, request: ChatRequest, token_field: str) -> _Answer:
        """As ``_post``, in a thread that is left alone if it makes no connection.

        Limits of the library hold for each address of a name, and neither for finding it nor for a proxy's answer.
        """
        done: Future[_Answer] = Future()
        connected = threading.Event()

        def post() -> None:
            try:
                done.set_result(self._post(request, token_field, connected))
            except BaseException as error:
                done.set_exception(error)
            finally:
                connected.set()

        threading.Thread(target=post, daemon=True, name="connect").start()
        longest = min(_REACH, self._timeout)
        if not connected.wait(longest):
            raise FaultError(f"nothing answers within {longest:g} s", unreachable=True)
        return done.result()

    def _post(self, request: ChatRequest, token_field: str, connected: threading.Event | None = None) -> _Answer:
        """The status, the seconds of ``Retry-After`` and the body of an answer."""
        import httpx

        body = request.body
        body[token_field] = body.pop("max_tokens")

        def trace(event: str, about: Any) -> None:
            """Called by httpcore at each step; the request leaves when all connections are made."""
            if event == "http11.send_request_headers.started" and about["request"].method != b"CONNECT":
                self._reached.set()
                if connected is not None:
                    connected.set()

        until, parts, size = time.monotonic() + self._timeout, [], 0
        try:
            with self._http.stream("POST", self._endpoint, json=body, extensions={"trace": trace}) as response:
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _LARGEST:
                        raise FaultError(f"a reply of more than {_LARGEST >> 20} MB", may_cost=True)
                    if time.monotonic() > until:  # a server that sends a byte at a time
                        raise FaultError(f"no whole reply within {self._timeout:g} s", may_cost=True)
                return response.status_code, _wait(response.headers.get("retry-after")), b"".join(parts)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise FaultError(self._clean(one_line(error)), unreachable=True) from None
        except httpx.TimeoutException:
            raise FaultError(f"no reply within {self._timeout:g} s", may_cost=True) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise FaultError(f"the reply was cut ({self._clean(one_line(error))})", may_cost=True) from None

    def _completion(self, data: bytes) -> Completion:
        try:
            reply: Any = parse_json(data)
            choice = reply["choices"][0]
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
            usage = reply.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if not isinstance(text, str) or not all(n is None or (isinstance(n, int) and n >= 0) for n in counts):
                raise TypeError
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise FaultError(f"no chat completion in the reply ({self._said(data)})", may_cost=True) from None
        return Completion(self._clean(text), self._clean(str(choice.get("finish_reason") or "")), *counts)

    def _said(self, data: bytes) -> str:
        """The server's own message, short and without the key."""
        text = data[:2000].decode("utf-8", "replace")
        try:
            found = parse_json(data)
            for name in ("error", "message", "detail"):
                found = found.get(name, found) if isinstance(found, dict) else found
            text = found if isinstance(found, str) else json.dumps(found)
        except ValueError:
            pass
        return shown_text(self._clean(" ".join(text.split())), 160) or "no text"

    def _clean(self, text: str) -> str:
        """The text with the key replaced. Short ones, such as ``EMPTY`` for a local server, are words, not secrets."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text


def _wait(header: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
