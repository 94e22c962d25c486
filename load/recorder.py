"""What one worker saw, second by second; every number of a verdict comes from here."""

from __future__ import annotations

import gc
import math
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import gevent

from domain.arrivals import Dispersion
from domain.latency import Histogram
from domain.load_profile import Profile

LOOP_SECONDS = 0.02
"""How often the event loop is asked whether it is on time."""


@dataclass(slots=True)
class _Endpoint:
    """Of one endpoint in one phase.

    Attributes:
        response: from the due time, which is what a user waits.
        service: from the sending, which is what the server takes.
    """

    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    failures: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "response": self.response.to_dict(),
            "service": self.service.to_dict(),
            "failures": self.failures,
            "bytes": self.bytes,
        }


@dataclass(slots=True)
class _Tick:
    """One second. Requests are in it when they end, and in the phase in which they were due."""

    endpoints: dict[str, dict[str, _Endpoint]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_Endpoint))
    )
    lag: Histogram = field(default_factory=Histogram)
    loop: Histogram = field(default_factory=Histogram)
    connections: int = 0
    reconnections: int = 0
    answered: int = 0
    repeated: int = 0
    done: int = 0
    busy_seconds: float = 0.0
    pauses_us: int = 0
    scripts: dict[str, int] = field(default_factory=dict)


class Recorder:
    """Collects; ``tick`` gives what came since the one before, and starts anew.

    Args:
        start: on the clock of ``time.monotonic``.
    """

    def __init__(self, profile: Profile, start: float) -> None:
        self.start = start
        self.users = 0
        self.in_flight = 0
        self.requests = 0
        self._seconds = profile.seconds
        self._sends: dict[str, Dispersion] = defaultdict(Dispersion)
        self._spans = [(start + end, phase.name) for phase, _, end in profile.spans()]
        self._now = _Tick()
        self._sequence = 0
        self._cpu = time.process_time()
        self._collecting = 0.0
        gc.callbacks.append(self._collected)

    # the listener of a session

    def sent(self, at: float, due: float | None) -> None:
        """A request leaves now. What it is late by is the generator's own fault."""
        self.in_flight += 1
        if due is not None:
            self._now.lag.record(max(0, int((at - due) * 1e6)))
            self._sends[self.phase_of(due)].record(at - self.start)

    def connected(self, *, again: bool) -> None:
        if again:
            self._now.reconnections += 1
        else:
            self._now.connections += 1

    def first_answer(self) -> None:
        """A connection got an answer for the first time."""
        self._now.answered += 1

    def cut_off(self) -> None:
        """The run was ended while this request was under way; nothing is known of it."""
        self.in_flight -= 1

    def repeated(self) -> None:
        """A request was dropped without an answer, and sent once more."""
        self._now.repeated += 1

    def finished(
        self, name: str, due: float, sent: float, done: float, failure: str, size: int
    ) -> None:
        """Keep one request; all clocks are monotonic seconds."""
        self.in_flight -= 1
        self.requests += 1
        endpoint = self._now.endpoints[self.phase_of(due)][name]
        endpoint.response.record(int((done - due) * 1e6))
        endpoint.service.record(int((done - sent) * 1e6))
        endpoint.bytes += size
        if failure:
            endpoint.failures[failure] = endpoint.failures.get(failure, 0) + 1

    # what a user tells

    def did(self, seconds: float) -> None:
        """A user has done one thing, in that time; for the audit N / (Z + R)."""
        self._now.done += 1
        self._now.busy_seconds += seconds

    def script_failed(self, error: BaseException) -> None:
        """The behaviour itself is broken, so what it should have sent was not sent."""
        text = f"{type(error).__name__}: {error}"[:200]
        self._now.scripts[text] = self._now.scripts.get(text, 0) + 1

    def leaves_at(self, seconds: float) -> float:
        """When a user goes whose last stay ends then."""
        return self.start + seconds + (60.0 if seconds >= self._seconds - 1e-6 else 0.0)

    def phase_of(self, at: float) -> str:
        for end, name in self._spans:
            if at < end:
                return name
        return self._spans[-1][1]

    # the worker

    def watch_loop(self) -> Iterator[None]:
        """Run as a greenlet: how late is a timer? That is what every user's timer is late by."""
        while True:
            due = monotonic() + LOOP_SECONDS
            gevent.sleep(LOOP_SECONDS)
            self._now.loop.record(max(0, int((monotonic() - due) * 1e6)))

    def tick(self, *, last: bool = False) -> dict[str, Any]:
        """Everything since the one before; with the last one, the second that is not over too."""
        tick, self._now = self._now, _Tick()
        cpu, self._cpu = self._cpu, time.process_time()
        self._sequence += 1
        return {
            "kind": "tick",
            "sequence": self._sequence,
            "second": round(monotonic() - self.start, 3),
            "users": self.users,
            "in_flight": self.in_flight,
            "phases": {
                phase: {name: endpoint.to_dict() for name, endpoint in by_name.items()}
                for phase, by_name in tick.endpoints.items()
            },
            "lag": tick.lag.to_dict(),
            "loop": tick.loop.to_dict(),
            "sends": self._sent_before(math.inf if last else monotonic() - self.start),
            "connections": tick.connections,
            "reconnections": tick.reconnections,
            "answered": tick.answered,
            "repeated": tick.repeated,
            "done": tick.done,
            "busy_seconds": round(tick.busy_seconds, 6),
            "cpu_seconds": round(self._cpu - cpu, 4),
            "pause_us": tick.pauses_us,
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "scripts": tick.scripts,
        }

    def _sent_before(self, seconds: float) -> dict[str, Any]:
        given = {phase: sends.drain(seconds) for phase, sends in self._sends.items()}
        return {phase: sends.to_dict() for phase, sends in given.items()}

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = monotonic()
        else:
            pause = int((monotonic() - self._collecting) * 1e6)
            self._now.pauses_us = max(self._now.pauses_us, pause)
