"""Logical databases on a real Redis server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis

from blocks.redis_server import RedisServer
from domain.errors import Failed
from sandbox import ports
from sandbox.parts import _redis_server as program


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = ports.choose("redis"), tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
         "--save", "", "--databases", "16"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        with redis.Redis(port=port) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.RedisError:
                    assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def server(url: str) -> Iterator[RedisServer]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    yield RedisServer(url, databases=16)


def open_url(url: str) -> redis.Redis:
    return redis.Redis.from_url(url)


def test_a_name_keeps_its_database(server: RedisServer, url: str) -> None:
    first = server.ensure("shop/test")
    with open_url(first) as client:
        client.set("kept", "1")
    assert RedisServer(url, databases=16).ensure("shop/test") == first
    with open_url(first) as client:
        assert client.get("kept") == b"1"


def test_two_names_never_share_one_even_at_once(server: RedisServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda n: server.ensure(f"app-{n % 10}/test"), range(40)))
    assert len(set(urls)) == 10
    assert not any(url.endswith("/0") for url in urls), "number 0 holds the list"


def test_a_disposable_one_is_empty_and_given_back(server: RedisServer) -> None:
    with server.disposable() as url, open_url(url) as client:
        client.set("left", "1")
    with server.disposable() as again, open_url(again) as client:
        assert again == url and client.dbsize() == 0


def test_what_a_killed_run_left_is_given_back_when_its_time_is_over(server: RedisServer) -> None:
    server.disposable(timedelta(seconds=-1)).__enter__()
    server.disposable().__enter__()
    with server.disposable() as url:
        assert url.endswith("/1"), "the number of the one whose time is over"


def test_when_all_are_taken_it_says_so(server: RedisServer) -> None:
    for number in range(15):
        server.ensure(f"app-{number}/test")
    with pytest.raises(Failed, match="all 15 logical Redis databases are taken") as caught:
        server.ensure("one-more/test")
    assert caught.value.code == "SLP014"
    server.release("app-3/test")
    server.release("app-3/test")
    assert server.ensure("one-more/test").endswith("/4")


def test_a_server_that_is_away_is_told_without_a_password() -> None:
    server = RedisServer(f"redis://:hunter2@127.0.0.1:{ports.choose('nobody')}/0")
    with pytest.raises(Failed) as caught:
        server.ensure("shop/test")
    assert caught.value.code == "SLP014" and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://u:p@host:1/0", "redis://u:p@host:1/7"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=7"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert RedisServer(url)._address(7) == address
