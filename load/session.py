"""One user's HTTP client: a connection that stays open, cookies, redirects, TLS, chunked bodies.

Sockets, TLS and the parser are geventhttpclient's, cookies are the standard library's. What is
left out is what Locust's ``FastHttpUser`` does besides on each request; with ten thousand idle
users that costs several times the work itself (docs/load.md).
"""

from __future__ import annotations

import json as jsons
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from select import POLLIN
from time import monotonic
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit
from urllib.request import Request

import gevent
from gevent import monkey, ssl
from geventhttpclient.connectionpool import ConnectionPool, SSLConnectionPool
from geventhttpclient.response import (
    HTTPConnectionClosed,
    HTTPParseError,
    HTTPSocketResponse,
)

from domain.load_plan import Target

# Of the system itself, since we never wait; and not `select`, which knows 1,024 descriptors.
poll = monkey.get_original("select", "poll")

MOST_REDIRECTS = 5
BLOCK_BYTES = 16 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"/[^\x00-\x20\x7f]*")
_SAFE_TO_REPEAT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class RequestFailed(Exception):
    """A request has no answer; the text is the same for all of one kind, so it can be counted."""


class Listener(Protocol):
    """Who is told of each request; see ``load.recorder.Recorder``."""

    def sent(self, at: float, due: float | None) -> None: ...

    def connected(self, *, again: bool) -> None: ...

    def first_answer(self) -> None: ...

    def repeated(self) -> None: ...

    def cut_off(self) -> None: ...

    def finished(
        self, name: str, due: float, sent: float, done: float, failure: str, size: int
    ) -> None: ...


@dataclass(slots=True)
class Answer:
    """What came back. ``status`` is 0 when nothing did, and ``failure`` then says why."""

    status: int
    body: bytes
    headers: Mapping[str, Any]
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure

    def json(self) -> Any:
        return jsons.loads(self.body)


