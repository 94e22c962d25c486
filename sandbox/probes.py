"""Readiness checks of the parts, as data that can check itself.

``check`` returns when the part does its work, and raises ``NotReady`` with what was tried and
what was seen when it does not.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol


class NotReady(Exception):
    """The check ran and the answer was no."""


class Probe(Protocol):
    async def check(self, since: datetime) -> None:
        """Raise ``NotReady`` unless the part, started at ``since``, does its work."""
        ...


@dataclass(frozen=True)
class Http:
    """GET answers with a status below 400, over TCP or over a unix socket."""

    url: str
    socket: Path | None = None

    async def check(self, since: datetime) -> None:
        await _request("GET", self.url, self.socket)


@dataclass(frozen=True)
class Worker:
    """The Prefect server has heard of this worker since it was started, and not long ago."""

    api: str
    pool: str
    name: str
    silent_seconds: float

    async def check(self, since: datetime) -> None:
        url = f"{self.api}/work_pools/{self.pool}/workers/filter"
        for worker in await _request("POST", url, None, {"limit": 200}):
            if worker["name"] == self.name and worker["last_heartbeat_time"]:
                heard = datetime.fromisoformat(worker["last_heartbeat_time"])
                age = (datetime.now(heard.tzinfo) - heard).total_seconds()
                if heard >= since and age <= self.silent_seconds:
                    return
                raise NotReady(f"the worker's last heartbeat is {age:.0f} s old")
        raise NotReady("the worker has not reported to the Prefect server")


@dataclass(frozen=True)
class Postgres:
    """A query is answered, with the password, over TCP."""

    conninfo: str = field(repr=False)

    async def check(self, since: datetime) -> None:
        import psycopg

        try:
            connection = await psycopg.AsyncConnection.connect(self.conninfo, connect_timeout=5)
            async with connection:
                await connection.execute("select 1")
        except psycopg.Error as error:
            raise NotReady(f"select 1: {str(error).strip()}") from error


@dataclass(frozen=True)
class Redis:
    """PING is answered with PONG."""

    port: int

    async def check(self, since: datetime) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
        except OSError as error:
            raise NotReady(f"PING: {error}") from error
        if answer.strip() != b"+PONG":
            raise NotReady(f"PING was answered with {answer!r}")


@dataclass(frozen=True)
class Alive:
    """It runs; what it does shows elsewhere."""

    async def check(self, since: datetime) -> None:
        return


@dataclass(frozen=True)
class Nameserver:
    """A query is answered, be it with "no such name"."""

    port: int

    async def check(self, since: datetime) -> None:
        import dns.asyncquery
        import dns.exception
        import dns.message
        import dns.rcode

        query = dns.message.make_query("ready.invalid.", "A")
        try:
            answer = await dns.asyncquery.udp(query, "127.0.0.1", timeout=3, port=self.port)
        except (dns.exception.DNSException, OSError) as error:
            raise NotReady(f"query for ready.invalid: {type(error).__name__} {error}") from error
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise NotReady(f"a query was answered with {dns.rcode.to_text(answer.rcode())}")


async def _request(method: str, url: str, socket: Path | None, body: Any = None) -> Any:
    import httpx

    # verify: these are plain HTTP addresses, and loading the certificates of the world each time
    # is what this process would spend most of its life with.
    transport = httpx.AsyncHTTPTransport(verify=False, uds=str(socket) if socket else None)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=5, trust_env=False) as client:
            answer = await client.request(method, url, json=body)
    except httpx.HTTPError as error:
        raise NotReady(f"{method} {url}: {str(error) or type(error).__name__}") from error
    if answer.status_code >= 400:
        raise NotReady(f"{method} {url}: answered {answer.status_code}")
    return answer.json() if body is not None else None
