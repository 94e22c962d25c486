from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import pytest

from diet_game.cache import Breaker, SharedCache, TtlCache
from diet_game.metrics import Metrics


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_breaker_opens_lets_one_through_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(2.0, clock)
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    clock.now += 2.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]


def test_breaker_stays_open_when_the_trial_fails() -> None:
    clock = Clock()
    breaker = Breaker(2.0, clock)
    breaker.failed()
    clock.now += 2.0
    assert breaker.allows()
    clock.now += 1.0
    breaker.failed()
    clock.now += 1.5
    assert not breaker.allows()


def test_values_expire_and_the_oldest_goes_first() -> None:
    clock = Clock()
    cache: TtlCache[int, str] = TtlCache(2, 5.0, clock)
    for key in (1, 2, 3):
        cache.put(key, str(key))
    assert [cache.get(key) for key in (1, 2, 3)] == [None, "2", "3"]
    clock.now += 5.0
    assert cache.get(3) is None


def test_callers_who_miss_together_load_once_even_when_the_first_goes_away() -> None:
    loads = 0

    async def scenario() -> list[str | None]:
        cache: TtlCache[int, str] = TtlCache(2, 5.0)
        release = asyncio.Event()

        async def load() -> str:
            nonlocal loads
            loads += 1
            await release.wait()
            return "value"

        tasks = [asyncio.create_task(cache.get_or_load(1, load)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*tasks[1:])

    assert asyncio.run(scenario()) == ["value"] * 4
    assert loads == 1


def test_a_failed_load_is_told_to_its_callers_and_not_kept() -> None:
    async def scenario() -> str | None:
        cache: TtlCache[int, str] = TtlCache(2, 5.0)

        async def broken() -> str:
            raise OSError("gone")

        async def fine() -> str:
            return "back"

        with pytest.raises(OSError, match="gone"):
            await cache.get_or_load(1, broken)
        return await cache.get_or_load(1, fine)

    assert asyncio.run(scenario()) == "back"


def test_redis_out_of_reach_is_a_miss_and_is_tried_once() -> None:
    metrics = Metrics("test")

    async def scenario(port: int) -> None:
        cache = SharedCache(f"redis://127.0.0.1:{port}/0", "p:", metrics)
        assert [await cache.get("session", "x") for _ in range(20)] == [None] * 20
        await cache.put("session", "x", b"1", 10)
        await cache.close()

    with socket.socket() as closed:  # bound and not listening: nobody answers, nobody else can
        closed.bind(("127.0.0.1", 0))
        asyncio.run(scenario(closed.getsockname()[1]))
    text = metrics.render().decode()
    assert 'cache_requests_total{result="error",store="session"} 1.0' in text
    assert 'cache_requests_total{result="off",store="session"} 19.0' in text
