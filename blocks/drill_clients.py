"""Clients that do transactions through the public name while a drill goes on."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from domain.errors import UsageError
from domain.failover import Attempt

_START_SECONDS = 20.0
_END_SECONDS = 8.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class ClientsPlan:
    """What the clients are told.

    Attributes:
        url: with the public name and the port that both sides listen on.
        nameserver: host:port.
        transactions: the application's file, or empty: then they only read ``path``, which must
            answer ``status``.
        prefix: of every key; the number follows it.
    """

    url: str
    nameserver: str
    transactions: str
    prefix: str
    path: str = "/"
    status: int = 200
    lanes: int = 4
    pause_seconds: float = 0.1
    timeout_seconds: float = 1.0


class DrillClients:
    """The clients, as a process of their own that ends when this one does.

    Raises:
        UsageError: SLP213, the application's file cannot be used.
    """

    def __init__(
        self, plan: ClientsPlan, log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.plan = plan
        self.ledger = ""
        self._attempts: list[Attempt] = []
        self._lines: queue.Queue[str] = queue.Queue()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "load.clients"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[1],
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asdict(plan)) + "\n")
            self.process.stdin.flush()
            self.ledger = str(json.loads(self._lines.get(timeout=_START_SECONDS))["ledger"])
        except (OSError, queue.Empty, ValueError, KeyError) as error:
            self.close()
            said = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise UsageError(
                "SLP213",
                f"the clients of the drill did not start: {said}",
                help="correct the file that `recovery.transactions` in application.yaml names",
                detail=log.read_text(errors="replace")[-2000:],
            ) from error

    def attempts(self) -> list[Attempt]:
        """All so far, in the order in which they ended."""
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return list(self._attempts)
            if line:
                self._attempts.append(Attempt.model_validate_json(line))

    def await_attempt(self, good: Callable[[Attempt], bool], seconds: float) -> Attempt | None:
        """The first one that is good, or None after that time."""
        deadline, looked = time.monotonic() + seconds, 0
        while True:
            found = self.attempts()
            for attempt in found[looked:]:
                if good(attempt):
                    return attempt
            looked = len(found)
            if time.monotonic() > deadline or self.process.poll() is not None:
                return None
            time.sleep(_POLL_SECONDS)

    def close(self) -> list[Attempt]:
        """End them; returns all attempts, also those that were under way."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(2)
        return self.attempts()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")
