"""Caches: a small one in the process, and Redis behind a circuit breaker.

Nothing here is the truth. Every miss and every failure ends in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from diet_game.metrics import Metrics

log = logging.getLogger(__name__)
K = TypeVar("K")
V = TypeVar("V")


class Breaker:
    """Opens at a failure, for `open_seconds`; then lets one caller at a time try again."""

    def __init__(self, open_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_seconds = open_seconds
        self._clock = clock
        self._open_until: float | None = None

    def allows(self) -> bool:
        """Whether to try. While open, a caller that is let through holds the others back."""
        if self._open_until is None:
            return True
        now = self._clock()
        if now < self._open_until:
            return False
        self._open_until = now + self._open_seconds
        return True

    def succeeded(self) -> None:
        """Close."""
        self._open_until = None

    def failed(self) -> None:
        """Open."""
        self._open_until = self._clock() + self._open_seconds


class TtlCache(Generic[K, V]):
    """At most `size` values for `ttl_seconds`; callers who miss together load once."""

    def __init__(
        self, size: int, ttl_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size = size
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._loading: dict[K, asyncio.Future[V | None]] = {}

    def get(self, key: K) -> V | None:
        """The value, or None when there is none that is fresh."""
        found = self._values.get(key)
        if found is None:
            return None
        if found[0] <= self._clock():
            self._values.pop(key, None)
            return None
        return found[1]

    def put(self, key: K, value: V) -> None:
        """Keep a value; the oldest goes when there are too many."""
        self._values[key] = (self._clock() + self._ttl_seconds, value)
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    async def get_or_load(self, key: K, load: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value, loaded when missing. None and errors are not kept."""
        found = self.get(key)
        if found is not None:
            return found
        loading = self._loading.get(key)
        if loading is None:
            # A task of its own, so that one caller who goes away does not fail the others.
            loading = asyncio.ensure_future(self._load(key, load))
            self._loading[key] = loading
        return await asyncio.shield(loading)

    async def _load(self, key: K, load: Callable[[], Awaitable[V | None]]) -> V | None:
        try:
            value = await load()
            if value is not None:
                self.put(key, value)
            return value
        finally:
            self._loading.pop(key, None)


class SharedCache:
    """Redis, when there is one and it answers; otherwise every look-up is a miss."""

    def __init__(self, url: str | None, prefix: str, metrics: Metrics) -> None:
        self._prefix = prefix
        self._metrics = metrics
        self._breaker = Breaker(open_seconds=2.0)
        self._redis: Redis | None = None
        if url:
            self._redis = Redis.from_url(
                url,
                socket_timeout=0.25,
                socket_connect_timeout=0.25,
                max_connections=64,
                # One more try mends a connection that Redis closed while it was idle.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )

    async def get(self, store: str, key: str) -> bytes | None:
        """The value, or None: not there, or Redis is out of reach."""
        value: bytes | None = None
        result = "off"
        if self._redis is not None and self._breaker.allows():
            try:
                found = await self._redis.get(f"{self._prefix}{store}:{key}")
                value = found.encode() if isinstance(found, str) else found
                self._breaker.succeeded()
                result = "miss" if value is None else "hit"
            except (RedisError, OSError, TimeoutError) as error:
                self._failed(error)
                result = "error"
        self._metrics.cache.labels(store, result).inc()
        return value

    async def put(self, store: str, key: str, value: bytes, ttl_seconds: int) -> None:
        """Keep a value; a failure is logged and otherwise forgotten."""
        if self._redis is None or not self._breaker.allows():
            return
        try:
            await self._redis.set(f"{self._prefix}{store}:{key}", value, ex=ttl_seconds)
            self._breaker.succeeded()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._breaker.failed()
        # The text of a Redis error can quote the address; its kind is enough.
        log.warning("redis: %s; going on without it", type(error).__name__)

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()
