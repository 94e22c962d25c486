from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 15.0


class Service:
    """One process of the application and a client for it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=10.0)

    def sign_in(self, player: str | None = None) -> dict[str, str]:
        """A player's headers; a new player unless one is named."""
        player = player or f"p-{uuid.uuid4().hex[:16]}"
        answer = self.client.post("/api/sign-in", json={"player": player})
        assert answer.status_code == 201, answer.text
        return {"authorization": f"Bearer {answer.json()['token']}"}

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=25)


@contextmanager
def started(**env: str) -> Iterator[Service]:
    """Start a process on a free port and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "diet_game"],
        cwd=ROOT,
        env={**os.environ, "HOST": "127.0.0.1", "PORT": str(port), **env},
    )
    service = Service(process, f"http://127.0.0.1:{port}")
    try:
        until(lambda: service.client.get("/readyz").status_code == 200, START_SECONDS)
        yield service
    finally:
        service.client.close()
        if process.poll() is None:
            process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; a refused connection counts as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.02)
    pytest.fail(f"still not so after {seconds:g} s")


@pytest.fixture(scope="session")
def database() -> str:
    """The address of a migrated and seeded database."""
    url = os.environ.get("DATABASE_URL")
    if not url:
        pytest.fail("set DATABASE_URL to an empty, disposable PostgreSQL database", pytrace=False)
    for command in (["alembic", "upgrade", "head"], ["diet_game.seed"]):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    return url


@pytest.fixture(scope="session")
def service(database: str) -> Iterator[Service]:
    """A running process that the tests share."""
    with started(DRAIN_SECONDS="0") as service:
        yield service
        assert service.stop() == 0


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
