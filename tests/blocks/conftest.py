"""A real Traefik with real HTTP servers behind it, and a real PostgreSQL, for the tests here."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.disposable_postgres import DisposableServer
from blocks.traefik_edge import TraefikEdge
from tests.blocks.databases import RICH, new_database

BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10]
START_SECONDS = 20.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the proxies

SERVER = r"""
import asyncio, os, re, signal, sys
NAME, PORT, JOURNAL = sys.argv[1], int(sys.argv[2]), sys.argv[3]
idle, stopping = set(), asyncio.Event()

def note(method):
    with open(JOURNAL, "a") as journal:
        journal.write(method + "\n")

async def answer(method, path, body):
    if path.startswith("/slow/"):
        note(method)
        await asyncio.sleep(float(path.rsplit("/", 1)[1]))
    if path == "/alive":
        note(method)
    if path == "/die":
        note(method)
        os._exit(9)
    if path == "/readyz" and os.path.exists(JOURNAL + ".sick"):
        return 503
    return int(path.rsplit("/", 1)[1]) if path.startswith("/status/") else 200

async def serve(reader, writer):
    try:
        while not stopping.is_set():
            idle.add(writer)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            idle.discard(writer)
            length = re.search(r"content-length: *(\d+)", head, re.I)
            body = (await reader.readexactly(int(length[1]) if length else 0)).decode()
            method, path = head.split()[:2]
            if path == "/torn":
                writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 999\r\n\r\nonly this")
                return
            status = await answer(method, path, body)
            text = f"{NAME} {path} {body}".encode()
            last = "Connection: close\r\n" if stopping.is_set() else ""
            length = f"Content-Length: {len(text)}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{last}{length}\r\n".encode())
            writer.write(text)
            await writer.drain()
    except (EOFError, OSError):
        pass
    finally:
        idle.discard(writer)
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=1024)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    server.close()
    for writer in list(idle):
        writer.close()
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks)

asyncio.run(main())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        with _direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Traefik:
    """One Traefik with the static configuration that the sandbox gives it."""

    def __init__(self, home: Path) -> None:
        self.dynamic = home / "dynamic"
        self.dynamic.mkdir(parents=True)
        self.web, self.internal, self.api = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
        self.metrics = f"{self.api}/metrics"
        self.log = home / "traefik.log"
        self._config = home / "traefik.yml"
        self._config.write_text(json.dumps(self._static()))
        self._process: subprocess.Popen[bytes] | None = None

    def _static(self) -> dict[str, object]:
        points = {"web": self.web, "internal": self.internal, "traefik": self.api}
        return {
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
            "entryPoints": {n: {"address": u.removeprefix("http://")} for n, u in points.items()},
            "providers": {
                "providersThrottleDuration": "50ms",
                "file": {"directory": str(self.dynamic), "watch": True},
            },
            "api": {"insecure": True, "dashboard": False},
            "metrics": {
                "prometheus": {
                    "buckets": BUCKETS,
                    "addServicesLabels": True,
                    "entryPoint": "traefik",
                }
            },
        }

    def edge(self, deadline_seconds: float = 5.0) -> TraefikEdge:
        return TraefikEdge(
            dynamic=self.dynamic,
            web=self.web,
            internal=self.internal,
            api=self.api,
            metrics=self.metrics,
            deadline_seconds=deadline_seconds,
        )

    def launch(self) -> None:
        binary = shutil.which("traefik", path=str(Path(sys.executable).parent))
        assert binary, "traefik comes with the `sandbox` extra"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, f"--configfile={self._config}"], stdout=log, stderr=log
            )

    def start(self) -> None:
        self.launch()
        wait_for(lambda: answers(f"{self.api}/api/version"), f"Traefik: {self.log}")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Server:
    """A replica: a real process that answers HTTP with its name and the path it was asked."""

    def __init__(self, name: str, journal: Path) -> None:
        self.name, self.port, self.journal = name, free_port(), journal
        self.address = f"127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, name, str(self.port), str(journal)]
        )

    def wait(self) -> Server:
        def ready() -> bool:
            assert self._process.poll() is None, f"server {self.name} ended at once"
            return answers(f"http://{self.address}/")

        wait_for(ready, f"server {self.name}")
        return self

    @property
    def requests_seen(self) -> list[str]:
        return self.journal.read_text().split() if self.journal.exists() else []

    def be_sick(self, sick: bool) -> None:
        marker = self.journal.with_name(self.journal.name + ".sick")
        if sick:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)

    def terminate(self) -> None:
        """SIGTERM without waiting: it stops to listen and finishes what it has in hand."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="session")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traefik]:
    """Shared by all tests that leave it running."""
    part = Traefik(tmp_path_factory.mktemp("traefik"))
    try:
        part.start()
        yield part
    finally:
        part.kill()


@pytest.fixture
def own_traefik(tmp_path: Path) -> Iterator[Traefik]:
    """For tests that kill it or break its files."""
    part = Traefik(tmp_path / "traefik")
    try:
        part.start()
        yield part
    finally:
        part.kill()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two servers, blue and green, that no test stops."""
    home = tmp_path_factory.mktemp("servers")
    both = {name: Server(name, home / name) for name in ("blue", "green")}
    try:
        yield {name: server.wait() for name, server in both.items()}
    finally:
        for server in both.values():
            server.stop()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Starts servers that the test may kill."""
    started: list[Server] = []

    def start(name: str) -> Server:
        started.append(Server(name, tmp_path / f"{name}-{len(started)}"))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[DisposableServer]:
    """A PostgreSQL server of its own; each test makes its own databases in it."""
    with DisposableServer(tcp=True, major=18) as server:
        yield server


@pytest.fixture(scope="session")
def rich(postgres: DisposableServer) -> str:
    """The URL of a database with one of everything, which no test changes."""
    return new_database(postgres, RICH, name="rich")
