"""Looking at a replica from outside: one HTTP request or one TCP connection at a time."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass

import httpx

TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Seen:
    """What a probe saw.

    ``text`` says what was tried, expected and got. ``busy`` is set when there was no answer in
    time, which on a loaded machine says less than an answer that is wrong; ``refused`` when
    nobody listens.
    """

    ok: bool
    text: str
    busy: bool = False
    refused: bool = False


class Prober:
    """Probes for all replicas over one client; keeps no connection that would hold up a drain."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            trust_env=False,
            verify=False,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"User-Agent": "slipway-probe", "Connection": "close"},
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def look(self, port: int, path: str | None) -> Seen:
        """Any 2xx of ``path`` is ready; without a path, an accepted connection is."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await (self._accepts(port) if path is None else self._answers(port, path))
        except TimeoutError:
            tried = _tcp(port) if path is None else _http(port, path)
            return Seen(False, f"{tried}, got no answer in {TIMEOUT_SECONDS:g} s", busy=True)

    async def _accepts(self, port: int) -> Seen:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            refused = error.errno == errno.ECONNREFUSED
            return Seen(False, f"{_tcp(port)}, got {_reason(error)}", refused=refused)
        writer.close()
        return Seen(True, _tcp(port))

    async def _answers(self, port: int, path: str) -> Seen:
        tried = _http(port, path)
        try:
            async with self._client.stream("GET", _url(port, path)) as response:
                return _judge(tried, response)
        except httpx.TimeoutException:
            return Seen(False, f"{tried}, got no answer in {TIMEOUT_SECONDS:g} s", busy=True)
        except httpx.ConnectError:
            return Seen(False, f"{tried}, got connection refused", refused=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Seen(False, f"{tried}, got {type(error).__name__}: {error}")


def _judge(tried: str, response: httpx.Response) -> Seen:
    if response.is_success:
        return Seen(True, tried)
    if response.is_redirect:
        # Following it would probe another path, perhaps another host, than the one declared.
        target = response.headers.get("location", "nowhere")
        return Seen(
            False, f"{tried}, got {response.status_code} to {target} (name a path that answers)"
        )
    return Seen(False, f"{tried}, got {response.status_code} {response.reason_phrase}".rstrip())


def _url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}/{path.lstrip('/')}"


def _http(port: int, path: str) -> str:
    return f"GET {_url(port, path)}: expected 2xx"


def _tcp(port: int) -> str:
    return f"connect to 127.0.0.1:{port}: expected to be accepted"


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "connection refused"
    return os.strerror(error.errno).lower() if error.errno else str(error)
