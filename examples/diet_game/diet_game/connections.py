"""Connections to PostgreSQL: so many and no more, and callers who wait for one, but not long."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

WAIT_SECONDS = 1.0
CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 3.0
CLOSE_SECONDS = 2.0

# Classes of SQLSTATE that tell of the server and not of the statement: connection, authorization,
# rolled back, resources, not in a state for it, operator, system (PostgreSQL, appendix A).
_OF_THE_SERVER = frozenset({"08", "28", "40", "53", "55", "57", "58"})
_READ_ONLY = "25006"  # this side may not write: another one serves


class Unavailable(Exception):
    """The database did not do it, and may do it later."""


class Busy(Unavailable):
    """Every connection is in use, and enough callers wait for one, or have waited too long."""


class Lost(Unavailable):
    """The connection ended, or could not be made; nobody knows what became of the statement."""


class Connections:
    """At most `size` connections to one database, each statement a transaction of its own.

    One that the server has closed is made again by the next statement that needs it.
    """

    def __init__(self, url: str, size: int, waiting: int) -> None:
        self._url, self._size, self._most_waiting = url, size, waiting
        self._free = asyncio.Semaphore(size)
        self._waiting = 0
        self._pool: Any = None
        self._connecting: asyncio.Future[Any] | None = None

    async def open(self) -> None:
        """Start connecting, so that nobody has to in the middle of a rush."""
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=0,
            timeout=CONNECT_SECONDS,
            # The server ends a statement first; this is for one that is not heard of any more.
            command_timeout=STATEMENT_SECONDS + 2.0,
            reset=_nothing_to_reset,
            server_settings={
                "application_name": "diet-game",
                "statement_timeout": f"{STATEMENT_SECONDS:g}s",
                "timezone": "UTC",
            },
        )
        asked = (self.run("SELECT 1") for _ in range(self._size))
        self._connecting = asyncio.gather(*asked, return_exceptions=True)

    async def close(self) -> None:
        """Close every connection; what is not done by then is cut off."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def run(self, sql: str, *values: object) -> list[Any]:
        """The rows of one statement, whose parameters are $1, $2, ...

        Raises:
            Busy, Lost, Unavailable: the caller answers 503.
            asyncpg.PostgresError: the statement is wrong.
        """
        if self._pool is None:
            raise Unavailable("not open")
        await self._turn()
        try:
            async with self._pool.acquire() as connection:
                return await self._ask(connection, sql, values)
        except Exception as error:
            meaning = _meaning(error)
            if meaning is error:
                raise
            raise meaning from error
        finally:
            self._free.release()

    async def _ask(self, connection: Any, sql: str, values: tuple[object, ...]) -> list[Any]:
        try:
            rows: list[Any] = await connection.fetch(sql, *values)
        except Exception as error:
            if isinstance(_meaning(error), Lost):
                with suppress(asyncpg.InterfaceError):  # the pool has taken it back already
                    connection.terminate()
                # What ended this one ended the others too: a database that was started anew, say.
                await self._pool.expire_connections()
            raise
        return rows

    async def _turn(self) -> None:
        if self._free.locked():
            if self._waiting >= self._most_waiting:
                raise Busy(f"{self._waiting} wait for a connection already")
            self._waiting += 1
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._free.acquire()
            except TimeoutError:
                raise Busy(f"no connection was free for {WAIT_SECONDS:g} s") from None
            finally:
                self._waiting -= 1
        else:
            await self._free.acquire()

    def numbers(self) -> dict[str, int]:
        """How many there are, how many of them are idle, and how many callers wait."""
        pool = self._pool
        return {
            "pool_size": pool.get_size() if pool else 0,
            "pool_available": pool.get_idle_size() if pool else 0,
            "requests_waiting": self._waiting,
        }


async def _nothing_to_reset(connection: object) -> None:
    """Statements here leave nothing behind in a session; asking the server to forget it all would
    double the messages of each."""


def _meaning(error: Exception) -> Exception:
    """The same error in the words of whoever answers the request, where it is not his own fault."""
    if isinstance(error, TimeoutError):
        return Unavailable("no answer in time")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return error  # a value that no parameter of that type can take
    # The last one: the server has said that it ends the connection, and has not ended it yet.
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Lost(type(error).__name__)
    code = getattr(error, "sqlstate", None) or ""
    if code.startswith(("08", "57P")):
        return Lost(type(error).__name__)
    if code[:2] in _OF_THE_SERVER or code == _READ_ONLY:
        return Unavailable(type(error).__name__)
    return error
