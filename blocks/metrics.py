"""The Metrics protocol: users' requests per workload, counted since a meter was opened.

Each implementation passes the contract suite in tests/blocks/test_metrics_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from pydantic import AwareDatetime, BaseModel, ConfigDict

from blocks.edge import Edge
from domain.counting import added
from domain.errors import Failed
from domain.routing import Counts

Clock = Callable[[], datetime]


class Reading(BaseModel):
    """What was counted, and up to when.

    Attributes:
        at: time of the newest sample behind the counts, in UTC; of the workload that is furthest
            behind where they differ.
        counts: by workload, of every workload the meter was opened for: what was gained since.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    counts: Mapping[str, Counts]


@runtime_checkable
class Meter(Protocol):
    """Counts from the moment it was opened; requests and errors never go back."""

    def read(self) -> Reading:
        """What was gained so far, in bounded time. It may be called as often as one likes.

        Raises:
            Failed: SLP014 when it could not look, SLP090 when there is nothing recent to see,
                SLP091 when the credentials are refused. After any of them the meter can be read
                again, and has lost nothing that the source still knows.
        """
        ...


@runtime_checkable
class Metrics(Protocol):
    """A source of counts."""

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter:
        """Begin to count the workloads. Raises what ``Meter.read`` raises."""
        ...


def utc_now() -> datetime:
    return datetime.now(UTC)


class EdgeMetrics:
    """Counts by the edge's own counters, read directly: no delay, and nothing else to run.

    The counters are in the edge's memory, so an edge that restarts counts from zero. The meter
    notices that by a counter that went back, and keeps what it had added up. What was counted
    between its last look and the restart is lost. So is a restart itself when every counter has
    overtaken its old value before the next look; looks that are close together make both small.
    """

    def __init__(self, edge: Edge, *, clock: Clock = utc_now) -> None:
        self._edge, self._clock = edge, clock

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter:
        return _EdgeMeter(self._edge, self._clock, application, environment, workloads)


class _EdgeMeter:
    def __init__(
        self,
        edge: Edge,
        clock: Clock,
        application: str,
        environment: str,
        workloads: Sequence[str],
    ) -> None:
        self._edge, self._clock = edge, clock
        self._application, self._environment = application, environment
        self._before = self._look()
        self._totals = {workload: Counts() for workload in workloads}
        self._known = set(self._before)

    def read(self) -> Reading:
        """Counts up to now.

        Raises:
            Failed: SLP014 also for a workload that the edge has not had since the meter was
                opened: nobody counts its requests. One that had been there and has left keeps
                what it gained, and goes on when it returns.
        """
        at = self._clock()  # before the look: the counts are at least of that moment
        now = self._look()
        self._known |= set(now)
        self._refuse_unknown(now)
        for workload in self._totals:
            if workload in now:
                step = now[workload].since(self._before.get(workload, Counts()))
                self._totals[workload] = added(self._totals[workload], step)
        # A workload that left is forgotten here: the edge drops its counters with it.
        self._before = now
        return Reading(at=at, counts=dict(self._totals))

    def _look(self) -> Mapping[str, Counts]:
        return dict(self._edge.counts(self._application, self._environment))

    def _refuse_unknown(self, now: Mapping[str, Counts]) -> None:
        if unknown := [workload for workload in self._totals if workload not in self._known]:
            there = ", ".join(sorted(now)) or "no workload"
            raise Failed(
                "SLP014",
                f"tried to count the requests of {', '.join(unknown)} in {self._application}/"
                f"{self._environment}; the edge has {there} there",
                help="nothing was counted; see `slipway status` for the workloads that are live",
            )
