"""One HTTP request that must be answered as expected: a smoke check."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from domain.verdict import Check, Verdict

BODY_LIMIT_BYTES = 1_048_576
SHOWN_CHARACTERS = 200
_IDENTITY = {"Accept-Encoding": "identity"}  # a compressed answer could swell past the limit


def probe(
    base_url: str,
    headers: Mapping[str, str],
    path: str,
    status: int = 200,
    contains: str | None = None,
    timeout_seconds: float = 10.0,
) -> Check:
    """Send ``GET base_url + path`` and compare the answer. Redirects are answers, not followed.

    Args:
        base_url: address without trailing slash; it may hold a path prefix.
        headers: sent as they are; ``Host`` chooses the environment at an edge.
        contains: text that the first 1 MiB of the body must hold.
        timeout_seconds: for the whole exchange, however slowly the answer drips in.

    Returns:
        ``pass``, ``fail`` (an answer other than expected) or ``error`` (no whole answer). It
        never raises for what the network or the server does. The reason names the request,
        what was expected and what came back.
    """
    url = base_url.rstrip("/") + path
    host = next((value for name, value in headers.items() if name.lower() == "host"), None)
    request = f"GET {url}" + (f" (Host: {host})" if host else "")
    expected = str(status) + (f" with {contains!r} in the body" if contains is not None else "")
    try:
        got, body, whole = _exchange(url, headers, timeout_seconds)
    except Exception as error:  # whatever went wrong, there is no answer: an error, never a pass
        seen = str(error) or type(error).__name__
        return _check(path, Verdict.ERROR, request, expected, f"no answer: {seen}")
    if got == status and (contains is None or contains in body):
        return _check(path, Verdict.PASS, request, expected, str(got), got)
    seen = f"{got} with the body {body[:SHOWN_CHARACTERS]!r}" if body else f"{got} without a body"
    if not whole:
        seen += f" (only the first {BODY_LIMIT_BYTES} bytes were read)"
    return _check(path, Verdict.FAIL, request, expected, seen, got)


@dataclass(frozen=True)
class Probed:
    """How one request ended: no answer, or one of 500 and above, has failed."""

    failed: bool
    seconds: float


def timed(base_url: str, path: str, timeout_seconds: float = 5.0) -> Probed:
    """Send ``GET base_url + path`` once, as a user would, and measure it. Never raises."""
    began = time.monotonic()
    try:
        status, _, _ = _exchange(base_url.rstrip("/") + path, {}, timeout_seconds)
    except Exception:  # whatever went wrong, a user would have had no answer
        return Probed(True, time.monotonic() - began)
    return Probed(status >= 500, time.monotonic() - began)


def _exchange(
    url: str, headers: Mapping[str, str], timeout_seconds: float
) -> tuple[int, str, bool]:
    """Status, text of the body up to the limit, and whether that was all of it."""
    # A thread of its own, because the caller may already be inside an event loop.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _ask(url, headers, timeout_seconds)).result()


async def _ask(
    url: str, headers: Mapping[str, str], timeout_seconds: float
) -> tuple[int, str, bool]:
    body = bytearray()
    # httpx bounds each read only; a server that drips a byte at a time must not hold us up.
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            # Proxy variables of the environment would send the check somewhere else.
            httpx.AsyncClient(trust_env=False, timeout=timeout_seconds) as client,
            client.stream("GET", url, headers=_IDENTITY | dict(headers)) as answer,
        ):
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > BODY_LIMIT_BYTES:
                    break
    except TimeoutError:
        raise httpx.ReadTimeout(f"not a whole answer within {timeout_seconds:g} s") from None
    whole = len(body) <= BODY_LIMIT_BYTES
    return answer.status_code, _text(bytes(body[:BODY_LIMIT_BYTES]), answer.encoding), whole


def _text(body: bytes, encoding: str | None) -> str:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:  # the server names a charset that does not exist
        encoding = None
    return body.decode(encoding or "utf-8", errors="replace")


def _check(
    path: str, verdict: Verdict, request: str, expected: str, seen: str, got: int | None = None
) -> Check:
    return Check(
        name=f"GET {path}",
        verdict=verdict,
        reason=f"{request}: expected {expected}, got {seen}",
        value=got,
        limit=expected,
        samples=1 if got is not None else 0,
    )
