"""What users met, by workload, from wherever it is counted.

A source that cannot be read raises: silence and zero requests are not the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from blocks.edge import Edge
from domain.routing import Counts


class Reading(BaseModel):
    """One look: what was gained since the meter was opened.

    Attributes:
        at: moment of the newest sample behind it, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    counts: Mapping[str, Counts]


@runtime_checkable
class Meter(Protocol):
    """Counts from the moment it was opened."""

    def read(self) -> Reading:
        """Raises ``domain.errors.SlipwayError`` when it could not look."""
        ...


@runtime_checkable
class Metrics(Protocol):
    """One source of counts; passes tests/blocks/test_metrics_contract.py."""

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter: ...


class EdgeMetrics:
    """Counts of the edge itself, which sees every request of a user."""

    def __init__(self, edge: Edge, now: Callable[[], datetime] | None = None) -> None:
        self._edge, self._now = edge, now or (lambda: datetime.now(UTC))

    def open(self, application: str, environment: str, workloads: Sequence[str]) -> Meter:
        return _EdgeMeter(self._edge, application, environment, tuple(workloads), self._now)


class _EdgeMeter:
    """Adds up what each look finds more than the last one.

    A counter that went back has restarted: what came between the last look and the restart is
    lost, and what came before is kept.
    """

    def __init__(
        self,
        edge: Edge,
        application: str,
        environment: str,
        workloads: Sequence[str],
        now: Callable[[], datetime],
    ) -> None:
        self._edge, self._application, self._environment = edge, application, environment
        self._now, self._workloads = now, workloads
        self._last = dict(self._look())
        self._gained = {workload: Counts() for workload in workloads}

    def _look(self) -> Mapping[str, Counts]:
        return self._edge.counts(self._application, self._environment)

    def read(self) -> Reading:
        found = self._look()
        for workload in self._workloads:
            if workload in found:
                gained = found[workload].since(self._last.get(workload, Counts()))
                self._gained[workload] = self._gained[workload].plus(gained)
                self._last[workload] = found[workload]
        return Reading(at=self._now(), counts=dict(self._gained))
