"""HTTP plumbing: strict reading of requests, problems, and the guard in front of every route."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from datetime import date
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diet_game.metrics import Metrics
from diet_game.models import MAX_BODY_BYTES, ProblemDetails

T = TypeVar("T")
BODY_SECONDS = 5.0
JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
# Probes are answered however busy the process is.
UNGUARDED = frozenset({"/healthz", "/readyz", "/metrics", "/version"})

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KEY = re.compile(r"[!-~]{1,128}")
_encode = msgspec.json.Encoder().encode

_TITLES = {
    400: "Bad request",
    401: "Sign in first",
    404: "Not found",
    405: "Method not allowed",
    408: "Request took too long",
    409: "Conflict",
    413: "Body too large",
    415: "Send JSON",
    422: "Not valid",
    500: "Internal error",
    503: "Try again soon",
}


class Problem(Exception):
    """A request that cannot be served, and what to tell its sender."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("retry-after", "1")
        elif status == 401:
            self.headers.setdefault("www-authenticate", "Bearer")

    def response(self) -> Response:
        """The answer, in the form of RFC 9457."""
        title = _TITLES.get(self.status, "Error")
        body = ProblemDetails("about:blank", title, self.status, self.detail)
        return Response(_encode(body), self.status, self.headers, PROBLEM_JSON)


def as_json(value: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(_encode(value), status, media_type=JSON)


async def read_body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as the decoder's type.

    Raises:
        Problem: 400, 408, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(415, f"The content type must be {JSON}")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise Problem(413, f"A body is at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise Problem(408, f"The body did not arrive in {BODY_SECONDS:g} s") from None
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Problem(422, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "The body is not JSON in UTF-8") from None


def read_query(request: Request, *names: str) -> dict[str, str]:
    """The query's values.

    Raises:
        Problem: 400 for a name that is not listed, a repeated one, bad UTF-8 or controls.
    """
    try:
        raw = request.scope["query_string"].decode("ascii")
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise Problem(400, "The query is not percent-encoded UTF-8") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            known = ", ".join(names) or "none"
            raise Problem(400, f"Unknown query parameter; this address takes: {known}")
        if name in values:
            raise Problem(400, f"{name} is given twice")
        if _CONTROL.search(value):
            raise Problem(400, f"{name} has a control character")
        values[name] = value
    return values


def as_date(name: str, value: str) -> date:
    """A calendar day, YYYY-MM-DD.

    Raises:
        Problem: 400.
    """
    try:
        if _DATE.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise Problem(400, f"{name} must be a date, YYYY-MM-DD")


def as_integer(name: str, value: str, low: int, high: int) -> int:
    """A whole number in a range.

    Raises:
        Problem: 400.
    """
    if not _INTEGER.fullmatch(value) or not low <= int(value) <= high:
        raise Problem(400, f"{name} must be a whole number from {low} to {high}")
    return int(value)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header.

    Raises:
        Problem: 400.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(400, "Idempotency-Key must be 1 to 128 visible ASCII characters")
    return key


@dataclass(slots=True)
class Traffic:
    """What the process is serving; shared by the guard, the probes and the server."""

    draining: bool = False
    in_flight: int = 0
    last_request: float = field(default_factory=time.monotonic)


class Guard:
    """Counts and times requests, refuses what is too much, and asks clients off when draining."""

    def __init__(
        self, app: ASGIApp, traffic: Traffic, metrics: Metrics, limit: int, routes: frozenset[str]
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._metrics = metrics
        self._limit = limit
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        traffic, metrics = self._traffic, self._metrics
        path = scope["path"]
        route = path if path in self._routes else "other"
        started = time.monotonic()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append((b"x-content-type-options", b"nosniff"))
                headers.append((b"cache-control", b"no-store"))
                if traffic.draining:
                    headers.append((b"connection", b"close"))
            await send(message)

        guarded = path not in UNGUARDED
        if guarded:
            traffic.last_request = started
        app: ASGIApp = self._app
        if guarded and traffic.in_flight >= self._limit:
            metrics.shed.labels("in_flight").inc()
            app = Problem(503, "Too many requests at once").response()
        traffic.in_flight += 1
        try:
            await app(scope, receive, watched)
        finally:
            traffic.in_flight -= 1
            metrics.requests.labels(scope["method"], route, str(status)).inc()
            seconds = time.monotonic() - started
            metrics.seconds.labels(route).observe(seconds)
            for flag, variant in scope.get("flags", {}).items():
                metrics.flagged.labels(flag, variant, str(status)).inc()
                metrics.flagged_seconds.labels(flag, variant).observe(seconds)
