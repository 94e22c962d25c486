"""A server whose behaviour is known beforehand, to test a load generator against.

``python -m sandbox.known_server BEHAVIOUR`` listens on a free port of loopback, prints it, and
ends when its stdin closes. ``GET /truth`` gives what it did: the time that it took for each
answer, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

STALL_SECONDS, STALL_EVERY_SECONDS = 2.0, 10.0
BODY = b'{"items": []}'


@dataclass
class Behaviour:
    """How requests are answered.

    Attributes:
        delay: seconds until the answer to a path.
        status: of the answer to a path; 0 closes the connection instead.
        idle_seconds: a connection without a request for that long is closed; 0: never.
        most_connections: what is served at once; further ones are accepted and left alone.
    """

    delay: Callable[[str], float] = lambda path: 0.0
    status: Callable[[str], int] = lambda path: 200
    idle_seconds: float = 0.0
    most_connections: int = 1_000_000
    stalls: bool = False


def behaviours(chance: random.Random) -> dict[str, Behaviour]:
    """All of them, by name."""

    def one_in_100() -> bool:
        return chance.random() < 0.01

    return {
        "constant": Behaviour(delay=lambda path: 0.02),
        "lognormal": Behaviour(delay=lambda path: chance.lognormvariate(math.log(1.0), 0.3)),
        "stall": Behaviour(stalls=True),
        "errors": Behaviour(status=lambda path: 500 if one_in_100() else 200),
        "slow-endpoint": Behaviour(delay=lambda path: 0.6 if path.startswith("/rare") else 0.002),
        "drops": Behaviour(status=lambda path: 0 if one_in_100() else 200),
        "closes-idle": Behaviour(idle_seconds=0.4),
        "few-connections": Behaviour(most_connections=20),
        "down": Behaviour(status=lambda path: 503),
    }


@dataclass
class Server:
    """What all connections share."""

    behaviour: Behaviour
    began: float = field(default_factory=time.monotonic)
    open: int = 0
    took: list[float] = field(default_factory=list)

    def stalled_for(self) -> float:
        """Seconds until the present stall is over; 0 outside of one."""
        if not self.behaviour.stalls:
            return 0.0
        at = (time.monotonic() - self.began) % STALL_EVERY_SECONDS
        return max(0.0, STALL_SECONDS - at)


class Connection(asyncio.Protocol):
    """One request after the other; enough of HTTP/1.1 for a generator."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._served = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.open < self._server.behaviour.most_connections:
            self._server.open += 1
            self._served = True
        self._wait_idle()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.open -= self._served
        self._stop_idle()

    def data_received(self, data: bytes) -> None:
        if not self._served:
            return
        self._buffer += data
        self._stop_idle()
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            length = next(
                (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                 if line.startswith(b"content-length:")), 0,
            )  # fmt: skip
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head.split(b" ", 2)[1].decode())

    def _answer(self, path: str) -> None:
        if path == "/truth":
            return self._write(200, json.dumps(self._server.took).encode())
        began = time.monotonic()
        delay = self._server.behaviour.delay(path) + self._server.stalled_for()
        if delay:
            asyncio.get_running_loop().call_later(delay, self._finish, path, began)
        else:
            self._finish(path, began)

    def _finish(self, path: str, began: float) -> None:
        status = self._server.behaviour.status(path)
        if status == 0:
            if self._transport is not None:
                self._transport.close()
            return
        self._server.took.append(time.monotonic() - began)
        self._write(status, BODY)

    def _write(self, status: int, body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)
        self._wait_idle()

    def _wait_idle(self) -> None:
        if seconds := self._server.behaviour.idle_seconds:
            self._stop_idle()
            self._idle = asyncio.get_running_loop().call_later(seconds, self._close_idle)

    def _close_idle(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


async def serve(name: str) -> None:
    server = Server(behaviours(random.Random(7))[name])
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=16_384)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listening.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