class Connections:
    """Makes the connections of all users of a process; DNS is asked for each of them."""

    def __init__(self, target: Target, timeout_seconds: float) -> None:
        self.target = target
        self._turn = 0
        self._pool: ConnectionPool
        if target.scheme == "https":
            # A context is costly: one for all users.
            self._pool = SSLConnectionPool(
                target.connect_to, target.port, target.host, target.port,
                insecure=not target.verify,
                connection_timeout=timeout_seconds, network_timeout=timeout_seconds,
            )  # fmt: skip
            if not target.verify:
                self._pool.ssl_context.verify_mode = ssl.CERT_NONE
        else:
            self._pool = ConnectionPool(
                target.connect_to, target.port, target.host, target.port,
                connection_timeout=timeout_seconds, network_timeout=timeout_seconds,
            )  # fmt: skip
        if target.source:
            self._pool._create_tcp_socket = self._bound  # type: ignore[method-assign,assignment]

    def _bound(self, family: int, kind: int, protocol: int) -> Any:
        sock = gevent.socket.socket(family, kind, protocol)
        self._turn = (self._turn + 1) % len(self.target.source)
        sock.setsockopt(gevent.socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: many more fit
        sock.bind((self.target.source[self._turn], 0))
        return sock

    def open(self) -> Any:
        sock = self._pool._create_socket()
        sock.settimeout(None)  # a request has a time for all of it; each wait needs none of its own
        return sock


class Session:
    """Requests of one user, one after the other, over one connection.

    Args:
        timeout_seconds: for a whole answer; a request without one by then has failed.
    """

    def __init__(
        self, connections: Connections, listener: Listener, timeout_seconds: float
    ) -> None:
        self.target = connections.target
        self.headers: dict[str, str] = {}
        self.due: float | None = None
        """When the next request should be sent; None: whenever it is."""
        self._connections, self._listener = connections, listener
        self._timeout = timeout_seconds
        self._socket: Any = None
        self._connected_before = False
        self._unanswered = False
        self._cookies: CookieJar | None = None

    def get(self, path: str, **how: Any) -> Answer:
        """See ``request``."""
        return self.request("GET", path, **how)

    def post(self, path: str, **how: Any) -> Answer:
        """See ``request``."""
        return self.request("POST", path, **how)

    def put(self, path: str, **how: Any) -> Answer:
        """See ``request``."""
        return self.request("PUT", path, **how)

    def delete(self, path: str, **how: Any) -> Answer:
        """See ``request``."""
        return self.request("DELETE", path, **how)

    def request(
        self,
        method: str,
        path: str,
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        json: Any = None,
        expect: Collection[int] = (),
    ) -> Answer:
        """Send one request, follow its redirects, record how long it took.

        Args:
            path: with its query; ``name`` stands for it in the report, ``/foods/{id}`` say.
            json: sent as the body instead of ``body``.
            expect: statuses that are right; without, all below 400 are.

        Returns:
            The last answer. A failure is recorded, not raised: a user goes on.
        """
        if json is not None:
            body = jsons.dumps(json, separators=(",", ":")).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        due, self.due = self.due, None
        sent = monotonic()
        self._listener.sent(sent, due)
        answer = Answer(0, b"", {})
        timer = gevent.Timeout.start_new(self._timeout)
        try:
            answer = self._follow(method, path, headers or {}, body)
            right = answer.status in expect if expect else answer.status < 400
            answer.failure = "" if right else f"HTTP {answer.status}"
        except gevent.Timeout as timeout:
            if timeout is not timer:
                raise
            answer.failure = f"no answer within {self._timeout:g} s"
        except RequestFailed as failed:
            answer.failure = str(failed)
        finally:
            timer.close()
            done = monotonic()
            if answer.status == 0:
                self.close()
            if answer.status or answer.failure:
                what = f"{method} {name or path.partition('?')[0]}"
                at = sent if due is None else due
                self._listener.finished(what, at, sent, done, answer.failure, len(answer.body))
            else:
                self._listener.cut_off()
        return answer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _follow(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        for _ in range(MOST_REDIRECTS + 1):
            answer = self._exchange(method, path, headers, body)
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                return answer
            path = self._redirected(path, str(answer.headers["location"]))
            if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                method, body = "GET", b""
        raise RequestFailed(f"redirected more than {MOST_REDIRECTS} times")

    def _redirected(self, path: str, location: str) -> str:
        """The path on the same host; a load test never follows to another one."""
        to = urlsplit(urljoin(self.target.base + path, location))
        if (to.scheme, to.hostname) != (self.target.scheme, self.target.host):
            raise RequestFailed(f"redirected away to {to.scheme}://{to.netloc}")
        return (to.path or "/") + (f"?{to.query}" if to.query else "")

    def _exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """One request and its answer.

        A connection that was closed while it was idle is made again; nobody loses anything by
        it. One that is closed after we have sent may be a server that drops requests: only on a
        connection that was used before, before any byte of an answer, and for a method that may
        be repeated (RFC 9110, 9.2.2) is it sent once more, and that is counted and judged.
        """
        message = self._message(method, path, headers, body)
        if self._socket is not None and _has_ended(self._socket):
            self.close()
        again = self._socket is not None
        while True:
            sock = self._socket or self._open()
            try:
                sock.sendall(message)
                response = HTTPSocketResponse(sock, BLOCK_BYTES, method)
                content = response.read()
            except (HTTPConnectionClosed, BrokenPipeError, ConnectionResetError) as error:
                self.close()
                if again and method in _SAFE_TO_REPEAT:
                    again = False
                    self._listener.repeated()
                    continue
                raise RequestFailed("the connection was closed before the answer") from error
            except (HTTPParseError, OSError) as error:
                self.close()
                raise RequestFailed(_failure(error)) from error
            if self._unanswered:
                self._unanswered = False
                self._listener.first_answer()
            if response.should_close():
                self.close()
            self._keep_cookies(path, response)
            return Answer(response.get_code(), content, response.info())

    def _open(self) -> Any:
        try:
            self._socket = self._connections.open()
        except OSError as error:
            raise RequestFailed(f"cannot connect: {_failure(error)}") from error
        self._listener.connected(again=self._connected_before)
        self._connected_before = self._unanswered = True
        return self._socket

    def _message(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if not _TARGET.fullmatch(path):
            raise ValueError(f"{path!r} is no path of a URL")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.target.host}"]
        given = {**self.headers, **headers} if headers else self.headers
        for field, value in given.items():
            if not _TOKEN.fullmatch(field) or not _VALUE.fullmatch(value):
                raise ValueError(f"{field!r}: {value!r} is no header of HTTP")
            lines.append(f"{field}: {value}")
        if self._cookies and (cookie := self._cookie_header(path)):
            lines.append(f"Cookie: {cookie}")
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def _cookie_header(self, path: str) -> str:
        assert self._cookies is not None
        request = Request(self.target.base + path)
        self._cookies.add_cookie_header(request)
        return request.get_header("Cookie") or ""

    def _keep_cookies(self, path: str, response: HTTPSocketResponse) -> None:
        if "set-cookie" not in response:
            return
        if self._cookies is None:
            self._cookies = CookieJar(DefaultCookiePolicy(rfc2965=False))
        found = response.get("set-cookie")
        self._cookies.extract_cookies(
            _Headers([found] if isinstance(found, str) else list(found or ())),  # type: ignore[arg-type]
            Request(self.target.base + path),
        )


class _Headers:
    """As much of ``http.client.HTTPResponse`` as the cookie jar reads."""

    def __init__(self, cookies: list[str]) -> None:
        self._cookies = cookies

    def info(self) -> _Headers:
        return self

    def get_all(self, name: str, default: Any = None) -> Any:
        return self._cookies if name.lower() == "set-cookie" else default


def _has_ended(sock: Any) -> bool:
    """An idle connection has nothing to read, unless the other side has closed it."""
    asked = poll()
    asked.register(sock.fileno(), POLLIN)
    return bool(asked.poll(0))


def _failure(error: Exception) -> str:
    """What is the same for all errors of a kind: no address, no port, no time."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return f"the answer is not HTTP: {error}"
