"""A Redis server that holds applications' caches, each in a logical database of its own."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import redis

from domain.errors import Failed

_INDEX = "slipway:databases"
_DISPOSABLE = "disposable/"
_T = TypeVar("_T")


class RedisServer:
    """Hands out logical databases; number 0 keeps the list of who has which."""

    def __init__(self, url: str, databases: int = 1024) -> None:
        self._url, self._databases = url, databases

    def ensure(self, name: str) -> str:
        """The URL of the logical database that belongs to ``name``, the same every time."""
        with self._client(0) as client:
            number = self._guard(lambda: self._allocate(client, name))
        return self._address(number)

    @contextmanager
    def disposable(self, lifetime: timedelta = timedelta(hours=1)) -> Iterator[str]:
        """The URL of an empty logical database that is given back afterwards.

        Its name holds its expiry, so the next caller gives back what a killed run left behind.
        """
        self._sweep()
        name = f"{_DISPOSABLE}{(datetime.now(UTC) + lifetime).isoformat()}/{uuid.uuid4().hex}"
        url = self.ensure(name)
        try:
            yield url
        finally:
            with contextlib.suppress(Failed):  # the next one sweeps it when its time is over
                self.release(name)

    def _sweep(self) -> None:
        with self._client(0) as client:
            names = [n.decode() for n in self._guard(lambda: client.hkeys(_INDEX))]
        for name in names:
            if name.startswith(_DISPOSABLE):
                until = datetime.fromisoformat(name.removeprefix(_DISPOSABLE).split("/")[0])
                if until < datetime.now(UTC):
                    self.release(name)

    def release(self, name: str) -> None:
        """Empty the database of ``name`` and give its number back."""
        with self._client(0) as client:
            held = self._guard(lambda: client.hget(_INDEX, name))
            if held is None:
                return
            with self._client(int(held)) as owned:
                self._guard(owned.flushdb)
            self._guard(lambda: client.hdel(_INDEX, name))

    def _allocate(self, client: redis.Redis, name: str) -> int:
        """One script, so that two releases never get one number."""
        script = """
        local held = redis.call('HGET', KEYS[1], ARGV[1])
        if held then return tonumber(held) end
        local taken = {}
        for _, n in ipairs(redis.call('HVALS', KEYS[1])) do taken[tonumber(n)] = true end
        for n = 1, tonumber(ARGV[2]) - 1 do
            if not taken[n] then redis.call('HSET', KEYS[1], ARGV[1], n) return n end
        end
        return -1
        """
        number = int(client.eval(script, 1, _INDEX, name, str(self._databases)))
        if number < 0:
            raise Failed(
                "SLP014",
                f"all {self._databases - 1} logical Redis databases are taken, none for {name}",
                help="remove environments that are no longer used",
            )
        return number

    def _guard(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except redis.RedisError as error:
            raise Failed(
                "SLP014",
                f"Redis did not answer: {error}",
                help="see `slipway status`; run it again when the server is back",
            ) from error

    def _client(self, database: int) -> redis.Redis:
        return redis.Redis.from_url(
            self._address(database), socket_timeout=5, socket_connect_timeout=5
        )

    def _address(self, database: int) -> str:
        url = urlsplit(self._url)
        if url.scheme == "unix":  # urlunsplit would drop the empty host, and redis wants it
            return f"{self._url.partition('?')[0]}?db={database}"
        return urlunsplit(url._replace(path=f"/{database}"))
