"""People who use an application while it is released: open loop, keep-alive, through Traefik."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

LIMIT_SECONDS = 170.0
ANSWER_SECONDS = 10.0


@dataclass
class Users:
    """Send ``rate`` requests a second, whatever comes back; nothing is tried twice.

    ``failed`` holds (seconds since the start, what was seen); ``versions`` the answers by the
    version that gave them.
    """

    web: str
    host: str
    path: str = "/version"
    rate: float = 25
    headers: str = ""
    versions: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[float, str]] = field(default_factory=list)
    seen: list[tuple[float, str]] = field(default_factory=list)

    @property
    def served(self) -> int:
        return sum(self.versions.values())

    @property
    def newest(self) -> str:
        """The version that answered last."""
        return self.seen[-1][1] if self.seen else ""

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(ANSWER_SECONDS + 5)
        assert not self._thread.is_alive(), "a user waits for ever"

    @property
    def began_at(self) -> float:
        return self._began

    def before(self, moment: float) -> set[str]:
        """Versions that had answered before a moment of the monotonic clock."""
        return {version for at, version in self.seen if self._began + at < moment}

    def now(self) -> float:
        return time.monotonic() - self._began

    def wait_for(self, count: int, seconds: float = 20) -> None:
        """Until ``count`` more requests were answered or have failed."""
        goal, end = self.served + len(self.failed) + count, time.monotonic() + seconds
        while self.served + len(self.failed) < goal:
            assert time.monotonic() < end, f"users saw only {self.served} answers"
            time.sleep(0.02)

    async def _live(self) -> None:
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        running: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self._stop.is_set() and time.monotonic() - self._began < LIMIT_SECONDS:
            task = asyncio.create_task(self._ask(idle))
            running.add(task)
            task.add_done_callback(running.discard)
            due += 1 / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*running)
        for _, writer in idle:
            writer.close()

    async def _ask(self, idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        at = self.now()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, body = await self._exchange(idle)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self.failed.append((at, f"{type(error).__name__}: {error}"))
            return
        if status == 200:
            self.versions[body] += 1
            self.seen.append((at, body))
        else:
            self.failed.append((at, f"{status}: {body[:80]}"))

    async def _exchange(
        self, idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    ) -> tuple[int, str]:
        url = urlsplit(self.web)
        fresh = not idle
        reader, writer = (
            await asyncio.open_connection(url.hostname, url.port) if fresh else idle.pop()
        )
        try:
            head = f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\n{self.headers}\r\n"
            writer.write(head.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(
                int(line.split(":")[1])
                for line in head.split("\r\n")
                if line.startswith("content-length:")
            )
            body = (await reader.readexactly(length)).decode()
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            idle.append((reader, writer))
        return int(head.split()[1]), body
